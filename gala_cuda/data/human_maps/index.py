"""Where every record of a split lies: found once, and kept beside the files."""

import hashlib
import io
import os
import re
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from ..errors import UnreadableError
from ..folders import canonical, files_below, files_of_split, split_folder
from .formats import FORMATS, UNKNOWN, Entry, detect, is_named, npz
from .record import MAX_LABEL

VERSION = b"2"  # of what an index holds and how formats are scanned
LARGEST = 1 << 32  # bytes of a kept index's array


@dataclass(frozen=True)
class Index:
    """The records of a split in the order of their files, sorted by name."""

    files: np.ndarray  # [files] bytes: names relative to the folder
    formats: np.ndarray  # [files] int64: places in FORMATS
    file_of: np.ndarray  # [n] int64: places in files
    offset: np.ndarray  # [n] int64
    length: np.ndarray  # [n] int64
    label: np.ndarray  # [n] int64

    def is_sound(self, names: set[bytes]) -> bool:
        """Whether all places are places, and all files among ``names``."""
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


def open_index(folder: Path, split: str) -> Index:
    """The index of a split's files, read where it is kept, else built and kept: in the folder, or in the user's cache.

    One that is damaged, or older than a change of names, sizes or times of the files, is built anew. Files that are of
    no format, by content and by name, have no part in it.

    Raises:
        FileNotFoundError: there are no records of the split.
        ValueError: ``split`` is no plain name; a file is of two splits, of none beside others, or compressed.
    """
    if not re.fullmatch(r"\w+", split):
        raise ValueError(f"split is {split!r}; expected a name, as train and val")
    split = canonical(split)
    names = names_of(folder, split)
    state = _state(folder, names)
    for place in _places(folder, split):
        index = _load(place, state)
        if index is not None and index.is_sound(set(map(os.fsencode, names))):
            return index
    index = build(folder, names)
    if not len(index.label):
        raise FileNotFoundError(
            f"there are no ClickMe records in {split}/* of {folder}, or in files there with {split} as a word of their "
            "names; expected TFRecord, NPZ, .pth or tar"
        )
    for place in _places(folder, split):
        if _save(place, index, state):
            break
    return index


def names_of(folder: Path, split: str) -> list[str]:
    """The files of a split but hidden ones: all below FOLDER/SPLIT, and those in FOLDER with SPLIT as a word.

    Raises ValueError for a file, named as one of the formats, of two splits or of none beside others.
    """
    inside = split_folder(folder, split)
    below = [] if inside is None else [Path(path) for path in files_below(inside) if Path(path).is_file()]
    paths = [*below, *files_of_split(folder, split, is_named)]
    return sorted(path.relative_to(folder).as_posix() for path in paths)


def build(folder: Path, names: list[str]) -> Index:
    """The index of the files ``names``."""
    numbers = {name: number for number, name in enumerate(FORMATS)}
    files, formats, columns = list[bytes](), list[int](), list[tuple[int, int, int, int]]()
    for name in names:
        found = detect(folder / name)
        if found:
            try:
                entries = FORMATS[found].scan(folder / name)
            except OSError:  # for what it is, reading it says
                entries = [Entry(0, 0, UNKNOWN)]
            columns += [(len(files), *entry) for entry in entries]
            files.append(os.fsencode(name))
            formats.append(numbers[found])
    table = np.array(columns, np.int64).reshape(-1, 4)
    return Index(np.array(files, np.bytes_), np.array(formats, np.int64), *(column.copy() for column in table.T))


def _state(folder: Path, names: list[str]) -> bytes:
    """A digest of the files' names, sizes and times."""
    digest = hashlib.blake2b(VERSION)
    for name in names:
        status = (folder / name).stat()
        digest.update(os.fsencode(f"{name}\0{status.st_size}\0{status.st_mtime_ns}\n"))
    return digest.digest()


def _places(folder: Path, split: str) -> tuple[Path, Path]:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "gala_cuda", "clickme")
    digest = hashlib.blake2b(os.fsencode(folder.resolve()), digest_size=8).hexdigest()
    return folder / f".gala-clickme-{split}.npz", cache / f"{digest}-{split}.npz"


def _load(place: Path, state: bytes) -> Index | None:
    fields = Index.__dataclass_fields__
    try:
        with place.open("rb") as file:
            found = npz.arrays(file, (*fields, "state"), LARGEST)
    except (OSError, UnreadableError):
        return None
    if found.keys() != {*fields, "state"} or found.pop("state").tobytes() != state:
        return None
    return Index(**found)


def _save(place: Path, index: Index, state: bytes) -> bool:
    """Whether the index could be written; whole, or not at all."""
    stream = io.BytesIO()
    np.savez(stream, state=np.frombuffer(state, np.uint8), **asdict(index))
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=place.parent, prefix=f".{place.stem}-") as draft:
            file = Path(draft, place.name)
            file.write_bytes(stream.getvalue())
            file.replace(place)
    except OSError:
        return False
    return True


def _within(values: np.ndarray, least: int, most: int) -> bool:
    return not values.size or bool(values.min() >= least and values.max() <= most)
