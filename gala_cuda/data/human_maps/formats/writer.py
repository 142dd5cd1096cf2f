"""How a format is written, and the conversions that several formats need for it."""

import io
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from PIL import Image

from ..record import Record, decode_heatmap

JPEG_START = b"\xff\xd8\xff"
JPEG_QUALITY = 95


class Writer(NamedTuple):
    """How records become files of a format."""

    encode: Callable[[str, Record], bytes]  # a key and its record to bytes of a file; raises UnreadableError
    suffix: str
    shared: bool = False  # whether a file holds many records
    end: bytes = b""  # what follows the last record of a file


def heatmap_or_zeros(record: Record, sides: tuple[int, ...]) -> np.ndarray:
    """The record's map as float32 [H', W'], or zeros of ``sides`` where there is none."""
    return np.zeros(sides, np.float32) if record.heatmap is None else decode_heatmap(record.heatmap)


def heatmap_as_uint8(heatmap: np.ndarray) -> np.ndarray:
    """The same numbers where they are whole and at most 255, otherwise scaled to a maximum of 255."""
    largest = heatmap.max()
    if largest > 255 or (heatmap != np.rint(heatmap)).any():
        heatmap = np.rint(heatmap * (255 / largest))
    return heatmap.astype(np.uint8)


def encode_picture(array: np.ndarray, format: str) -> bytes:
    """A picture file of uint8 [H, W] or [H, W, 3]; ``format`` is "JPEG" or "PNG"."""
    stream = io.BytesIO()
    Image.fromarray(array).save(stream, format, quality=JPEG_QUALITY)
    return stream.getvalue()
