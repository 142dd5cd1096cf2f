"""The formats that ClickMe's maps are published in, each a module, told apart by what is in a file."""

import re
from pathlib import Path
from typing import Protocol

from ...compression import SUFFIX, advice, compression, inside
from ..record import Record
from . import npz, pth, tfrecord, webdataset
from .entry import UNKNOWN, Entry

__all__ = ["FORMATS", "UNKNOWN", "Entry", "Format", "detect"]
HEAD = 512  # bytes of a file that tell its format


class Format(Protocol):
    """What each of the modules has."""

    NAMES: re.Pattern[str]

    def recognises(self, head: bytes) -> bool:
        """Whether a file that starts so is of the format."""

    def scan(self, file: Path) -> list[Entry]:
        """Where the records of a file are, those that cannot be read too. Raises OSError."""

    def parse(self, data: bytes) -> Record:
        """A record from its bytes. Raises UnreadableError."""


FORMATS: dict[str, Format] = {"tfrecord": tfrecord, "webdataset": webdataset, "npz": npz, "pth": pth}


def detect(file: Path) -> str | None:
    """The format of a file: from what it starts with, else from its name.

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
    kind = compression(head)
    if kind is not None and (is_named(file.name) or any(of.recognises(inside(head)) for of in FORMATS.values())):
        raise ValueError(f"{file} {advice(kind)}")
    return _by_name(file.name)


def is_named(name: str) -> bool:
    """Whether a file is named as those of one of the formats, compressed or not."""
    return _by_name(SUFFIX.sub("", name.lower())) is not None


def _by_name(name: str) -> str | None:
    return next((format for format, of in FORMATS.items() if of.NAMES.search(name.lower())), None)
