"""What a training prints: a progress bar for each epoch, then a line, and a table at the end."""

from collections.abc import Callable

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from .epoch import MAP_FIELDS, Epoch, best_epoch
from .meters import format_loss

FIGURES = {
    "top-1 in training": "train_accuracy", "top-1 in the test": "test_accuracy", "top-5 in the test": "test_top5",
    "mAP in the test": "test_map",
}  # fmt: skip
MIN_WAIT = 0.05  # fraction of the time; less waiting for data is not worth a word in the line of an epoch


def duration(seconds: float) -> str:
    """Such as "40 s", "1 min 40 s", "25 min", "2 h 5 min"."""
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 10:
        return f"{minutes} min {rest} s" if minutes else f"{rest} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"


def epoch_bar(console: Console) -> Progress:
    """A progress bar over the steps of an epoch; nothing where the console is no terminal."""
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


def bar_text(rate: float, waiting: float, loss: float, top1: float | None) -> str:
    """The text beside the bar: images per second, the fraction of the time spent waiting, loss and accuracy so far."""
    accuracy = "" if top1 is None else f"  top-1 {top1:.1%}"
    return f"{rate:.0f} image/s{_waiting(waiting)}  loss {format_loss(loss)}{accuracy}"


def _waiting(fraction: float) -> str:
    return f"  waiting for data {fraction:.0%}" if fraction >= MIN_WAIT else ""


def epoch_line(epoch: Epoch, epochs: int) -> str:
    """The line about one of `epochs` epochs; it fits 80 columns unless there is more than usual to say."""
    digits = len(str(epochs))
    maps = "" if epoch.map_loss is None else f"  map loss {format_loss(epoch.map_loss)}"
    if epoch.map_similarity is not None:
        maps += f"  map rho {epoch.map_similarity:+.3f}"
    trained = "" if epoch.train_accuracy is None else f"train {epoch.train_accuracy:5.1%}  "
    tested = f"test {epoch.tested:5.1%}" if epoch.test_map is None else f"test mAP {epoch.tested:5.1%}"
    left = (epochs - epoch.epoch) * epoch.seconds / epoch.epoch
    return (
        f"epoch {epoch.epoch:{digits}}/{epochs}  loss {format_loss(epoch.loss)}  {trained}{tested}  "
        f"{epoch.images_per_second:.0f} image/s{_waiting(epoch.data_wait)}{maps}  "
        + (f"{duration(left)} left" if epoch.epoch < epochs else f"done in {duration(epoch.seconds)}")
    )


def print_summary(log: list[Epoch], console: Console) -> None:
    """The last and the best epoch, side by side."""
    chosen = (log[-1], best_epoch(log))
    rows: list[tuple[str, Callable[[Epoch], str]]] = [
        ("epoch", lambda epoch: str(epoch.epoch)),
        *((title, lambda epoch, name=name: f"{getattr(epoch, name):.2%}") for title, name in FIGURES.items()
          if getattr(log[-1], name) is not None),
        ("loss in the test", lambda epoch: format_loss(epoch.test_loss)),
        ("images per second", lambda epoch: f"{epoch.images_per_second:.0f}"),
        ("waiting for data", lambda epoch: f"{epoch.data_wait:.1%}"),
        ("memory", lambda epoch: f"{epoch.peak_memory / 2**30:.2f} GiB"),
        ("GFLOP/s", lambda epoch: f"{epoch.flops_per_second / 1e9:.0f}"),
    ]  # fmt: skip
    if any(epoch.mfu is not None for epoch in chosen):
        rows.append(("fraction of the peak (MFU)", lambda epoch: "-" if epoch.mfu is None else f"{epoch.mfu:.1%}"))
    for title, name in MAP_FIELDS.items():
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
