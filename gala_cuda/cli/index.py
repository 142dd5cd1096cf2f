"""`gala-cuda index`: writes the index of a folder of tar shards."""

import argparse
from pathlib import Path

from .extras import extra

HELP = "Write the index of tar shards: a quicker start, and what training over HTTP needs."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="with train*.tar and val*.tar, or train/*.tar and "
        "val/*.tar; index.json is written there")  # fmt: skip


def run(args: argparse.Namespace) -> int:
    with extra("train"):
        from ..data.shard_index import write_index
    try:
        path = write_index(args.folder)
    except (OSError, ValueError) as error:
        raise argparse.ArgumentError(None, f"argument FOLDER: {error}") from error
    print(f"written: {path.resolve()}")
    return 0
