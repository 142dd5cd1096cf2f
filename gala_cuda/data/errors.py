"""What can go wrong while images are read."""

from ..errors import GalaError


class UnreadableError(Exception):
    """An image cannot be read; the message says why. It is skipped, up to a limit."""


class UnreachableError(GalaError, RuntimeError):
    """A server does not answer as it should. The run ends: no image is skipped for that."""


class TooManyUnreadableError(GalaError, RuntimeError):
    """More than 1 % of the images seen cannot be read."""
