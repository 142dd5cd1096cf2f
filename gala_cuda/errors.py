"""Errors whose message is for the user, printed without a traceback by the command line; a check that layers share."""

from collections.abc import Sequence


class GalaError(Exception):
    """Something that the user can mend; the message says what. A command ends with exit code 1."""


class SettingError(GalaError, ValueError):
    """A setting is out of range, or does not go with others. A command blames an argument, and ends with exit code 2.

    Attributes:
        names: the setting, then the others that it does not go with.
    """

    def __init__(self, names: Sequence[str], message: str):
        super().__init__(message)
        self.names = tuple(names)


def check_positive(**arguments: int) -> None:
    """Raises ValueError, which names the argument, unless all are integers of at least 1."""
    for name, value in arguments.items():
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} is {value!r}; expected an integer of at least 1")
