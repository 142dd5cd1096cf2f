"""What may go wrong while images are read."""


class UnreadableError(Exception):
    """An image cannot be read; the message says why."""


class UnreachableError(RuntimeError):
    """Where the images are does not answer as it should; no image is skipped for that."""


class TooManyUnreadableError(RuntimeError):
    """More than 1 % of the images seen cannot be read."""
