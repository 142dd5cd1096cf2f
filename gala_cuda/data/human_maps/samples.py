"""The samples of a split, one by one."""

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
from .index import Index, build, open_index
from .record import MAX_BYTES, Record, decode

LARGEST = MAX_BYTES + (1 << 16)  # bytes that are read: a record, and what frames it
SPLITS = ("train", "val", "test")
_FORMATS = tuple(FORMATS.items())


class Samples:
    """The samples of an index, numbered in its order. ``labels`` are [n] int64, -1 where a record has none to read."""

    def __init__(self, folder: Path, index: Index) -> None:
        self.folder, self._index = folder, index
        self.labels = torch.tensor(index.label)
        first = np.searchsorted(index.file_of, index.file_of)  # records lie file by file
        self._number = np.arange(len(index.file_of)) - first
        self._alone = np.bincount(index.file_of, minlength=len(index.files)) == 1

    def __len__(self) -> int:
        return len(self.labels)

    def name(self, index: int) -> str:
        """FILE, or FILE#NUMBER of one with several records, counted from 0."""
        file = self._index.file_of[index]
        name = os.fsdecode(self._index.files[file])
        return name if self._alone[file] else f"{name}#{self._number[index]}"

    def format(self, index: int) -> str:
        return self._format(index)[0]

    def read(self, index: int) -> ClickMeSample:
        """The sample: image uint8, map as it is stored. Raises UnreadableError."""
        return decode(self.record(index))

    def record(self, index: int) -> Record:
        """The sample as its file has it. Raises UnreadableError."""
        record = self._format(index)[1].parse(self._bytes(index))
        if record.label != self.labels[index]:
            raise UnreadableError(f"the label is {record.label}, and {self.labels[index]} in the index")
        return record

    def key(self, index: int) -> str:
        """A name to write the sample by: its path or its key in an archive, else that of the file with a number."""
        file = self._index.file_of[index]
        key = str(Path(os.fsdecode(self._index.files[file])).with_suffix(""))
        if self.format(index) == "webdataset":
            key = key_of(self._bytes(index))
        elif not self._alone[file]:
            key += f"-{self._number[index]:06d}"
        parts = (re.sub(r"[^\w-]", "_", part, flags=re.ASCII)[:100] for part in key.split("/"))
        return "/".join(part for part in parts if part.strip("_")) or "sample"

    def _format(self, index: int) -> tuple[str, Format]:
        return _FORMATS[self._index.formats[self._index.file_of[index]]]

    def _bytes(self, index: int) -> bytes:
        offset, length = int(self._index.offset[index]), int(self._index.length[index])
        if length > LARGEST:
            raise UnreadableError(f"the record has {length} bytes; expected at most {LARGEST}")
        path = self.folder / os.fsdecode(self._index.files[self._index.file_of[index]])
        try:
            with path.open("rb", buffering=0) as file:
                file.seek(offset)
                return file.read(length)
        except OSError as error:
            raise UnreadableError(str(error)) from error


def open_samples(path: Path, split: str = "val") -> Samples:
    """The samples of a split of a folder, or of a single file.

    Raises:
        FileNotFoundError: there is nothing of the kind.
        ValueError: ``split`` is no plain name.
    """
    if not path.is_file():
        return Samples(path, open_index(path, split))
    index = build(path.parent, [path.name])
    if not len(index.label):
        raise FileNotFoundError(f"there are no ClickMe records in {path}; expected a TFRecord, NPZ, .pth or tar file")
    return Samples(path.parent, index)


def open_splits(folder: Path) -> dict[str, Samples]:
    """The samples of those of ``SPLITS`` that are in a folder. Raises FileNotFoundError where none is."""
    splits = {}
    for split in SPLITS:
        with suppress(FileNotFoundError):
            splits[split] = Samples(folder, open_index(folder, split))
    if not splits:
        raise FileNotFoundError(f"there are no ClickMe records of {', '.join(SPLITS)} in {folder}")
    return splits
