"""One NPZ file for each image, with the arrays ``image``, ``heatmap`` and ``label``."""

import io
import math
import re
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

import numpy as np

from ...errors import UnreadableError
from ..record import MAX_BYTES, NUMBERS, Record, checked_label, checked_numbers
from .entry import UNKNOWN, Entry

NAMES = re.compile(r"\.npz$")
MAX_HEADER = 1000  # characters of an array's header
# What zipfile and numpy raise on a damaged file.
BROKEN = (
    zipfile.BadZipFile, zlib.error, struct.error, tokenize.TokenError, EOFError, MemoryError, OSError, OverflowError,
    RuntimeError, SyntaxError, TypeError, ValueError,
)  # fmt: skip


def recognises(head: bytes) -> bool:
    return head.startswith(b"PK\x03\x04") and b"data.pkl" not in head


def scan(file: Path) -> list[Entry]:
    """The file as one record."""
    size = file.stat().st_size
    try:
        with file.open("rb") as opened:
            label = checked_label(arrays(opened, ["label"]).get("label", []))
    except (UnreadableError, OSError):  # for what it is, reading it says
        label = UNKNOWN
    return [Entry(0, size, label)]


def parse(data: bytes) -> Record:
    """The record of a file. Raises UnreadableError."""
    found = arrays(io.BytesIO(data), ("image", "heatmap", "label", *NUMBERS))
    if "image" not in found:
        raise UnreadableError("there is no array image")
    return Record(
        found["image"],
        found.get("heatmap"),
        checked_label(found.get("label", [])),
        checked_numbers(found),
    )


def arrays(file: BinaryIO, names: Iterable[str], most: int = MAX_BYTES) -> dict[str, np.ndarray]:
    """Those of the arrays ``names`` that an NPZ file has, ``most`` bytes each. Pickles are refused.

    Raises UnreadableError.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            members = {info.filename: info for info in archive.infolist()}
            found = {name: members[f"{name}.npy"] for name in names if f"{name}.npy" in members}
            for name, info in found.items():
                if info.file_size > most:
                    raise UnreadableError(f"{name} has {info.file_size} bytes; expected at most {most}")
                if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                    raise UnreadableError(f"{name} is compressed in a way that NumPy does not use")
            return {name: array(archive.read(info)) for name, info in found.items()}
    except BROKEN as error:
        raise UnreadableError(f"no readable NPZ file: {error or type(error).__name__}") from error


def array(data: bytes) -> np.ndarray:
    """The numbers of an NPY file. Raises UnreadableError, or one of ``BROKEN``."""
    stream = io.BytesIO(data)
    version = np.lib.format.read_magic(stream)
    if version not in ((1, 0), (2, 0)):
        raise UnreadableError(f"an array of NPY's version {version}; expected 1.0 or 2.0")
    headers = np.lib.format.read_array_header_1_0, np.lib.format.read_array_header_2_0
    shape, fortran, dtype = headers[version[0] - 1](stream, max_header_size=MAX_HEADER)
    if dtype.kind not in "biufS":
        raise UnreadableError(f"an array of {str(dtype)[:40]}; expected numbers")
    there = len(data) - stream.tell()
    if math.prod(shape) * dtype.itemsize != there or min(shape, default=0) < 0:
        raise UnreadableError(f"an array of shape {shape} and {dtype} has {there} bytes")
    return np.frombuffer(data, dtype, offset=stream.tell()).reshape(shape, order="F" if fortran else "C")
