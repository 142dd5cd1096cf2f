"""The wire format of protocol buffers, as much of it as a tf.train.Example needs.

An Example nests messages: Example { 1: Features { 1: { 1: key, 2: Feature } } }, and a Feature holds bytes in
{ 1: { 1: bytes } } or whole numbers in { 3: { 1: int64 } } (https://protobuf.dev/programming-guides/encoding/).
"""

from collections.abc import Callable, Iterator

from ...errors import UnreadableError

MAX_FIELDS = 1000  # of an Example, in all
MAX_KEY = 64  # bytes
NO_EXAMPLE = "the record is no tf.train.Example"
Read = Callable[[int, int], bytes]  # the bytes from start to stop
Features = dict[str, bytes | list[int]]


def read_features(read: Read, start: int, stop: int, wanted: tuple[str, ...], max_numbers: int) -> Features:
    """Those features of an Example from ``start`` to ``stop`` whose keys are ``wanted``.

    Of more than ``max_numbers`` packed numbers only some are read, at least one more than that.

    Raises UnreadableError.
    """
    message = _Message(read)
    features: Features = {}
    for part in message.parts(1, start, stop):
        for pair in message.parts(1, *part):
            keys = [read(*key) for key in message.parts(1, *pair) if key[1] - key[0] <= MAX_KEY]
            name = keys[-1].decode(errors="replace") if keys else ""
            if name in wanted:
                for feature in message.parts(2, *pair):
                    features[name] = _read_value(message, *feature, max_numbers)
    return features


def encode_example(features: Features) -> bytes:
    """An Example; the inverse of ``read_features``."""
    pairs = (_field(1, _field(1, key.encode()) + _field(2, _feature(value))) for key, value in features.items())
    return _field(1, b"".join(pairs))


def _read_value(message: "_Message", start: int, stop: int, max_numbers: int) -> bytes | list[int]:
    """The first bytes of a Feature, or its numbers."""
    for values in message.parts(1, start, stop):
        for part in message.parts(1, *values):
            return message.read(*part)
    numbers: list[int] = []
    for values in message.parts(3, start, stop):
        for number in message.fields(1, *values):
            numbers += [number] if isinstance(number, int) else _unpack(message.read(*number), max_numbers)
    return [_as_signed(number) for number in numbers]


class _Message:
    """A message read field by field, in all ``MAX_FIELDS`` of it and of the messages that it holds."""

    def __init__(self, read: Read) -> None:
        self.read = read
        self._left = MAX_FIELDS

    def parts(self, wanted: int, start: int, stop: int) -> Iterator[tuple[int, int]]:
        """(start, stop) of the messages, strings and packed numbers in the fields numbered ``wanted``."""
        for field in self.fields(wanted, start, stop):
            if isinstance(field, int):
                raise UnreadableError(NO_EXAMPLE)
            yield field

    def fields(self, wanted: int, start: int, stop: int) -> Iterator[int | tuple[int, int]]:
        """Of the fields numbered ``wanted``: the value of a varint, (start, stop) of any other."""
        while start < stop:
            if not self._left:
                raise UnreadableError(f"the record has more than {MAX_FIELDS} fields")
            self._left -= 1
            head = self.read(start, min(start + 20, stop))  # two varints
            tag, used = _read_varint(head, 0)
            number, wire = tag >> 3, tag & 7
            if wire not in (0, 1, 2, 5):
                raise UnreadableError(NO_EXAMPLE)
            value, used = _read_varint(head, used) if wire in (0, 2) else (8 if wire == 1 else 4, used)
            end = start + used + (value if wire else 0)
            if end > stop:
                raise UnreadableError("a field of the record is longer than the record")
            if number == wanted:
                yield (start + used, end) if wire else value
            start = end


def _read_varint(data: bytes, start: int) -> tuple[int, int]:
    """(a number stored in 7 bits of each byte, where it ends)."""
    value = 0
    for position in range(10):
        if start + position >= len(data):
            break
        byte = data[start + position]
        value |= (byte & 0x7F) << 7 * position
        if byte < 0x80:
            return value, start + position + 1
    raise UnreadableError("a number in the record does not end")


def _as_signed(value: int) -> int:
    return (value & 0xFFFFFFFFFFFFFFFF ^ 1 << 63) - (1 << 63)


def _unpack(data: bytes, max_numbers: int) -> list[int]:
    numbers, position = list[int](), 0
    while position < len(data) and len(numbers) <= max_numbers:
        value, position = _read_varint(data, position)
        numbers.append(value)
    return numbers


def _field(number: int, data: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(data)) + data


def _feature(value: bytes | list[int]) -> bytes:
    if isinstance(value, bytes):
        return _field(1, _field(1, value))
    return _field(3, _field(1, b"".join(_varint(number & 0xFFFFFFFFFFFFFFFF) for number in value)))


def _varint(value: int) -> bytes:
    parts = []
    while value >= 0x80:
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*parts, value])
