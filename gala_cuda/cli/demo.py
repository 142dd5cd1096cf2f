"""`gala-cuda demo`: shows on digits, in minutes, all that the package does."""

import argparse
from pathlib import Path

from .extras import extra

HELP = "Doctor, a training on real digits, attention maps and a short benchmark, in minutes."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--output", type=Path, default=Path("runs/demo"), help="folder to write to "
        "(default: %(default)s)")  # fmt: skip


def run(args: argparse.Namespace) -> int:
    with extra("train"):
        from .. import demo
        from ..console import PlainConsole
    demo.run(args.output, PlainConsole())
    return 0
