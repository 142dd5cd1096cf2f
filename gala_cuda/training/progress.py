"""What a training shows: a bar, a line for each epoch, a table and a picture at the end, TensorBoard."""

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

MAPS = {"map loss": "map_loss", "map rho": "map_similarity"}  # where there are human maps


@dataclass(frozen=True)
class Epoch:
    """One line of the log. Accuracies and ``data_wait`` are shares of 1, ``seconds`` counted from the start.

    Rates are of training, over all processes; ``data_wait`` is the share of its time that rank 0 waited for images,
    ``peak_memory`` its bytes; ``mfu`` the work done over the device's 16-bit peak, None where that is not known;
    ``skipped`` the images that could not be read so far. ``loss`` is the cross-entropy alone; ``map_loss`` the mean map
    loss of training images with a human map, before its weight, ``map_similarity`` the mean rank correlation of maps
    with human ones on the test images; None without.
    """

    epoch: int
    step: int
    lr: float
    loss: float
    train_accuracy: float
    train_top5: float
    test_loss: float
    test_accuracy: float
    test_top5: float
    images_per_second: float
    data_wait: float
    peak_memory: int
    flops_per_second: float
    mfu: float | None
    skipped: int
    seconds: float
    map_loss: float | None = None
    map_similarity: float | None = None


def bar(console: Console) -> Progress:
    """Of one epoch's steps; nothing where the console is no terminal."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(
            "{task.fields[rate]:6.0f} image/s  waiting {task.fields[waiting]:3.0%}  loss {task.fields[loss]:.4f}  "
            "top-1 {task.fields[top1]:6.1%}  top-5 {task.fields[top5]:6.1%}"
        ),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal or console.quiet,
    )


def line(epoch: Epoch, title: str) -> str:
    maps = "" if epoch.map_loss is None else f"map loss {epoch.map_loss:.4f}  "
    if epoch.map_similarity is not None:
        maps += f"map rho {epoch.map_similarity:+.3f}  "
    return (
        f"{title:<12} loss {epoch.loss:.4f}  train {epoch.train_accuracy:6.1%}  test {epoch.test_accuracy:6.1%}  {maps}"
        f"{epoch.images_per_second:6.0f} image/s  waiting {epoch.data_wait:3.0%}  {epoch.seconds:5.0f} s"
    )


def print_summary(log: list[Epoch], console: Console) -> None:
    """The last and the best epoch, side by side."""
    best = max(log, key=lambda epoch: epoch.test_accuracy)
    table = Table("", title=f"{len(log)} epochs, {log[-1].step} steps, {log[-1].seconds:.0f} s")
    names = ["epoch", "train top-1", "test top-1", "test top-5", "test loss", "image/s", "waiting", "memory",
             "GFLOP/s", "MFU"]  # fmt: skip
    maps = [(head, name) for head, name in MAPS.items() if any(getattr(epoch, name) is not None for epoch in log)]
    for name in (*names, *(head for head, _ in maps)):
        table.add_column(name, justify="right")
    for name, epoch in (("last", log[-1]), ("best", best)):
        table.add_row(
            name, str(epoch.epoch), f"{epoch.train_accuracy:.2%}", f"{epoch.test_accuracy:.2%}",
            f"{epoch.test_top5:.2%}", f"{epoch.test_loss:.4f}", f"{epoch.images_per_second:.0f}",
            f"{epoch.data_wait:.1%}", f"{epoch.peak_memory / 2**30:.2f} GiB", f"{epoch.flops_per_second / 1e9:.0f}",
            "-" if epoch.mfu is None else f"{epoch.mfu:.1%}",
            *("-" if (value := getattr(epoch, field)) is None else f"{value:.4f}" for _, field in maps),
        )  # fmt: skip
    console.print(table)


def draw_curves(log: list[Epoch], path: Path) -> None:
    """Loss and accuracy, of training and test, and the learning rate, by epoch, as a PNG; those of maps if there."""
    epochs = [epoch.epoch for epoch in log]
    lines: list[list[tuple[str, list[float]]]] = [
        [("training", [e.loss for e in log]), ("test", [e.test_loss for e in log])],
        [("training", [100 * e.train_accuracy for e in log]), ("test", [100 * e.test_accuracy for e in log])],
        [("", [e.lr for e in log])],
    ]
    titles = ["loss", "top-1, %", "learning rate"]
    for title, name in MAPS.items():
        values = [getattr(epoch, name) for epoch in log]
        if any(value is not None for value in values):
            titles.append(title)
            lines.append([("", [math.nan if value is None else value for value in values])])
    figure = Figure(figsize=(3.7 * len(titles), 3.4), layout="constrained")
    for axis, title, series in zip(figure.subplots(1, len(titles)), titles, lines, strict=True):
        for name, values in series:
            axis.plot(epochs, values, marker="." if len(log) < 40 else "", label=name or None)
        axis.set_title(title)
        axis.set_xlabel("epoch")
        axis.grid(alpha=0.3)
        if len(series) > 1:
            axis.legend(frameon=False)
    figure.savefig(path, dpi=150)


class Board:
    """TensorBoard's events in ``folder``; nothing where it is None.

    Raises ModuleNotFoundError without TensorBoard.
    """

    def __init__(self, folder: Path | None, step: int):
        self._writer: Any = None
        if folder is not None:
            import tensorboard  # noqa: F401  torch names another package where it is missing
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(folder), purge_step=step)

    def step(self, step: int, **values: float) -> None:
        if self._writer is not None:
            for name, value in values.items():
                self._writer.add_scalar(f"step/{name}", value, step)

    def epoch(self, epoch: Epoch) -> None:
        if self._writer is not None:
            for name, value in asdict(epoch).items():
                if value is not None and name not in ("epoch", "step"):
                    self._writer.add_scalar(f"epoch/{name}", value, epoch.step)
            self._writer.flush()

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
