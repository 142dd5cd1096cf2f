"""The TFRecord format: many records per file, each a tf.train.Example with image and map as raw float32 or as JPEG.

A frame is the length of its data (uint64), a checksum of the length, the data, and a checksum of the data; numbers are
little-endian, checksums masked CRC-32C (https://www.tensorflow.org/tutorials/load_data/tfrecord).
"""

import os
import re
import struct
from pathlib import Path

import crc32c
import numpy as np

from ...errors import UnreadableError
from ..record import NUMBERS, Record, check_label, check_numbers, decode_image, is_jpeg_or_png
from .location import UNKNOWN, RecordLocation
from .protobuf import Features, Read, encode_example, read_features
from .writer import JPEG_START, Writer, encode_picture, heatmap_as_uint8, heatmap_or_zeros

NAMES = re.compile(r"\.tfrecords?\b|-of-\d+$")
HEADER, FOOTER = 12, 4  # bytes of a frame beside its data


def recognises(head: bytes) -> bool:
    try:
        _data_length(head)
    except UnreadableError:
        return False
    return True


def scan(file: Path) -> list[RecordLocation]:
    """The frames. What follows a damaged length is one more record, which cannot be read."""
    locations, start = [], 0
    with file.open("rb", buffering=0) as opened:
        size = os.fstat(opened.fileno()).st_size

        def read(start: int, stop: int) -> bytes:
            return os.pread(opened.fileno(), stop - start, start)

        while start < size:
            try:
                length = _data_length(read(start, start + HEADER))
            except UnreadableError:
                locations.append(RecordLocation(start, min(HEADER, size - start), UNKNOWN))
                break
            frame_length = min(HEADER + length + FOOTER, size - start)
            try:
                label = _label(_features(read, start + HEADER, start + frame_length - FOOTER, ("label",)))
            except UnreadableError:  # reading the record will say what is wrong
                label = UNKNOWN
            locations.append(RecordLocation(start, frame_length, label))
            start += HEADER + length + FOOTER
    return locations


def parse(data: bytes) -> Record:
    """The record of a frame. Raises UnreadableError."""
    length, available = _data_length(data), len(data) - HEADER - FOOTER
    if length != available:
        raise UnreadableError(f"the record is cut off: it announces {length} bytes and has {max(available, 0)}")
    body = data[HEADER:-FOOTER]
    if _checksum(body) != data[-FOOTER:]:
        raise UnreadableError("the record's checksum is not that of its data")
    features = _features(lambda start, stop: body[start:stop], 0, len(body), ("image", "heatmap", "label", *NUMBERS))
    image, heatmap = features.get("image"), features.get("heatmap", b"")
    if not isinstance(image, bytes):
        raise UnreadableError("the record has no image as bytes")
    if not isinstance(heatmap, bytes):
        raise UnreadableError("the map is no bytes")
    return Record(
        image if is_jpeg_or_png(image) else _raw_square(image, 3, "image"),
        (heatmap if is_jpeg_or_png(heatmap) else _raw_square(heatmap, 1, "map")) if heatmap else None,
        _label(features),
        check_numbers(features),
    )


def encode_raw(key: str, record: Record) -> bytes:
    """A frame of float32 values, the image in [0, 1]. Raises UnreadableError where image or map is no square."""
    image = decode_image(record.image).transpose(1, 2, 0)
    heatmap = heatmap_or_zeros(record, image.shape[:2])
    for what, array in (("image", image), ("map", heatmap)):
        if array.shape[0] != array.shape[1]:
            raise UnreadableError(
                f"the {what} has sides of {array.shape[0]} and {array.shape[1]}; a raw TFRecord has squares"
            )
    if isinstance(record.image, np.ndarray) and record.image.dtype == np.float32:
        image = record.image  # as it was
    else:
        image = image / np.float32(255)
    clicks = {"click_count": [int(heatmap.any())]}
    return _frame(
        {
            "image": image.astype("<f4").tobytes(),
            "heatmap": heatmap.astype("<f4").tobytes(),
            "label": [record.label],
            **(clicks | record.numbers),
        }
    )


def encode_jpeg(key: str, record: Record) -> bytes:
    """A frame of JPEG files. What is stored as JPEG already is copied."""
    image, heatmap = record.image, record.heatmap
    if not (isinstance(image, bytes) and image.startswith(JPEG_START)):
        image = encode_picture(decode_image(image).transpose(1, 2, 0), "JPEG")
    if not (isinstance(heatmap, bytes) and heatmap.startswith(JPEG_START)):
        heatmap = encode_picture(heatmap_as_uint8(heatmap_or_zeros(record, decode_image(image).shape[1:])), "JPEG")
    return _frame({"image": image, "heatmap": heatmap, "label": [record.label], **record.numbers})


RAW_WRITER = Writer(encode_raw, ".tfrecord", shared=True)
JPEG_WRITER = Writer(encode_jpeg, ".tfrecord", shared=True)


def _frame(features: Features) -> bytes:
    body = encode_example(features)
    length = struct.pack("<Q", len(body))
    return length + _checksum(length) + body + _checksum(body)


def _checksum(data: bytes) -> bytes:
    crc = crc32c.crc32c(data)
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)


def _data_length(frame: bytes) -> int:
    """The length of the data that a frame announces."""
    if len(frame) < HEADER or _checksum(frame[:8]) != frame[8:HEADER]:
        raise UnreadableError("the length of the record is damaged, and with it the rest of the file is lost")
    return int.from_bytes(frame[:8], "little")


def _features(read: Read, start: int, stop: int, wanted: tuple[str, ...]) -> Features:
    return read_features(read, start, stop, wanted, max(NUMBERS.values()))


def _label(features: Features) -> int:
    return check_label(features.get("label", []))


def _raw_square(data: bytes, channels: int, what: str) -> np.ndarray:
    """The raw float32 values of a square: [side, side, channels]."""
    side = round((len(data) / 4 / channels) ** 0.5)
    if 4 * channels * side * side != len(data):
        raise UnreadableError(
            f"the {what} of {len(data)} bytes is no JPEG, no PNG, and no square of {channels} x float32"
        )
    return np.frombuffer(data, "<f4").reshape(side, side, channels)
