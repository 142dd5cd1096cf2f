"""Reads the records of one split of ClickMe's files, in any order, each from its place in its file."""

import os
import re
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch

from ..clickme_sample import ClickMeSample
from ..errors import UnreadableError
from .formats import FORMATS, Format
from .formats.webdataset import key_of
from .record import MAX_BYTES, Record, decode_record
from .record_index import RecordIndex, build_index, open_index

MAX_READ = MAX_BYTES + (1 << 16)  # bytes: a record, and what frames it
SPLITS = ("train", "val", "test")
_FORMATS = tuple(FORMATS.items())


class SplitReader:
    """The samples of a split, numbered in the order of its index.

    Attributes:
        labels: [n] int64, -1 where a record's label cannot be read.
    """

    def __init__(self, folder: Path, index: RecordIndex) -> None:
        self.folder, self._index = folder, index
        self.labels = torch.tensor(index.label)
        first = np.searchsorted(index.file_of, index.file_of)  # the records of a file follow one another
        self._number_in_file = np.arange(len(index.file_of)) - first
        self._alone = np.bincount(index.file_of, minlength=len(index.files)) == 1

    def __len__(self) -> int:
        return len(self.labels)

    def name(self, index: int) -> str:
        """FILE; or FILE#NUMBER, counted from 0, where the file has several records."""
        file = self._index.file_of[index]
        name = os.fsdecode(self._index.files[file])
        return name if self._alone[file] else f"{name}#{self._number_in_file[index]}"

    def format_name(self, index: int) -> str:
        """The name of the record's format, a key of ``FORMATS``."""
        return self._format(index)[0]

    def read(self, index: int) -> ClickMeSample:
        """The sample: its image as uint8, its map as stored. Raises UnreadableError."""
        return decode_record(self.record(index))

    def record(self, index: int) -> Record:
        """The sample as its file holds it. Raises UnreadableError."""
        record = self._format(index)[1].parse(self._bytes(index))
        if record.label != self.labels[index]:
            raise UnreadableError(f"the label is {record.label}, and {self.labels[index]} in the index")
        return record

    def key(self, index: int) -> str:
        """A name to write the sample under: its path or its key in an archive, else its file's name with a number."""
        file = self._index.file_of[index]
        key = str(Path(os.fsdecode(self._index.files[file])).with_suffix(""))
        if self.format_name(index) == "webdataset":
            key = key_of(self._bytes(index))
        elif not self._alone[file]:
            key += f"-{self._number_in_file[index]:06d}"
        return plain_key(key)

    def _format(self, index: int) -> tuple[str, Format]:
        return _FORMATS[self._index.formats[self._index.file_of[index]]]

    def _bytes(self, index: int) -> bytes:
        offset, length = int(self._index.offset[index]), int(self._index.length[index])
        if length > MAX_READ:
            raise UnreadableError(f"the record has {length} bytes; expected at most {MAX_READ}")
        path = self.folder / os.fsdecode(self._index.files[self._index.file_of[index]])
        try:
            with path.open("rb", buffering=0) as file:
                file.seek(offset)
                return file.read(length)
        except OSError as error:
            raise UnreadableError(str(error)) from error


def plain_key(path: str) -> str:
    """A relative path of ASCII letters, digits, _ and - for any path."""
    parts = (re.sub(r"[^\w-]", "_", part, flags=re.ASCII)[:100] for part in path.split("/"))
    return "/".join(part for part in parts if part.strip("_")) or "sample"


def open_split(path: Path, split: str = "val") -> SplitReader:
    """The samples of a split of the folder ``path``, or of the single file ``path``.

    Raises:
        FileNotFoundError: there are no ClickMe records of the split, or in the file.
        ValueError: ``split`` is no plain name.
    """
    if not path.is_file():
        return SplitReader(path, open_index(path, split))
    index = build_index(path.parent, [path.name])
    if not len(index.label):
        raise FileNotFoundError(f"there are no ClickMe records in {path}; expected a TFRecord, NPZ, .pth or tar file")
    return SplitReader(path.parent, index)


def open_splits(folder: Path) -> dict[str, SplitReader]:
    """The samples of those of ``SPLITS`` that are in a folder. Raises FileNotFoundError where none is."""
    splits = {}
    for split in SPLITS:
        with suppress(FileNotFoundError):
            splits[split] = SplitReader(folder, open_index(folder, split))
    if not splits:
        raise FileNotFoundError(f"there are no ClickMe records of {', '.join(SPLITS)} in {folder}")
    return splits
