"""The formats that ClickMe's maps are published in, each a module, told apart by what is in a file."""

import re
from pathlib import Path
from typing import Protocol

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
        """A record from its bytes. Raises Unreadable."""


FORMATS: dict[str, Format] = {"tfrecord": tfrecord, "webdataset": webdataset, "npz": npz, "pth": pth}


def detect(file: Path) -> str | None:
    """The format of a file: from what it starts with, else from its name."""
    try:
        with file.open("rb") as opened:
            head = opened.read(HEAD)
    except OSError:
        head = b""
    for name, format in FORMATS.items():
        if format.recognises(head):
            return name
    return next((name for name, format in FORMATS.items() if format.NAMES.search(file.name.lower())), None)
