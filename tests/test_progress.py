"""What a training shows: the best epoch, its line, the numbers, the curves."""

import io
import math

import pytest
from matplotlib.figure import Figure
from rich.console import Console

from gala_cuda.training.curves import draw_curves
from gala_cuda.training.epoch import Epoch, best_epoch
from gala_cuda.training.meters import format_loss
from gala_cuda.training.progress import duration, epoch_line, print_summary


def epoch(number, accuracy=0.5, test_loss=1.0, loss=1.0):
    return Epoch(
        epoch=number, step=21 * number, lr=0.1, loss=loss, train_accuracy=accuracy, train_top5=1.0,
        test_loss=test_loss, test_accuracy=accuracy, test_top5=1.0, images_per_second=1234.4, data_wait=0.01,
        peak_memory=2**30, flops_per_second=1e9, mfu=None, skipped=0, seconds=2.0 * number,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("results", "expected"),
    [
        pytest.param([(0.5, 1.0), (0.7, 2.0), (0.6, 0.1)], 2, id="accuracy"),
        pytest.param([(0.7, 1.9e16), (0.7, 0.4), (0.7, 0.3), (0.7, 0.3)], 3, id="ties-by-loss-then-earliest"),
        pytest.param([(0.9, math.nan), (0.5, 1.0), (0.9, math.inf)], 2, id="no-number-never-wins"),
        pytest.param([(0.5, math.nan), (0.9, math.inf)], 2, id="none-is-a-number"),
    ],
)
def test_the_best_epoch(results, expected):
    log = [epoch(number, *result) for number, result in enumerate(results, 1)]
    assert best_epoch(log).epoch == expected


@pytest.mark.parametrize(
    ("loss", "text"),
    [(0.0, "0.0000"), (2.30259, "2.3026"), (0.001, "0.0010"), (1.25e-5, "1.25e-05"), (18817104990612140.0, "1.88e+16"),
     (math.nan, "nan"), (math.inf, "inf")],
)  # fmt: skip
def test_losses_are_short(loss, text):
    assert format_loss(loss) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.2, "0 s"),
        (59.7, "1 min 0 s"),
        (100, "1 min 40 s"),
        (1490, "25 min"),
        (3599, "1 h 0 min"),
        (7490, "2 h 5 min"),
    ],
)
def test_durations(seconds, text):
    assert duration(seconds) == text


def test_lines_and_table_fit_80_columns():
    log = [epoch(1), epoch(20, loss=1.9e16)]
    assert epoch_line(log[0], 20).endswith("1234 image/s  38 s left")
    assert max(len(epoch_line(each, 20)) for each in log) <= 80
    console = Console(record=True, width=80, file=io.StringIO())
    print_summary(log, console)
    assert max(map(len, console.export_text().splitlines())) <= 80


def axes_of(log, monkeypatch, path):
    kept = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: kept.append(figure))
    draw_curves(log, path)
    kept[0].canvas.draw()
    return kept[0].axes


def test_a_spike_leaves_the_curves_readable(tmp_path, monkeypatch):
    log = [epoch(n, test_loss=1.9e16 if n == 3 else 1 / n, loss=2.3 / n) for n in range(1, 9)]
    loss, *others = axes_of(log, monkeypatch, tmp_path / "curves.png")
    low, high = loss.get_ylim()
    assert 0 < low < 1 / 8
    assert 2.3 < high < 100
    assert loss.get_title() == "loss (up to 1.9e+16)"
    assert others[0].get_yscale() == "linear"


@pytest.mark.parametrize("epochs", [1, 2, 3])
@pytest.mark.filterwarnings("error")
def test_epochs_are_whole_numbers(tmp_path, monkeypatch, epochs):
    for axis in axes_of([epoch(n + 1, loss=0.0) for n in range(epochs)], monkeypatch, tmp_path / "curves.png"):
        low, high = axis.get_xlim()
        ticks = [tick for tick in axis.get_xticks() if low <= tick <= high]
        assert ticks
        assert all(tick == round(tick) for tick in ticks)


def test_losses_that_are_no_numbers_are_drawn_as_gaps(tmp_path):
    draw_curves([epoch(1, test_loss=math.nan, loss=math.inf)], tmp_path / "curves.png")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
