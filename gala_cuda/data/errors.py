"""What may go wrong while images are read."""

from ..errors import GalaError


class UnreadableError(Exception):
    """An image cannot be read; the message says why."""


class UnreachableError(GalaError, RuntimeError):
    """Where the images are does not answer as it should; no image is skipped for that."""


class TooManyUnreadableError(GalaError, RuntimeError):
    """More than 1 % of the images seen cannot be read."""
