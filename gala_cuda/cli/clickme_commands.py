"""What ``gala-cuda clickme`` does with its arguments."""

import argparse
import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict

from rich.console import Console
from rich.progress import track

from ..data.human_maps import check as checking
from ..data.human_maps import convert as converting
from ..data.human_maps.encode import KINDS
from ..data.human_maps.samples import Samples

FAILURES = (OSError, ValueError)


def check(args: argparse.Namespace, console: Console) -> int:
    """Whether there are broken records, as an exit code. Raises argparse.ArgumentError."""
    with _argument_named("FOLDER"):
        report = checking.check(args.folder, _tracked)
    if args.json:
        print(json.dumps({split: asdict(found) for split, found in report.items()}))
    else:
        checking.print_report(report, console)
    return int(any(found.broken for found in report.values()))


def convert(args: argparse.Namespace, console: Console) -> int:
    """Whether records were left out, as an exit code. Raises argparse.ArgumentError, ``FAILURES``."""
    with _argument_named("SOURCE or TARGET"):
        written, left = converting.convert(args.source, args.target, KINDS[args.to], args.per_shard, _tracked)
    for name, why in left:
        console.print(f"left out: {name}: {why}", markup=False, highlight=False, soft_wrap=True)
    console.print(
        f"written: {written:,} samples to {args.target.resolve()}, {len(left):,} left out",
        markup=False, highlight=False, soft_wrap=True,
    )  # fmt: skip
    return int(bool(left))


@contextmanager
def _argument_named(name: str) -> Iterator[None]:
    try:
        yield
    except (FileNotFoundError, FileExistsError) as error:
        raise argparse.ArgumentError(None, f"argument {name}: {error}") from error


def _tracked(samples: Samples, split: str) -> Iterable[int]:
    """The samples' numbers, with a bar on a terminal."""
    console = Console(stderr=True)
    return track(range(len(samples)), split, console=console, disable=not console.is_terminal)
