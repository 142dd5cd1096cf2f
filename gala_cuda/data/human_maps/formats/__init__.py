"""The formats that ClickMe's maps are published in: one module for each, recognised by what a file contains."""

import re
from pathlib import Path
from typing import Protocol

from ...compression import SUFFIX, advice, compression, decompress_head
from ..record import Record
from . import npz, pth, tfrecord, webdataset
from .location import RecordLocation
from .writer import Writer

HEAD = 512  # bytes of a file that its format is recognised by


class Format(Protocol):
    """What each of the modules has for reading."""

    NAMES: re.Pattern[str]

    def recognises(self, head: bytes) -> bool:
        """Whether a file that starts with ``head`` is of the format."""

    def scan(self, file: Path) -> list[RecordLocation]:
        """Where the records of a file lie, including those that cannot be read. Raises OSError."""

    def parse(self, data: bytes) -> Record:
        """A record from its bytes. Raises UnreadableError."""


# Indexes store positions in this order: a change of it needs a new record_index.VERSION.
FORMATS: dict[str, Format] = {"tfrecord": tfrecord, "webdataset": webdataset, "npz": npz, "pth": pth}
# What records can be converted to, by the names that users choose from.
WRITERS: dict[str, Writer] = {
    "webdataset": webdataset.WRITER,
    "npz": npz.WRITER,
    "tfrecord": tfrecord.RAW_WRITER,
    "tfrecord-jpeg": tfrecord.JPEG_WRITER,
    "pth": pth.WRITER,
}


def detect_format(file: Path) -> str | None:
    """The name of a file's format, by how the file starts or else by its name; None where it is none of them.

    Raises ValueError where it is a compressed file of one of the formats.
    """
    try:
        with file.open("rb") as opened:
            head = opened.read(HEAD)
    except OSError:
        head = b""
    for name, format in FORMATS.items():
        if format.recognises(head):
            return name
    packed = compression(head)
    if packed is not None:
        start = decompress_head(head)
        if has_format_name(file.name) or any(format.recognises(start) for format in FORMATS.values()):
            raise ValueError(f"{file} {advice(packed)}")
    return _format_by_name(file.name)


def has_format_name(name: str) -> bool:
    """Whether a file is named as those of one of the formats, compressed or not."""
    return _format_by_name(SUFFIX.sub("", name.lower())) is not None


def _format_by_name(file_name: str) -> str | None:
    return next((name for name, format in FORMATS.items() if format.NAMES.search(file_name.lower())), None)
