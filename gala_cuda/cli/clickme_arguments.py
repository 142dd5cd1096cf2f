"""The arguments of ``gala-cuda clickme``."""

import argparse
from pathlib import Path

KINDS = ("webdataset", "npz", "tfrecord", "tfrecord-jpeg", "pth")
LOSSES = """\
what gets lost, beside files that cannot be read:
  webdataset     nothing, but images of raw TFRecords, floating point, are rounded to whole values of 0 to 255
  npz            JPEG is decoded; images as above, maps of more than 32 bits a number rounded to float32
  tfrecord       raw float32 as gala_tpu reads: as npz; images and maps have to be squares
  tfrecord-jpeg  as Harmonization reads: what is no JPEG yet is compressed at quality 95, maps are scaled to 0 to 255
  pth            as npz, and maps are scaled to 0 to 255 and rounded, unless they are such numbers already
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds ``check`` and ``convert``; ``does`` says which was given."""
    actions = parser.add_subparsers(title="actions", required=True, metavar="ACTION")
    text = (
        "Read every record of ClickMe's files: counts, ranges, and what is broken by name; exit code 1 if anything is."
    )
    check = actions.add_parser("check", help=text, description=text)
    check.add_argument(
        "folder", type=Path, metavar="FOLDER", help="with files train*, val*, test* or folders of the names"
    )
    check.add_argument("--json", action="store_true", help="as JSON")
    text = "Write the splits train, val and test of ClickMe's files anew in another format."
    convert = actions.add_parser(
        "convert", help=text, description=text, epilog=LOSSES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    convert.add_argument("source", type=Path, metavar="SOURCE", help="folder with files of any of the formats")
    convert.add_argument("target", type=Path, metavar="TARGET", help="new folder, whole in the end or not there at all")
    convert.add_argument("--to", choices=KINDS, default="webdataset", help="(default: %(default)s, tar shards)")
    convert.add_argument("--per-shard", type=_count, default=1000, metavar="N",
        help="samples of a TFRecord or tar file (default: %(default)s)")  # fmt: skip
    for action, name in ((check, "check"), (convert, "convert")):
        action.set_defaults(parser=action, does=name)


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} was given; expected a whole number of at least 1")
    return int(text)
