"""`gala-cuda predict`: writes what a network makes of pictures to a table."""

import argparse
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from glob import glob, has_magic
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ..errors import GalaError
from ..models.with_maps import gala_layers
from ..prediction import SUFFIXES
from ..training.recipe_file import resolve
from .arguments import add_weights_file, count, device, device_of
from .extras import extra
from .flags_from_recipe import add_recipe_flags, blaming_arguments, given_flags

if TYPE_CHECKING:
    from rich.progress import Progress

    from ..prediction.predict import Prediction

HELP = "Write labels and probabilities of pictures to CSV, JSON lines or Parquet."
FIELDS = (
    "model", "layers", "keep_output", "image_size", "mean", "std", "interpolation", "batch_size", "precision", "workers"
)  # fmt: skip


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_weights_file(parser)
    add = parser.add_argument
    add("images", nargs="+", metavar="IMAGES", help="picture files, patterns such as 'cats/*.jpg', folders, ClickMe's "
        "files or folders, or builtin:digits")  # fmt: skip
    add("--output", type=table, default=Path("predictions.csv"), metavar="FILE", help="file to write to: .csv, .jsonl "
        "(JSON lines) or .parquet (default: %(default)s)")  # fmt: skip
    add("--top", type=count, default=1, metavar="K", help="the K likeliest classes of each (default: %(default)s)")
    add("--maps", action="store_true", help="also the attention, the mean over layers of its norm over channels")
    add("--split", default="val", metavar="NAME", help="split of ClickMe's folders (default: %(default)s)")
    add("--device", type=device, help="cpu, cuda, cuda:1 (default: a GPU if there is one)")
    add_recipe_flags(parser, FIELDS)


def table(text: str) -> Path:
    path = Path(text)
    if path.suffix.lower() not in SUFFIXES:
        raise argparse.ArgumentTypeError(f"{text!r} was given; expected a name that ends in {', '.join(SUFFIXES)}")
    return path


def run(args: argparse.Namespace) -> int:
    with extra("train"):
        from ..console import PlainConsole
        from ..inspection.images import open_images
        from ..prediction import predict, tables
        from ..training.progress import epoch_bar
        from ..training.trained_network import open_network
    if args.output.suffix.lower() == ".parquet":
        with extra("parquet"):
            import pyarrow  # noqa: F401
    console, device, given = PlainConsole(), device_of(args), given_flags(args)
    with blaming_arguments(args):
        recipe = resolve(None, given)
        model, network = open_network(args.weights_file, recipe, given, console.print_line)
    if args.maps and not gala_layers(model):
        raise argparse.ArgumentError(None, f"argument --maps: {network.model} has no GALA, whose attention they are")
    try:
        sources = [open_images(place, network, args.split, console.print_line) for place in _expanded(args.images)]
    except (OSError, ValueError) as error:
        raise argparse.ArgumentError(None, f"argument IMAGES: {error}") from error
    model = model.to(device).to(memory_format=torch.channels_last)
    classes = network.class_names
    total, top = sum(len(images.labels) for images in sources), min(args.top, len(classes))
    found = predict.predict(
        model, sources, classes, device, batch_size=recipe.batch_size, top=top, maps=args.maps,
        precision=recipe.precision, workers=recipe.workers, multi_label=network.multi_label,
    )  # fmt: skip
    seen = Seen(total)
    tables.write(seen.passing(found, epoch_bar(PlainConsole(stderr=True))), args.output, top, args.maps)
    console.print_line(f"written: {args.output.resolve()}: {seen}")
    if seen.unreadable == total:
        raise GalaError(f"none of the images can be read; {args.output} says why")
    return 0


class Seen:
    """Counts predictions as they pass.

    Attributes:
        images, unreadable: how many have passed, and how many of them could not be read.
    """

    def __init__(self, total: int):
        self.total, self.images, self.unreadable = total, 0, 0
        self._began = time.perf_counter()

    def passing(self, predictions: "Iterable[Prediction]", progress: "Progress") -> "Iterator[Prediction]":
        with progress as bar:
            task = bar.add_task("predict", total=self.total, measured="")
            for prediction in predictions:
                self.images += 1
                self.unreadable += prediction.error is not None
                bar.update(task, completed=self.images, measured=self._rate)
                yield prediction

    @property
    def _rate(self) -> str:
        return f"{self.images / (time.perf_counter() - self._began):.0f} image/s"

    def __str__(self) -> str:
        unreadable = f", {self.unreadable:,} of which cannot be read" if self.unreadable else ""
        return f"{self.images:,} images{unreadable}, {self._rate}"


def _expanded(places: Sequence[str]) -> Iterator[str]:
    """The `places`, patterns replaced by what matches them. Raises FileNotFoundError for one that nothing matches."""
    for place in places:
        if os.path.exists(place) or not has_magic(place):
            yield place
            continue
        found = sorted(glob(place, recursive=True))
        if not found:
            raise FileNotFoundError(f"nothing matches {place}")
        yield from found
