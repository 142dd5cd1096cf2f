"""Arguments that several commands share, the types of their values, and a parser that refuses them in one line."""

import argparse
import math
import os
import re
import sys
from pathlib import Path
from typing import NoReturn

import torch

_SHARE = "a number from 0 to below 1"


class Parser(argparse.ArgumentParser):
    """Tells of a bad argument in one line, without the usage. Parsers of its commands are of this class too."""

    def error(self, message: str) -> NoReturn:
        """Ends the program with exit code 2."""
        self.exit(2, f"{self.prog}: {message} (see {self.prog} --help)\n")


def count(text: str) -> int:
    return _number(text, int, 1, "a whole number of at least 1")


def positive(text: str) -> float:
    return _number(text, float, sys.float_info.min, "a number above 0")


def not_negative(text: str) -> float:
    return _number(text, float, 0, "a number of at least 0")


def share_below_1(text: str) -> float:
    number = _number(text, float, 0, _SHARE)
    if number >= 1:
        raise argparse.ArgumentTypeError(f"{text!r} was given; expected {_SHARE}")
    return number


def whole(text: str) -> int:
    return _number(text, int, 0, "a whole number of at least 0")


def _number(text: str, kind: type, least: float, expected: str):
    try:
        number = kind(text)
    except ValueError:
        number = math.nan
    if not least <= number < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} was given; expected {expected}")
    return number


def shape(text: str) -> tuple[int, int, int]:
    match = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)x([1-9]\d*)", text)
    if not match:
        raise argparse.ArgumentTypeError(f"{text!r} was given; expected channels, height and width, as in 1024x14x14")
    channels, height, width = map(int, match.groups())
    return channels, height, width


def device(text: str) -> torch.device:
    try:
        device = torch.device(text)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise argparse.ArgumentTypeError(f"{text!r} was given; expected cpu, cuda or cuda:N")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise argparse.ArgumentTypeError(f"{text!r} was given, but torch sees {torch.cuda.device_count()} CUDA devices")
    return device


def device_of(args: argparse.Namespace) -> torch.device:
    """`args.device`, else a GPU where there is one; without a number, the GPU of this process's local rank."""
    device = args.device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cuda" and device.index is None:
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
    return device


def add_weights_file(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("weights_file", type=Path, metavar="WEIGHTS", help="safetensors or torch.save file of this "
        "package, of torchvision or of timm; the folder of a training; or hf-hub:OWNER/NAME")  # fmt: skip
