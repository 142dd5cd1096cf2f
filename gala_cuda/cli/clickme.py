"""`gala-cuda clickme`: checks and converts ClickMe's files, images with human maps, and collects such maps."""

import argparse
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from ..errors import GalaError
from . import clickme_collect, clickme_forget, clickme_serve
from .arguments import count
from .extras import extra

HELP = "Check ClickMe's files, convert them to another format, or collect human maps of your own images."
CHECK = "Read every record of ClickMe's files: counts, ranges, and what is broken by name; exit code 1 if anything is."
CONVERT = "Write the splits train, val and test of ClickMe's files anew in another format."
KINDS = ("webdataset", "npz", "tfrecord", "tfrecord-jpeg", "pth")
LOST = """\
what gets lost, beside files that cannot be read:
  webdataset     nothing, but images of raw TFRecords, floating point, are rounded to whole values of 0 to 255
  npz            JPEG is decoded; images as above, maps of more than 32 bits per number rounded to float32
  tfrecord       raw float32 as gala_tpu reads: as npz; images and maps have to be squares
  tfrecord-jpeg  as Harmonization reads: what is no JPEG yet is compressed at quality 95, maps are scaled to 0 to 255
  pth            as npz, and maps are scaled to 0 to 255 and rounded, unless they are such numbers already
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(title="actions", required=True, metavar="ACTION")
    check = actions.add_parser("check", help=CHECK, description=CHECK)
    check.set_defaults(parser=check, action=_check)
    check.add_argument("folder", type=Path, metavar="FOLDER", help="with files train*, val*, test* or folders of the "
        "names")  # fmt: skip
    check.add_argument("--json", action="store_true", help="as JSON")
    convert = actions.add_parser(
        "convert", help=CONVERT, description=CONVERT, epilog=LOST,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    convert.set_defaults(parser=convert, action=_convert)
    add = convert.add_argument
    add("source", type=Path, metavar="SOURCE", help="folder with files of any of the formats")
    add("target", type=Path, metavar="TARGET", help="new folder, whole in the end or not there at all")
    add("--to", choices=KINDS, default="webdataset", help="format to write (default: %(default)s, tar shards)")
    add("--per-shard", type=count, default=1000, metavar="N", help="samples per TFRecord or tar file "
        "(default: %(default)s)")  # fmt: skip
    serve = actions.add_parser("serve", help=clickme_serve.HELP, description=clickme_serve.HELP)
    serve.set_defaults(parser=serve, action=clickme_serve.run)
    clickme_serve.add_arguments(serve)
    collect = actions.add_parser("collect", help=clickme_collect.HELP, description=clickme_collect.HELP)
    collect.set_defaults(parser=collect, action=clickme_collect.run)
    clickme_collect.add_arguments(collect, KINDS)
    forget = actions.add_parser("forget", help=clickme_forget.HELP, description=clickme_forget.HELP)
    forget.set_defaults(parser=forget, action=clickme_forget.run)
    clickme_forget.add_arguments(forget)


def run(args: argparse.Namespace) -> int:
    return args.action(args)


def _check(args: argparse.Namespace) -> int:
    """1 where there are broken records."""
    with extra("train"):
        from ..console import PlainConsole, numbered
        from ..data.human_maps.check import check, print_reports
    with _failures("FOLDER"):
        report = check(args.folder, numbered)
    if args.json:
        print(json.dumps({split: asdict(found) for split, found in report.items()}))
    else:
        print_reports(report, PlainConsole())
    return int(any(found.broken for found in report.values()))


def _convert(args: argparse.Namespace) -> int:
    """1 where records were left out."""
    with extra("train"):
        from ..console import PlainConsole, numbered
        from ..data.human_maps.convert import convert
        from ..data.human_maps.formats import WRITERS
    with _failures("SOURCE or TARGET"):
        written, left = convert(args.source, args.target, WRITERS[args.to], args.per_shard, numbered)
    console = PlainConsole()
    for name, why in left:
        console.print_line(f"left out: {name}: {why}")
    console.print_line(f"written: {written:,} samples to {args.target.resolve()}, {len(left):,} left out")
    return int(bool(left))


@contextmanager
def _failures(name: str) -> Iterator[None]:
    """What reading and writing raise, as refusals of the argument `name` or as failures of the command."""
    try:
        yield
    except (FileNotFoundError, FileExistsError) as error:
        raise argparse.ArgumentError(None, f"argument {name}: {error}") from error
    except (OSError, ValueError) as error:
        raise GalaError(str(error)) from error
