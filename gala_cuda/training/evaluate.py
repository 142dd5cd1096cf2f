"""How good a network is on the held-out images; shared among the processes, each image counted once."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from ..clickme.score import MapScore, MapScoreMeter
from ..data.batches import Batches
from .distributed import add_up
from .meters import format_loss, hits

FEW_CLASSES = 20  # whose confusion is shown


@dataclass(frozen=True)
class Evaluation:
    """Shares of 1, the mean loss in nats, and ``confusion`` [K, K] int64: images by class and answer.

    ``map_similarity`` is the mean rank correlation with human maps, None where none were compared.
    """

    loss: float
    top1: float
    top5: float
    images: int
    images_per_second: float
    confusion: Tensor
    map_similarity: float | None = None


@torch.no_grad()
def evaluate(
    model: nn.Module,
    batches: Batches,
    device: torch.device,
    precision: str = "float32",
    record: MapScoreMeter | None = None,
    numbers: Sequence[int] | None = None,
) -> Evaluation:
    """The result over all ranks, in evaluation mode; the mode is restored.

    ``model`` is on ``device`` and its logits are [n, K]. Images per second are those of all ranks, reading included.
    ``record`` gets the maps of images that come with human ones; that of this rank alone. ``numbers`` are those
    that the network has for the classes of ``batches``, if they are not the same.

    Raises:
        ValueError: no image could be read.
    """
    training = model.training
    model.eval()
    number_of = None if numbers is None else torch.tensor(numbers, device=device)
    totals, confusion = torch.zeros(6, dtype=torch.float64, device=device), None
    began = time.perf_counter()
    for images, labels, *human in batches.epoch():
        images, labels = on(images, labels, device)
        if number_of is not None:
            labels = number_of[labels]
        with autocast(device, precision):
            if human and record is not None:
                logits, maps = record.compute_maps(model, images, labels)
                record.add(maps, *human)
            else:
                logits = model(images)
        logits = logits.float()
        totals[:4] += hits(F.cross_entropy(logits, labels), logits, labels)
        classes = logits.shape[1]
        if confusion is None:
            confusion = torch.zeros(classes * classes, dtype=torch.int64, device=device)
        confusion += torch.bincount(labels * classes + logits.argmax(1), minlength=len(confusion))
    model.train(training)
    if record is not None:
        totals[4:] = torch.stack([record.rho.sum(), torch.tensor(len(record.rho))])
    loss, first, five, images_seen, rho, compared = add_up(totals).tolist()
    seconds = time.perf_counter() - began
    if confusion is None or not images_seen:
        raise ValueError("there are no images to test on")
    side = int(len(confusion) ** 0.5)
    table = add_up(confusion).view(side, side).cpu()
    return Evaluation(
        loss / images_seen, first / images_seen, five / images_seen, int(images_seen), images_seen / seconds, table,
        rho / compared if compared else None,
    )  # fmt: skip


def on(images: Tensor, labels: Tensor, device: torch.device, channels_last: bool = True) -> tuple[Tensor, Tensor]:
    """Both on ``device``, the images as NHWC in memory unless told otherwise."""
    layout = torch.channels_last if channels_last else torch.contiguous_format
    return images.to(device, memory_format=layout, non_blocking=True), labels.to(device, non_blocking=True)


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Activations in ``precision``; nothing for float32."""
    dtype = torch.bfloat16 if precision == "float32" else getattr(torch, precision)
    return torch.autocast(device.type, dtype, enabled=precision != "float32")


def print_evaluation(result: Evaluation, classes: tuple[str, ...], console: Console) -> None:
    """A table, and for few classes another of images by class and answer."""
    table = Table(title=f"{result.images} images")
    for name in ("top-1", "top-5", "loss", "image/s"):
        table.add_column(name, justify="right")
    table.add_row(
        f"{result.top1:.2%}", f"{result.top5:.2%}", format_loss(result.loss), f"{result.images_per_second:.0f}"
    )
    console.print(table)
    if len(classes) > FEW_CLASSES:
        return
    table = Table("class", title="images by class (rows) and answer (columns)")
    for name in classes:
        table.add_column(name, justify="right")
    table.add_column("right", justify="right")
    for i, (name, row) in enumerate(zip(classes, result.confusion.tolist(), strict=True)):
        share = f"{row[i] / sum(row):.1%}" if sum(row) else "-"
        table.add_row(name, *(str(count) if count else "·" for count in row), share)
    console.print(table)


def print_score(result: Evaluation, score: MapScore, console: Console) -> None:
    """The columns of the paper's table, errors in per cent and 100 times the ratio; and what that comes from."""
    table = Table(title=f"{score.of} against human maps of {score.images} images")
    for name in ("top-1 error", "top-5 error", "maps", "rho", "95 %", "ceiling", "p", "left out"):
        table.add_column(name, justify="right")
    table.add_row(
        f"{100 * (1 - result.top1):.2f}", f"{100 * (1 - result.top5):.2f}", f"{100 * score.ratio:.2f}{score.stars}",
        f"{score.rho:.4f}", f"{score.low:.4f} to {score.high:.4f}", f"{score.ceiling:.4f}", f"{score.p:.4f}",
        str(score.left_out),
    )  # fmt: skip
    console.print(table)
