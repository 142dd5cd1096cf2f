"""TFRecord files of tf.train.Example: the framing and the wire format, as much as ClickMe's files need.

A frame is the length of its data (uint64), a checksum of the length, the data, and a checksum of the data; numbers are
little-endian, checksums masked CRC-32C (https://www.tensorflow.org/tutorials/load_data/tfrecord).
"""

import os
import re
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import crc32c
import numpy as np

from ...errors import UnreadableError
from ..record import NUMBERS, Record, checked_label, checked_numbers, is_picture
from .entry import UNKNOWN, Entry

NAMES = re.compile(r"\.tfrecords?\b|-of-\d+$")
HEADER, FOOTER = 12, 4  # bytes of a frame beside its data
MAX_FIELDS = 1000  # of an Example, in all
KEY = 64  # bytes of a key at most
NO_EXAMPLE = "the record is no tf.train.Example"
Read = Callable[[int, int], bytes]  # the bytes from start to stop


def recognises(head: bytes) -> bool:
    try:
        _length(head)
    except UnreadableError:
        return False
    return True


def scan(file: Path) -> list[Entry]:
    """The frames; what follows a damaged length is one more, which cannot be read."""
    entries, at = [], 0
    with file.open("rb", buffering=0) as opened:
        size = os.fstat(opened.fileno()).st_size

        def read(start: int, stop: int) -> bytes:
            return os.pread(opened.fileno(), stop - start, start)

        while at < size:
            try:
                length = _length(read(at, at + HEADER))
            except UnreadableError:
                entries.append(Entry(at, min(HEADER, size - at), UNKNOWN))
                break
            whole = min(HEADER + length + FOOTER, size - at)
            try:
                label = _label(_features(read, at + HEADER, at + whole - FOOTER, ("label",)))
            except UnreadableError:  # for what it is, reading it says
                label = UNKNOWN
            entries.append(Entry(at, whole, label))
            at += HEADER + length + FOOTER
    return entries


def parse(data: bytes) -> Record:
    """The record of a frame. Raises UnreadableError."""
    length, there = _length(data), len(data) - HEADER - FOOTER
    if length != there:
        raise UnreadableError(f"the record is cut off: it announces {length} bytes and has {max(there, 0)}")
    body = data[HEADER:-FOOTER]
    if _checksum(body) != data[-FOOTER:]:
        raise UnreadableError("the record's checksum is not that of its data")
    found = _features(lambda start, stop: body[start:stop], 0, len(body), ("image", "heatmap", "label", *NUMBERS))
    image, heatmap = found.get("image"), found.get("heatmap", b"")
    if not isinstance(image, bytes) or not isinstance(heatmap, bytes):
        raise UnreadableError(
            "the record has no image as bytes" if not isinstance(image, bytes) else "the map is no bytes"
        )
    return Record(
        image if is_picture(image) else _square(image, 3, "image"),
        (heatmap if is_picture(heatmap) else _square(heatmap, 1, "map")) if heatmap else None,
        _label(found),
        checked_numbers(found),
    )


def frame(features: dict[str, bytes | list[int]]) -> bytes:
    """The frame of an Example; the inverse of :func:`parse`."""
    entries = (_field(1, _field(1, key.encode()) + _field(2, _feature(value))) for key, value in features.items())
    body = _field(1, b"".join(entries))
    length = struct.pack("<Q", len(body))
    return length + _checksum(length) + body + _checksum(body)


def _checksum(data: bytes) -> bytes:
    crc = crc32c.crc32c(data)
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)


def _length(frame: bytes) -> int:
    """The length of the data that a frame announces."""
    if len(frame) < HEADER or _checksum(frame[:8]) != frame[8:HEADER]:
        raise UnreadableError("the length of the record is damaged, and with it the rest of the file is lost")
    return int.from_bytes(frame[:8], "little")


def _label(found: dict[str, bytes | list[int]]) -> int:
    return checked_label(found.get("label", []))


