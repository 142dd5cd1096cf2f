"""The NPZ format: one file per image, with the arrays ``image``, ``heatmap`` and ``label``."""

import io
import math
import re
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np

from ...errors import UnreadableError
from ..record import MAX_BYTES, NUMBERS, Record, check_label, check_numbers, decode_image
from .location import UNKNOWN, RecordLocation
from .writer import Writer, heatmap_or_zeros

NAMES = re.compile(r"\.npz$")
MAX_HEADER = 1000  # characters of an array's header
# What zipfile and numpy raise on a damaged file.
READER_ERRORS = (
    zipfile.BadZipFile, zlib.error, struct.error, tokenize.TokenError, EOFError, MemoryError, OSError, OverflowError,
    RuntimeError, SyntaxError, TypeError, ValueError,
)  # fmt: skip


def recognises(head: bytes) -> bool:
    return head.startswith(b"PK\x03\x04") and b"data.pkl" not in head


def scan(file: Path) -> list[RecordLocation]:
    """The file as one record."""
    size = file.stat().st_size
    try:
        with file.open("rb") as opened:
            label = check_label(read_arrays(opened, ["label"]).get("label", []))
    except (UnreadableError, OSError):  # reading the record will say what is wrong
        label = UNKNOWN
    return [RecordLocation(0, size, label)]


def parse(data: bytes) -> Record:
    """The record of a file. Raises UnreadableError."""
    arrays = read_arrays(io.BytesIO(data), ("image", "heatmap", "label", *NUMBERS))
    if "image" not in arrays:
        raise UnreadableError("there is no array image")
    return Record(
        arrays["image"],
        arrays.get("heatmap"),
        check_label(arrays.get("label", [])),
        check_numbers(arrays),
    )


def read_arrays(file: BinaryIO, names: Iterable[str], max_bytes: int = MAX_BYTES) -> dict[str, np.ndarray]:
    """Those of the arrays ``names`` that an NPZ file has, each of at most ``max_bytes``. Pickles are refused.

    Raises UnreadableError.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            members = {info.filename: info for info in archive.infolist()}
            chosen = {name: members[f"{name}.npy"] for name in names if f"{name}.npy" in members}
            for name, info in chosen.items():
                if info.file_size > max_bytes:
                    raise UnreadableError(f"{name} has {info.file_size} bytes; expected at most {max_bytes}")
                if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                    raise UnreadableError(f"{name} is compressed in a way that NumPy does not use")
            return {name: parse_npy(archive.read(info)) for name, info in chosen.items()}
    except READER_ERRORS as error:
        raise UnreadableError(f"no readable NPZ file: {error or type(error).__name__}") from error


def parse_npy(data: bytes) -> np.ndarray:
    """The array of numbers in an NPY file. Raises UnreadableError, or one of ``READER_ERRORS``."""
    stream = io.BytesIO(data)
    version = np.lib.format.read_magic(stream)
    if version not in ((1, 0), (2, 0)):
        raise UnreadableError(f"an array of NPY's version {version}; expected 1.0 or 2.0")
    headers = np.lib.format.read_array_header_1_0, np.lib.format.read_array_header_2_0
    shape, fortran, dtype = headers[version[0] - 1](stream, max_header_size=MAX_HEADER)
    if dtype.kind not in "biufS":
        raise UnreadableError(f"an array of {str(dtype)[:40]}; expected numbers")
    available = len(data) - stream.tell()
    if math.prod(shape) * dtype.itemsize != available or min(shape, default=0) < 0:
        raise UnreadableError(f"an array of shape {shape} and {dtype} has {available} bytes")
    return np.frombuffer(data, dtype, offset=stream.tell()).reshape(shape, order="F" if fortran else "C")


def encode(key: str, record: Record) -> bytes:
    """A file with ``image`` uint8 [H, W, 3], ``heatmap`` float32 [H', W'] and ``label``."""
    stream = io.BytesIO()
    image = decode_image(record.image).transpose(1, 2, 0)
    arrays = {"image": image, "heatmap": heatmap_or_zeros(record, image.shape[:2]), "label": record.label}
    np.savez_compressed(stream, **cast(Any, arrays | record.numbers))
    return stream.getvalue()


WRITER = Writer(encode, ".npz")
