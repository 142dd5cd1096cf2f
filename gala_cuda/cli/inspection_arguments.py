"""The arguments of ``gala-cuda inspect``."""

import argparse
from pathlib import Path

from .arguments import count, device
from .training_arguments import add_flags


def add_arguments(sub: argparse.ArgumentParser) -> None:
    add = sub.add_argument
    add("weights_file", type=Path, metavar="CKPT", help="folder of a training, or a file of weights of this package, "
        "of torchvision or of timm")  # fmt: skip
    add(
        "images",
        nargs="+",
        metavar="IMAGES",
        help="picture files, folders of them, ClickMe's files or folders, or builtin:digits",
    )
    add("--output", type=Path, default=Path("runs/inspect"), help="folder to write to (default: %(default)s)")
    add("--limit", type=count, default=16, metavar="N", help="images, evenly spaced where there are more "
        "(default: %(default)s)")  # fmt: skip
    add("--split", default="val", metavar="NAME", help="of ClickMe's folders (default: %(default)s)")
    add("--device", type=device, help="cpu, cuda, cuda:1 (default: a GPU if there is one)")
    add("--layers", nargs="+", metavar="NAME", default=argparse.SUPPRESS, help="blocks, or stages of them, whose "
        "attention is shown (default: three, of ResNet-50 the paper's layer3.1, .3 and .5); where the file does not "
        "name its network, also all that have GALA")  # fmt: skip
    add_flags(sub, ("model", "keep_output", "image_size"))
