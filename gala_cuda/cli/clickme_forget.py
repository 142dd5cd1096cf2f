"""`gala-cuda clickme forget`: deletes all that a game keeps of a participant."""

import argparse
from pathlib import Path

from ..errors import GalaError
from .extras import extra

HELP = "Delete a participant of a game, with all rounds."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("study", type=Path, nargs="?", metavar="STUDY", help="the study's folder (default: the current one)")
    add("code", metavar="CODE", help="the participant's code, which the page shows")
    add("--database", metavar="URL", help="where the rounds are (default: STUDY/game.sqlite)")


def run(args: argparse.Namespace) -> int:
    with extra("game"):
        from ..console import PlainConsole
        from ..game.database import database_of
        from ..game.store import Store
    store = Store(args.database or database_of(args.study or Path()), create=False)
    try:
        if not store.forget(args.code):
            raise GalaError(f"{store.where} has no participant {args.code!r}; expected a code as the page shows it")
    finally:
        store.close()
    PlainConsole().print_line(f"deleted: {args.code} and all rounds of this participant")
    return 0
