"""Writes what a network attends to in some images, as an HTML page and as PNG sheets."""

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..data.datasets import ImageDataset
from ..errors import GalaError
from ..models.attention_maps import PAPER_LAYERS, attention_maps, choose_blocks, gala_blocks, input_gradient
from ..networks.errors import NetworkError
from ..networks.network import Network
from . import html
from .images import InspectedImage, choose_evenly, may_have_human_maps, read_images
from .sheet import overlay

HUMAN, GRADIENT = "human map", "input gradient"
ROWS = 16  # images in one forward pass and on one sheet
MAX_NAME = 32  # characters of an image's name beside its row


class InspectionError(GalaError, RuntimeError):
    """There is nothing to show, or it cannot be written; the message says why."""


class Rows(NamedTuple):
    """Some images with their maps."""

    images: Tensor  # [n, C, size, size]
    maps: dict[str, Tensor]  # title to [n, H', W'], of NaN where there is none
    titles: list[str]


def choose_columns(model: nn.Module, network: Network, wanted: Sequence[str]) -> dict[str, str]:
    """What is drawn for each image, name to title: the blocks that ``wanted`` selects, or the usual, and the gradient.

    Raises:
        NetworkError: an entry of ``wanted`` selects no block with GALA.
    """
    names = gala_blocks(model)
    try:
        layers = choose_blocks(names, wanted) if names or wanted else []
    except ValueError as error:
        raise NetworkError("layers", str(error)) from error
    numbers = PAPER_LAYERS if network.model.endswith("resnet50") else {}
    titles = {name: f"{name}\n(layer {numbers[name]})" if name in numbers else name for name in layers}
    return {**titles, GRADIENT: GRADIENT}


def write_report(
    model: nn.Module,
    classes: Sequence[str],
    datasets: Sequence[ImageDataset],
    columns: Mapping[str, str],
    limit: int,
    heading: str,
    output: Path,
    skip: Callable[[str, str], None],
) -> list[Path]:
    """Writes inspection.html and sheets of ``ROWS`` images into the folder ``output``; the paths of all of them.

    At most ``limit`` images are taken, evenly spaced over ``datasets``. ``columns`` are those of ``choose_columns``;
    human maps come before them where there are some. ``skip`` is called with name and reason of each image that cannot
    be read.

    Raises:
        InspectionError: none of the images can be read, or a file cannot be written.
    """
    if may_have_human_maps(datasets):
        columns = {HUMAN: HUMAN, **columns}
    images = read_images(choose_evenly(datasets, limit), skip)
    parts = (_inspect(model, part, classes, columns) for part in iter(lambda: list(islice(images, ROWS)), []))
    try:
        return _write(parts, heading, list(columns.values()), output)
    except OSError as error:
        raise InspectionError(f"cannot write {error.filename or output}: {error.strerror}") from error


def _inspect(
    model: nn.Module, images: list[InspectedImage], classes: Sequence[str], columns: Mapping[str, str]
) -> Rows:
    """The maps of ``columns``: "human map", names of blocks and "input gradient" to their titles.

    The gradient is that of the logit of the true class, or of the answer where the true class is not known.
    """
    device = next(model.parameters()).device
    pixels = torch.stack([each.image for each in images]).to(device, memory_format=torch.channels_last)
    logits, attention = attention_maps(model, pixels)
    answers = logits.argmax(1)
    known = [each.label if each.label is not None and each.label < len(classes) else None for each in images]
    labels = [answer if label is None else label for answer, label in zip(answers.tolist(), known, strict=True)]
    none = torch.full(pixels.shape[2:], torch.nan)
    maps = attention | {
        GRADIENT: input_gradient(model, pixels, torch.tensor(labels, device=device)),
        HUMAN: torch.stack([none if each.heatmap is None else each.heatmap for each in images]),
    }
    probabilities = logits.softmax(1).gather(1, answers[:, None])[:, 0].tolist()
    rows = zip(images, answers.tolist(), probabilities, known, strict=True)
    titles = [_title(each.name, answer, probability, label, classes) for each, answer, probability, label in rows]
    return Rows(pixels, {title: maps[name] for name, title in columns.items()}, titles)


def _title(name: str, answer: int, probability: float, label: int | None, classes: Sequence[str]) -> str:
    """The text beside an image: its name, the network's answer, and the true class where that is another one."""
    short = name if len(name) <= MAX_NAME else f"…{name[1 - MAX_NAME :]}"
    true = f"\n({classes[label]})" if label not in (None, answer) else ""
    return f"{short}\n{classes[answer]}, {probability:.0%}{true}"


def _write(parts: Iterable[Rows], heading: str, columns: Sequence[str], output: Path) -> list[Path]:
    """Writes page and sheets, part by part, and no page if there are no images. Raises InspectionError, OSError."""
    path, written = output / "inspection.html", list[Path]()
    draft = path.with_name(f".{path.name}.draft")
    output.mkdir(parents=True, exist_ok=True)
    try:
        with draft.open("w", encoding="utf-8") as file:
            file.write(html.start(heading, columns))
            for number, (images, maps, titles) in enumerate(parts, 1):
                for i, title in enumerate(titles):
                    file.write(html.row(images[i], {name: batch[i] for name, batch in maps.items()}, title))
                written.append(output / ("inspection.png" if number == 1 else f"inspection-{number}.png"))
                with warnings.catch_warnings():
                    warnings.filterwarnings("ignore", "Glyph .* missing from")  # drawn as boxes; the page has them
                    overlay(images, maps, titles, heading).savefig(written[-1], dpi=150)
            file.write(html.END)
        if not written:
            raise InspectionError("none of the images can be read")
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
    return [path, *written]
