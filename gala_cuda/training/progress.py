"""What a training shows: a bar, a line for each epoch, a table and a picture at the end, TensorBoard."""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from .meters import format_loss

NOTED_WAIT = 0.05  # share of the time; less is not worth a word in the line of an epoch
HEADROOM = 10  # of the picture of losses: times the first or most others, whichever is more
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


def best(log: Sequence[Epoch]) -> Epoch:
    """The epoch of the highest test accuracy; of equal ones that of the lowest test loss, then the earliest.

    An epoch whose test loss is no finite number comes after all others.
    """

    def rank(epoch: Epoch) -> tuple[bool, float, float]:
        sound = math.isfinite(epoch.test_loss)
        return sound, epoch.test_accuracy, -epoch.test_loss if sound else 0.0

    return max(log, key=rank)


def duration(seconds: float) -> str:
    """Such as "40 s", "1 min 40 s", "25 min", "2 h 5 min"."""
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 10:
        return f"{minutes} min {rest} s" if minutes else f"{rest} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"


def bar(console: Console) -> Progress:
    """Of one epoch's steps,  nothing where the console is no terminal."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        TextColumn("{task.fields[measured]}"),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        expand=True,
        disable=not console.is_terminal or console.quiet,
    )


def bar_text(rate: float, waiting: float, loss: float, top1: float) -> str:
    """Images a second, the share of the time spent waiting, loss and accuracy so far, beside the bar."""
    return f"{rate:.0f} image/s{_waiting(waiting)}  loss {format_loss(loss)}  top-1 {top1:.1%}"


def _waiting(share: float) -> str:
    return f"  waiting for data {share:.0%}" if share >= NOTED_WAIT else ""


def line(epoch: Epoch, epochs: int) -> str:
    """One of the ``epochs``: short, so that it fits a terminal of 80 columns unless there is more than usual to say."""
    digits = len(str(epochs))
    maps = "" if epoch.map_loss is None else f"  map loss {format_loss(epoch.map_loss)}"
    if epoch.map_similarity is not None:
        maps += f"  map rho {epoch.map_similarity:+.3f}"
    left = (epochs - epoch.epoch) * epoch.seconds / epoch.epoch
    return (
        f"epoch {epoch.epoch:{digits}}/{epochs}  loss {format_loss(epoch.loss)}  train {epoch.train_accuracy:5.1%}  "
        f"test {epoch.test_accuracy:5.1%}  {epoch.images_per_second:.0f} image/s{_waiting(epoch.data_wait)}{maps}  "
        + (f"{duration(left)} left" if epoch.epoch < epochs else f"done in {duration(epoch.seconds)}")
    )


def print_summary(log: list[Epoch], console: Console) -> None:
    """The last and the best epoch, side by side."""
    chosen = (log[-1], best(log))
    rows: list[tuple[str, Callable[[Epoch], str]]] = [
        ("epoch", lambda epoch: str(epoch.epoch)),
        ("top-1 in training", lambda epoch: f"{epoch.train_accuracy:.2%}"),
        ("top-1 in the test", lambda epoch: f"{epoch.test_accuracy:.2%}"),
        ("top-5 in the test", lambda epoch: f"{epoch.test_top5:.2%}"),
        ("loss in the test", lambda epoch: format_loss(epoch.test_loss)),
        ("images a second", lambda epoch: f"{epoch.images_per_second:.0f}"),
        ("waiting for data", lambda epoch: f"{epoch.data_wait:.1%}"),
        ("memory", lambda epoch: f"{epoch.peak_memory / 2**30:.2f} GiB"),
        ("GFLOP/s", lambda epoch: f"{epoch.flops_per_second / 1e9:.0f}"),
    ]
    if any(epoch.mfu is not None for epoch in chosen):
        rows.append(("share of the peak (MFU)", lambda epoch: "-" if epoch.mfu is None else f"{epoch.mfu:.1%}"))
    for title, name in MAPS.items():
        values = [getattr(epoch, name) for epoch in chosen]
        if any(value is not None for value in values):
            rows.append((title, lambda epoch, name=name: _or_dash(getattr(epoch, name))))  # type: ignore[misc]
    table = Table("", title=f"{len(log)} epochs, {log[-1].step} steps, {duration(log[-1].seconds)}")
    for head in ("last", "best"):
        table.add_column(head, justify="right")
    for title, text in rows:
        table.add_row(title, *map(text, chosen))
    console.print(table)


def _or_dash(value: float | None) -> str:
    return "-" if value is None else format_loss(value)


def draw_curves(log: Sequence[Epoch], path: Path) -> None:
    """Loss and accuracy, of training and test, and the learning rate, by epoch, as a PNG; those of maps if there.

    A loss that spans more than a decade has a logarithmic axis; a spike beyond it is told in the title.
    """
    epochs = [epoch.epoch for epoch in log]
    panels: list[tuple[str, list[tuple[str, list[float]]]]] = [
        ("loss", [("training", [e.loss for e in log]), ("test", [e.test_loss for e in log])]),
        (
            "top-1, %",
            [("training", [100 * e.train_accuracy for e in log]), ("test", [100 * e.test_accuracy for e in log])],
        ),
        ("learning rate", [("", [e.lr for e in log])]),
    ]
    for title, name in MAPS.items():
        values = [getattr(epoch, name) for epoch in log]
        if any(value is not None for value in values):
            panels.append((title, [("", [math.nan if value is None else value for value in values])]))
    figure = Figure(figsize=(3.7 * len(panels), 3.4), layout="constrained")
    for axis, (title, series) in zip(figure.subplots(1, len(panels)), panels, strict=True):
        for name, values in series:
            axis.plot(epochs, values, marker="." if len(log) < 40 else "", label=name or None)
        axis.set_title(title)
        axis.set_xlabel("epoch")
        axis.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axis.grid(alpha=0.3)
        if len(series) > 1:
            axis.legend(frameon=False)
        if title.endswith("loss"):
            _scale_losses(axis, title, [value for _, values in series for value in values])
    figure.savefig(path, dpi=150)


def _scale_losses(axis: Axes, title: str, losses: list[float]) -> None:
    """Logarithmic, where they span more than a decade; a spike far above the first loss and most others is cut off."""
    shown = [loss for loss in losses if math.isfinite(loss) and loss > 0]
    if not shown:
        return
    usual = HEADROOM * max(shown[0], sorted(shown)[3 * len(shown) // 4])
    high = max(shown)
    if high > usual:
        axis.set_title(f"{title} (up to {high:.1e})")
        high = usual
    if high > 10 * min(shown):
        axis.set_yscale("log", nonpositive="mask")
    axis.set_ylim(top=1.2 * high)


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
