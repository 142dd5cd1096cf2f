"""The console that commands print to: rich's, without markup, so that text appears as it is."""

from collections.abc import Iterable, Sized
from typing import Any

from rich.console import Console
from rich.progress import track
from rich.text import Text

from .text import printable

WIDTH = 140  # columns where the output is no terminal


class PlainConsole(Console):
    """Shows names as they are: `[red]` is no colour, `:cat:` no picture, and an escape sequence does nothing.

    It takes the options of rich's console.
    """

    def __init__(self, **options: Any):
        super().__init__(highlight=False, **options)
        if not self.is_terminal and "width" not in options:
            self.width = WIDTH

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(printable(text), **{**options, "markup": False, "emoji": False})

    def print_line(self, text: str) -> None:
        """Prints `text` unbroken, however long it is."""
        self.print(text, soft_wrap=True)


def numbered(items: Sized, title: str) -> Iterable[int]:
    """The numbers of `items` from 0, with a progress bar where standard error is a terminal."""
    console = Console(stderr=True)
    return track(range(len(items)), title, console=console, disable=not console.is_terminal)
