"""Where a record lies in its file."""

from typing import NamedTuple

UNKNOWN = -1  # the label of a record whose label cannot be read


class RecordLocation(NamedTuple):
    """Offset and length of a record in bytes, and its label."""

    offset: int
    length: int
    label: int
