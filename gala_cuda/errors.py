"""Errors whose message is for the user: the command line prints it alone, where any other error shows a traceback."""

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
