"""`gala-cuda inspect`: shows what a network attends to."""

import argparse
from pathlib import Path

import torch

from ..training.recipe_file import resolve
from .arguments import add_weights_file, count, device, device_of
from .extras import extra
from .flags_from_recipe import add_recipe_flags, blaming_arguments, given_flags

HELP = "Show what a network attends to: PNG sheets, an HTML page."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_weights_file(parser)
    add = parser.add_argument
    add("images", nargs="+", metavar="IMAGES", help="picture files, folders of them, ClickMe's files or folders, or "
        "builtin:digits")  # fmt: skip
    add("--output", type=Path, default=Path("runs/inspect"), help="folder to write to (default: %(default)s)")
    add("--limit", type=count, default=16, metavar="N", help="number of images, evenly spaced where there are more "
        "(default: %(default)s)")  # fmt: skip
    add("--split", default="val", metavar="NAME", help="split of ClickMe's folders (default: %(default)s)")
    add("--device", type=device, help="cpu, cuda, cuda:1 (default: a GPU if there is one)")
    add("--layers", nargs="+", metavar="NAME", default=argparse.SUPPRESS, help="blocks, or stages of them, whose "
        "attention is shown (default: three, of ResNet-50 the paper's layer3.1, .3 and .5); where the file does not "
        "name its network, also all that have GALA")  # fmt: skip
    add_recipe_flags(parser, ("model", "keep_output", "image_size"))


def run(args: argparse.Namespace) -> int:
    """Writes inspection.html and sheets as PNG to `args.output`."""
    with extra("train"):
        from ..console import PlainConsole
        from ..inspection.images import open_images
        from ..inspection.page import choose_columns, write_report
        from ..training.trained_network import open_network
    console, device, given = PlainConsole(), device_of(args), given_flags(args)
    with blaming_arguments(args):
        model, network = open_network(
            args.weights_file, resolve(None, given), given, console.print_line, ("model", "keep_output")
        )
        columns = choose_columns(model, network, given.get("layers", ()))
    try:
        sources = [open_images(place, network, args.split, console.print_line) for place in args.images]
    except (OSError, ValueError) as error:
        raise argparse.ArgumentError(None, f"argument IMAGES: {error}") from error
    model = model.to(device).to(memory_format=torch.channels_last)
    heading = f"{network.model} of {args.weights_file}"
    written = write_report(
        model, network.class_names, sources, columns, args.limit, heading, args.output,
        lambda name, why: console.print_line(f"skipped {name}: {why}"),
    )  # fmt: skip
    for path in written:
        console.print_line(f"written: {path.resolve()}")
    return 0
