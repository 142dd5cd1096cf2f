"""Where a record lies in its file."""

from typing import NamedTuple

UNKNOWN = -1  # the label of a record that has none that can be read


class Entry(NamedTuple):
    """Offset and length of a record in bytes, and its class."""

    offset: int
    length: int
    label: int
