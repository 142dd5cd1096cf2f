"""Names that users choose from: the built-in data sets, augmentations, interpolations, views of test images."""

from pathlib import Path
from typing import NamedTuple

PREFIX = "builtin:"
DATASETS = "datasets:"  # before what the library datasets knows
DIGITS, SYNTHETIC = f"{PREFIX}digits", f"{PREFIX}synthetic"
AUGMENTS = ("paper", "modern", "randaugment", "none")
INTERPOLATIONS = ("nearest", "nearest-exact", "bilinear", "bicubic", "box", "hamming", "lanczos")  # torchvision's
CHANNELS = (1, 3, 4)  # of pictures: grey, RGB, RGBA
VIEWS = ("flip", "five-crops", "ten-crops")  # of a test image, over which a network's logits are averaged


class Columns(NamedTuple):
    """The columns of a table of images and labels; None is the first with a usual name."""

    image: str | None = None
    label: str | None = None
    multi_label: bool = False  # any number of labels for each image


USUAL = Columns()


def explicit_source(source: str) -> str:
    """Where images come from, without ambiguity: a built-in set as "builtin:NAME", a folder of such a name as "./NAME".

    "digits", "synthetic" and "synthetic:N" are short for the built-in sets unless there is a folder of that name. Any
    other source is returned unchanged.
    """
    if f"{PREFIX}{source.partition(':')[0]}" not in (DIGITS, SYNTHETIC):
        return source
    return f"./{source}" if Path(source).is_dir() else f"{PREFIX}{source}"
