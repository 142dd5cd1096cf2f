"""Imports of packages that only an extra brings, such as `pip install 'gala-cuda[train]'`."""

from collections.abc import Iterator
from contextlib import contextmanager

from ..errors import GalaError


@contextmanager
def extra(name: str) -> Iterator[None]:
    """Imports inside need the extra `name`.

    A command's `run` is the place for them: parsers and help texts are there on any install.

    Raises:
        GalaError: a package is not installed; the message says which, and how to install the extra.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        raise GalaError(f"{error.name} is not installed; pip install 'gala-cuda[{name}]'") from error