def _square(data: bytes, channels: int, what: str) -> np.ndarray:
    """Raw float32 values of a square, [side, side, channels]."""
    side = round((len(data) / 4 / channels) ** 0.5)
    if 4 * channels * side * side != len(data):
        raise UnreadableError(
            f"the {what} of {len(data)} bytes is no JPEG, no PNG, and no square of {channels} x float32"
        )
    return np.frombuffer(data, "<f4").reshape(side, side, channels)


def _features(read: Read, start: int, stop: int, wanted: tuple[str, ...]) -> dict[str, bytes | list[int]]:
    """The values of an Example: Example { 1: Features { 1: { 1: key, 2: Feature } } }. Raises UnreadableError."""
    message = _Message(read)
    found: dict[str, bytes | list[int]] = {}
    for features in message.parts(1, start, stop):
        for entry in message.parts(1, *features):
            keys = [read(*key) for key in message.parts(1, *entry) if key[1] - key[0] <= KEY]
            name = keys[-1].decode(errors="replace") if keys else ""
            if name in wanted:
                for feature in message.parts(2, *entry):
                    found[name] = _value(message, *feature)
    return found


def _value(message: "_Message", start: int, stop: int) -> bytes | list[int]:
    """Of Feature { 1: { 1: bytes }, 3: { 1: int64 } } the first bytes, or the numbers."""
    for values in message.parts(1, start, stop):
        for part in message.parts(1, *values):
            return message.read(*part)
    numbers: list[int] = []
    for values in message.parts(3, start, stop):
        for number in message.fields(1, *values):
            numbers += [number] if isinstance(number, int) else _packed(message.read(*number))
    return [_signed(number) for number in numbers]


class _Message:
    """Protocol buffers' wire format, read field by field, ``MAX_FIELDS`` in all."""

    def __init__(self, read: Read) -> None:
        self.read = read
        self._left = MAX_FIELDS

    def parts(self, wanted: int, start: int, stop: int) -> Iterator[tuple[int, int]]:
        """(start, stop) of the messages, strings and packed numbers that have the number ``wanted``."""
        for field in self.fields(wanted, start, stop):
            if isinstance(field, int):
                raise UnreadableError(NO_EXAMPLE)
            yield field

    def fields(self, wanted: int, start: int, stop: int) -> Iterator[int | tuple[int, int]]:
        """Of the fields that have the number ``wanted``: the value of a varint, (start, stop) of others."""
        while start < stop:
            if not self._left:
                raise UnreadableError(f"the record has more than {MAX_FIELDS} fields")
            self._left -= 1
            head = self.read(start, min(start + 20, stop))  # two varints
            tag, used = _varint(head, 0)
            number, wire = tag >> 3, tag & 7
            if wire not in (0, 1, 2, 5):
                raise UnreadableError(NO_EXAMPLE)
            value, used = _varint(head, used) if wire in (0, 2) else (8 if wire == 1 else 4, used)
            end = start + used + (value if wire else 0)
            if end > stop:
                raise UnreadableError("a field of the record is longer than the record")
            if number == wanted:
                yield (start + used, end) if wire else value
            start = end


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """(a number of 7 bits a byte, where it ends)."""
    value = 0
    for place in range(10):
        if at + place >= len(data):
            break
        byte = data[at + place]
        value |= (byte & 0x7F) << 7 * place
        if byte < 0x80:
            return value, at + place + 1
    raise UnreadableError("a number in the record does not end")


def _signed(value: int) -> int:
    return (value & 0xFFFFFFFFFFFFFFFF ^ 1 << 63) - (1 << 63)


def _packed(data: bytes) -> list[int]:
    numbers, at = list[int](), 0
    while at < len(data) and len(numbers) <= max(NUMBERS.values()):
        value, at = _varint(data, at)
        numbers.append(value)
    return numbers


def _field(number: int, data: bytes) -> bytes:
    return _as_varint(number << 3 | 2) + _as_varint(len(data)) + data


def _feature(value: bytes | list[int]) -> bytes:
    if isinstance(value, bytes):
        return _field(1, _field(1, value))
    return _field(3, _field(1, b"".join(_as_varint(number & 0xFFFFFFFFFFFFFFFF) for number in value)))


def _as_varint(value: int) -> bytes:
    parts = []
    while value >= 0x80:
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*parts, value])
