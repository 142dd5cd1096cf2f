"""What ``gala-cuda inspect`` does with its arguments."""

import argparse
import warnings
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import torch
from rich.console import Console
from torch import Tensor, nn

from ..errors import GalaError
from ..inspection import page
from ..inspection.sheet import overlay
from ..inspection.sources import Shown, has_maps, open_images, read, spread
from ..models.attention_maps import PAPER, attention_maps, chosen_layers, gala_blocks, input_gradient
from ..networks.network import Network, NetworkError
from ..training.recipe import resolve
from .opening import open_network
from .training_arguments import given_flags
from .training_commands import arguments_named, device_of

HUMAN, GRADIENT = "human map", "input gradient"
ROWS = 16  # images of one forward pass and of one sheet
NAME = 32  # characters of an image's name beside its row


class InspectionError(GalaError, RuntimeError):
    """There is nothing to show, or it cannot be written; the message says why."""


FAILURES = (InspectionError,)


class Inspected(NamedTuple):
    """Some images with their maps."""

    images: Tensor  # [n, C, size, size]
    maps: dict[str, Tensor]  # name to [n, H', W'], of NaN where there is none
    titles: list[str]


def inspect(args: argparse.Namespace, console: Console) -> None:
    """Writes inspection.html and sheets as PNG to ``args.output``.

    Raises argparse.ArgumentError for arguments that cannot be followed, and ``FAILURES``.
    """
    device = device_of(args)
    say = partial(console.print, highlight=False, soft_wrap=True)
    with arguments_named():
        recipe = resolve(None, given_flags(args))
        model, network = open_network(args, recipe, say, ("model", "keep_output"))
        columns = _columns(model, network, getattr(args, "layers", ()))
    try:
        sources = [open_images(place, network, args.split, say) for place in args.images]
    except (OSError, ValueError) as error:
        raise argparse.ArgumentError(None, f"argument IMAGES: {error}") from error
    if has_maps(sources):
        columns = {HUMAN: HUMAN, **columns}

    def skip(name: str, why: str) -> None:
        console.print(f"skipped {name}: {why}", markup=False, highlight=False, soft_wrap=True)

    shown = read(spread(sources, args.limit), skip)
    model = model.to(device).to(memory_format=torch.channels_last)
    parts = (inspected(model, part, network.classes, columns) for part in iter(lambda: list(islice(shown, ROWS)), []))
    try:
        written = _write(parts, f"{network.model} of {args.weights_file}", list(columns.values()), args.output)
    except OSError as error:
        raise InspectionError(f"cannot write {error.filename or args.output}: {error.strerror}") from error
    for path in written:
        console.print(f"written: {path.resolve()}", markup=False, highlight=False, soft_wrap=True)


def inspected(model: nn.Module, shown: list[Shown], classes: Sequence[str], columns: Mapping[str, str]) -> Inspected:
    """The maps of ``columns``, from "human map", names of blocks and "input gradient" to their titles.

    The gradient is that of the true class's logit, where that class is known, else of the answer's.
    """
    device = next(model.parameters()).device
    images = torch.stack([each.image for each in shown]).to(device, memory_format=torch.channels_last)
    logits, found = attention_maps(model, images)
    answers = logits.argmax(1)
    known = [each.label if each.label is not None and each.label < len(classes) else None for each in shown]
    labels = [answer if label is None else label for answer, label in zip(answers.tolist(), known, strict=True)]
    none = torch.full(images.shape[2:], torch.nan)
    maps = found | {
        GRADIENT: input_gradient(model, images, torch.tensor(labels, device=device)),
        HUMAN: torch.stack([none if each.heatmap is None else each.heatmap for each in shown]),
    }
    probabilities = logits.softmax(1).gather(1, answers[:, None])[:, 0].tolist()
    titles = [
        f"{_short(each.name)}\n{classes[answer]}, {probability:.0%}" + _truth(label, answer, classes)
        for each, answer, probability, label in zip(shown, answers.tolist(), probabilities, known, strict=True)
    ]
    return Inspected(images, {title: maps[name] for name, title in columns.items()}, titles)


def _columns(model: nn.Module, network: Network, wanted: Sequence[str]) -> dict[str, str]:
    """Blocks and the gradient, to their titles."""
    names = gala_blocks(model)
    try:
        layers = chosen_layers(names, wanted) if names or wanted else []
    except ValueError as error:
        raise NetworkError("layers", str(error)) from error
    numbers = PAPER if network.model.endswith("resnet50") else {}
    titles = {name: f"{name}\n(layer {numbers[name]})" if name in numbers else name for name in layers}
    return {**titles, GRADIENT: GRADIENT}


def _write(parts: Iterable[Inspected], heading: str, columns: Sequence[str], output: Path) -> list[Path]:
    """Page and sheets, the images part by part; nothing where there are none. Raises InspectionError, OSError."""
    path, written = output / "inspection.html", list[Path]()
    draft = path.with_name(f".{path.name}.draft")
    output.mkdir(parents=True, exist_ok=True)
    try:
        with draft.open("w", encoding="utf-8") as file:
            file.write(page.start(heading, columns))
            for number, (images, maps, titles) in enumerate(parts, 1):
                for i, title in enumerate(titles):
                    file.write(page.row(images[i], {name: of_all[i] for name, of_all in maps.items()}, title))
                written.append(output / ("inspection.png" if number == 1 else f"inspection-{number}.png"))
                with warnings.catch_warnings():
                    warnings.filterwarnings("ignore", "Glyph .* missing from")  # shown as boxes; the page has them
                    overlay(images, maps, titles, heading).savefig(written[-1], dpi=150)
            file.write(page.END)
        if not written:
            raise InspectionError("none of the images can be read")
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
    return [path, *written]


def _short(name: str) -> str:
    """The end of a long name."""
    return name if len(name) <= NAME else f"…{name[1 - NAME :]}"


def _truth(label: int | None, answer: int, classes: Sequence[str]) -> str:
    return f"\n({classes[label]})" if label not in (None, answer) else ""
