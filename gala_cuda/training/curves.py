"""The curves of a training as a picture."""

import math
from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from .epoch import MAP_FIELDS, Epoch

HEADROOM = 10  # the highest loss drawn, over the first or most others, whichever is more


def draw_curves(log: Sequence[Epoch], path: Path) -> None:
    """Draws loss and accuracy, of training and test, the learning rate, and what there is of maps, by epoch, as a PNG.

    A loss that spans more than a factor of 10 has a logarithmic axis; the title tells of a spike that is cut off.
    """
    epochs = [epoch.epoch for epoch in log]
    panels: list[tuple[str, list[tuple[str, list[float]]]]] = [
        ("loss", [("training", [e.loss for e in log]), ("test", [e.test_loss for e in log])]),
        _accuracy(log),
        ("learning rate", [("", [e.lr for e in log])]),
    ]
    for title, name in MAP_FIELDS.items():
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


def _accuracy(log: Sequence[Epoch]) -> tuple[str, list[tuple[str, list[float]]]]:
    tested = [100 * epoch.tested for epoch in log]
    if log[-1].test_map is not None:
        return "mAP in the test, %", [("", tested)]
    trained = [math.nan if epoch.train_accuracy is None else 100 * epoch.train_accuracy for epoch in log]
    return "top-1, %", [("training", trained), ("test", tested)]


def _scale_losses(axis: Axes, title: str, losses: list[float]) -> None:
    """Makes the axis logarithmic where losses span more than a factor of 10, and cuts off spikes far above most."""
    drawn = [loss for loss in losses if math.isfinite(loss) and loss > 0]
    if not drawn:
        return
    limit = HEADROOM * max(drawn[0], sorted(drawn)[3 * len(drawn) // 4])
    high = max(drawn)
    if high > limit:
        axis.set_title(f"{title} (up to {high:.1e})")
        high = limit
    if high > 10 * min(drawn):
        axis.set_yscale("log", nonpositive="mask")
    axis.set_ylim(top=1.2 * high)
