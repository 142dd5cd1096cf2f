"""The console that commands print to: rich's, which takes text as text."""

from typing import Any

from rich.console import Console
from rich.text import Text

from .text import printable

WIDTH = 140  # columns where the output is no terminal


class PlainConsole(Console):
    """Shows names as they are: ``[red]`` is no colour, ``:cat:`` no picture, and an escape sequence does nothing."""

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(printable(text), **{**options, "markup": False, "emoji": False})


def console() -> Console:
    """That of standard output."""
    shown = PlainConsole()
    return shown if shown.is_terminal else PlainConsole(width=WIDTH)
