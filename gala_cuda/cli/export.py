"""`gala-cuda export`: writes a network for other programs."""

import argparse
from pathlib import Path

from ..training.export import FORMATS
from ..training.recipe_file import resolve
from .arguments import add_weights_file
from .extras import extra
from .flags_from_recipe import add_recipe_flags, blaming_arguments, given_flags

HELP = "Write weights as ONNX and torch.export files, and compare those with PyTorch."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_weights_file(parser)
    parser.add_argument(
        "--format", nargs="+", choices=tuple(FORMATS), default=["onnx"], help="formats to write (default: onnx)"
    )
    parser.add_argument("--output", type=Path, default=Path("runs/export/network"), metavar="FILE",
        help="file to write to; the format's suffix is added (default: %(default)s)")  # fmt: skip
    add_recipe_flags(parser, ("model", "layers", "keep_output", "image_size"))


def run(args: argparse.Namespace) -> int:
    with extra("train"):
        from ..console import PlainConsole
        from ..training.trained_network import open_network
    console, given = PlainConsole(), given_flags(args)
    with blaming_arguments(args):
        model, network = open_network(args.weights_file, resolve(None, given), given, console.print_line)
    base = args.output.with_suffix("") if args.output.suffix[1:] in FORMATS else args.output
    for kind in args.format:
        path = base.with_name(f"{base.name}.{kind}")
        path.parent.mkdir(parents=True, exist_ok=True)
        deviation = FORMATS[kind](model, network.channels, network.size, path)
        console.print_line(
            f"{path.resolve()}: logits as the network's to {deviation:.1e}; images [batch, {network.channels}, "
            f"{network.size}, {network.size}]"
        )
    return 0
