"""The index of a split: where every record lies in its file. It is built once and kept beside the files."""

import hashlib
import io
import os
import re
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from ..errors import UnreadableError
from ..folders import canonical_split, files_below, files_of_split, split_folder
from .formats import FORMATS, detect_format, has_format_name, npz
from .formats.location import UNKNOWN, RecordLocation
from .record import MAX_LABEL

VERSION = b"2"  # of what an index holds, and of how formats are scanned
MAX_BYTES = 1 << 32  # of an array in a kept index


@dataclass(frozen=True)
class RecordIndex:
    """The records of a split in the order of their files, which are sorted by name."""

    files: np.ndarray  # [files] bytes: names relative to the folder
    formats: np.ndarray  # [files] int64: positions in FORMATS
    file_of: np.ndarray  # [n] int64: positions in files
    offset: np.ndarray  # [n] int64
    length: np.ndarray  # [n] int64
    label: np.ndarray  # [n] int64

    def is_sound(self, names: set[bytes]) -> bool:
        """Whether all values are within their ranges, and all files among ``names``."""
        columns = (self.file_of, self.offset, self.length, self.label)
        return (
            all(column.dtype == np.int64 and column.shape == self.file_of.shape[:1] for column in columns)
            and self.files.dtype.kind == "S"
            and self.formats.dtype == np.int64
            and self.formats.shape == self.files.shape == self.files.shape[:1]
            and set(self.files.tolist()) <= names
            and _within(self.formats, 0, len(FORMATS) - 1)
            and _within(self.file_of, 0, len(self.files) - 1)
            and _within(self.label, UNKNOWN, MAX_LABEL)
            and _within(self.offset, 0, 1 << 62)
            and _within(self.length, 0, 1 << 62)
        )


def open_index(folder: Path, split: str) -> RecordIndex:
    """The index of a split's files, read where it is kept, else built and kept: in the folder, or in the user's cache.

    An index is built anew where it is damaged, or where names, sizes or times of the files have changed since. Files
    that are of no format, by content and by name, are not in it.

    Raises:
        FileNotFoundError: there are no records of the split.
        ValueError: ``split`` is no plain name; a file is of two splits, of none beside others, or compressed.
    """
    if not re.fullmatch(r"\w+", split):
        raise ValueError(f"split is {split!r}; expected a name, as train and val")
    split = canonical_split(split)
    names = _files_of_split(folder, split)
    state = _state(folder, names)
    for path in _index_paths(folder, split):
        index = _load(path, state)
        if index is not None and index.is_sound(set(map(os.fsencode, names))):
            return index
    index = build_index(folder, names)
    if not len(index.label):
        raise FileNotFoundError(
            f"there are no ClickMe records in {split}/* of {folder}, or in files there with {split} as a word of their "
            "names; expected TFRecord, NPZ, .pth or tar"
        )
    for path in _index_paths(folder, split):
        if _save(path, index, state):
            break
    return index


def build_index(folder: Path, names: list[str]) -> RecordIndex:
    """The index of the files ``names`` in ``folder``. Raises ValueError for a compressed one."""
    numbers = {name: number for number, name in enumerate(FORMATS)}
    files, formats, rows = list[bytes](), list[int](), list[tuple[int, int, int, int]]()
    for name in names:
        format_name = detect_format(folder / name)
        if format_name:
            try:
                locations = FORMATS[format_name].scan(folder / name)
            except OSError:  # reading the record will say what is wrong
                locations = [RecordLocation(0, 0, UNKNOWN)]
            rows += [(len(files), *location) for location in locations]
            files.append(os.fsencode(name))
            formats.append(numbers[format_name])
    table = np.array(rows, np.int64).reshape(-1, 4)
    return RecordIndex(np.array(files, np.bytes_), np.array(formats, np.int64), *(column.copy() for column in table.T))


def _files_of_split(folder: Path, split: str) -> list[str]:
    """The files of a split but hidden ones: all below FOLDER/SPLIT, and those in FOLDER with SPLIT as a word.

    Raises ValueError for a file, named as one of the formats, of two splits or of none beside others.
    """
    inside = split_folder(folder, split)
    below = [] if inside is None else [Path(path) for path in files_below(inside) if Path(path).is_file()]
    paths = [*below, *files_of_split(folder, split, has_format_name)]
    return sorted(path.relative_to(folder).as_posix() for path in paths)


def _state(folder: Path, names: list[str]) -> bytes:
    """A digest of the files' names, sizes and times."""
    digest = hashlib.blake2b(VERSION)
    for name in names:
        status = (folder / name).stat()
        digest.update(os.fsencode(f"{name}\0{status.st_size}\0{status.st_mtime_ns}\n"))
    return digest.digest()


def _index_paths(folder: Path, split: str) -> tuple[Path, Path]:
    """Where an index may be kept: in the folder, or in the user's cache where the folder cannot be written to."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "gala_cuda", "clickme")
    digest = hashlib.blake2b(os.fsencode(folder.resolve()), digest_size=8).hexdigest()
    return folder / f".gala-clickme-{split}.npz", cache / f"{digest}-{split}.npz"


def _load(path: Path, state: bytes) -> RecordIndex | None:
    """The index kept at ``path``; None where there is none, or it is damaged or of files in another ``state``."""
    fields = RecordIndex.__dataclass_fields__
    try:
        with path.open("rb") as file:
            arrays = npz.read_arrays(file, (*fields, "state"), MAX_BYTES)
    except (OSError, UnreadableError):
        return None
    if arrays.keys() != {*fields, "state"} or arrays.pop("state").tobytes() != state:
        return None
    return RecordIndex(**arrays)


def _save(path: Path, index: RecordIndex, state: bytes) -> bool:
    """Writes the index, whole or not at all. Returns whether it could be written."""
    stream = io.BytesIO()
    np.savez(stream, state=np.frombuffer(state, np.uint8), **asdict(index))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.stem}-") as draft:
            file = Path(draft, path.name)
            file.write_bytes(stream.getvalue())
            file.replace(path)
    except OSError:
        return False
    return True


def _within(values: np.ndarray, least: int, most: int) -> bool:
    return not values.size or bool(values.min() >= least and values.max() <= most)
