"""Tests a network on the held-out images, which all processes share, and prints the result as tables."""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from ..clickme.score import MapScore, MapScoreMeter
from ..data.batches import Batches
from ..models.mode import in_mode
from .answers import Confusion, Scores
from .criterion import Criterion
from .distributed import all_reduce
from .meters import Meter, format_loss

FEW_CLASSES = 20  # at most, for a table of the confusion


@dataclass(frozen=True)
class Evaluation:
    """How good a network is; accuracies are fractions in [0, 1].

    Attributes:
        loss: mean cross-entropy in nats, or binary cross-entropy of each class.
        top1, top5: None where images have any number of labels.
        images_per_second: of all processes, reading included.
        confusion: [K, K] int64, images by class and answer; None where images have any number of labels.
        map_similarity: mean rank correlation with human maps; None where none were compared.
        average_precision: [K] in [0, 1] where images have any number of labels, NaN of those that none has; else None.
    """

    loss: float
    top1: float | None
    top5: float | None
    images: int
    images_per_second: float
    confusion: Tensor | None
    map_similarity: float | None = None
    average_precision: Tensor | None = None

    @property
    def mean_average_precision(self) -> float | None:
        """The mean over the classes that some image has."""
        return None if self.average_precision is None else self.average_precision.nanmean().item()


@torch.no_grad()
def evaluate(
    model: nn.Module,
    batches: Batches,
    device: torch.device,
    precision: str = "float32",
    map_meter: MapScoreMeter | None = None,
    class_numbers: Sequence[int] | None = None,
    loss: str = "cross_entropy",
) -> Evaluation:
    """Tests `model` in evaluation mode; its mode is restored. In several processes every one calls.

    Args:
        model: on `device`, images to logits [n, K].
        batches: of several views of each image the logits are averaged.
        map_meter: gets the network's maps of images that come with human ones, those of this process alone.
        class_numbers: the network's number of each class of `batches`; None where these are the same.
        loss: as of `Criterion`.

    Raises:
        ValueError: no image could be read.
    """
    number_of = None if class_numbers is None else torch.tensor(class_numbers, device=device)
    multi_label, criterion = batches.labels.dim() == 2, Criterion(loss)
    meter, began = Meter(device, multi_label=multi_label), time.perf_counter()
    answers: Scores | Confusion = Scores() if multi_label else Confusion(device)
    with in_mode(model, training=False):
        for images, labels, *human in batches.epoch():
            views = images.shape[1] if images.dim() == 5 else 1
            images, labels = to_device(images.flatten(0, 1) if views > 1 else images, labels, device)
            if number_of is not None and not multi_label:
                labels = number_of[labels]
            with autocast(device, precision):
                if human and map_meter is not None:
                    logits, maps = map_meter.compute_maps(model, images, labels)
                    map_meter.add(maps, *human)
                else:
                    logits = model(images)
            logits = logits.float().view(len(labels), views, logits.shape[1]).mean(1)
            if number_of is not None and multi_label:
                labels = torch.zeros_like(logits, dtype=torch.bool).index_copy_(1, number_of, labels)
            meter.add(criterion(logits, labels), logits, labels)
            answers.add(logits, labels)
    images_seen, seconds = meter.images, time.perf_counter() - began
    if not images_seen:
        raise ValueError("there are no images to test on")
    means = meter.means()
    return Evaluation(
        loss=means.loss,
        top1=means.top1,
        top5=means.top5,
        images=images_seen,
        images_per_second=images_seen / seconds,
        map_similarity=None if map_meter is None else _mean_over_ranks(map_meter.rho, device),
        **answers.result(),
    )


def _mean_over_ranks(values: Tensor, device: torch.device) -> float | None:
    """The mean of every rank's `values` [n], whose n may differ; None where there are none."""
    total, count = all_reduce(torch.stack([values.sum(), torch.tensor(float(len(values)))]).to(device)).tolist()
    return total / count if count else None


def to_device(
    images: Tensor, labels: Tensor, device: torch.device, channels_last: bool = True
) -> tuple[Tensor, Tensor]:
    """Both on `device`, the images as NHWC in memory unless told otherwise."""
    layout = torch.channels_last if channels_last else torch.contiguous_format
    return images.to(device, memory_format=layout, non_blocking=True), labels.to(device, non_blocking=True)


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Activations in `precision`; for float32 it does nothing."""
    dtype = torch.bfloat16 if precision == "float32" else getattr(torch, precision)
    return torch.autocast(device.type, dtype, enabled=precision != "float32")


def print_evaluation(result: Evaluation, classes: tuple[str, ...], console: Console) -> None:
    """Prints a table, and for few classes another of images by class and answer, or of average precisions."""
    figures = {"top-1": result.top1, "top-5": result.top5, "mAP": result.mean_average_precision}
    texts = {name: f"{figure:.2%}" for name, figure in figures.items() if figure is not None}
    texts |= {"loss": format_loss(result.loss), "image/s": f"{result.images_per_second:.0f}"}
    table = Table(title=f"{result.images} images")
    for name in texts:
        table.add_column(name, justify="right")
    table.add_row(*texts.values())
    console.print(table)
    if len(classes) > FEW_CLASSES:
        return
    if result.average_precision is not None:
        _print_precisions(result.average_precision, classes, console)
    if result.confusion is None:
        return
    table = Table("class", title="images by class (rows) and answer (columns)")
    for name in classes:
        table.add_column(name, justify="right")
    table.add_column("right", justify="right")
    for i, (name, row) in enumerate(zip(classes, result.confusion.tolist(), strict=True)):
        right = f"{row[i] / sum(row):.1%}" if sum(row) else "-"
        table.add_row(name, *(str(count) if count else "·" for count in row), right)
    console.print(table)


def _print_precisions(average_precision: Tensor, classes: tuple[str, ...], console: Console) -> None:
    table = Table("class", title="average precision")
    table.add_column("", justify="right")
    for name, precision in zip(classes, average_precision.tolist(), strict=True):
        table.add_row(name, "-" if math.isnan(precision) else f"{precision:.2%}")
    console.print(table)


def print_score(result: Evaluation, score: MapScore, console: Console) -> None:
    """Prints the columns of the paper's table, errors in per cent and 100 times the ratio; and what that comes from."""
    table = Table(title=f"{score.of} against human maps of {score.images} images")
    for name in ("top-1 error", "top-5 error", "maps", "rho", "95 %", "ceiling", "p", "left out"):
        table.add_column(name, justify="right")
    errors = (f"{100 * (1 - share):.2f}" for share in (result.top1, result.top5) if share is not None)
    table.add_row(
        *errors, f"{100 * score.ratio:.2f}{score.stars}",
        f"{score.rho:.4f}", f"{score.low:.4f} to {score.high:.4f}", f"{score.ceiling:.4f}", f"{score.p:.4f}",
        str(score.left_out),
    )  # fmt: skip
    console.print(table)
