"""Shows the results as the paper's table and as pictures."""

import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table
from scipy import stats

from gala_cuda.clickme.score import mean_over_layers
from gala_cuda.inspection.sheet import overlay
from gala_cuda.models.attention_maps import attention_maps, input_gradient

from .cells import held_out, trained
from .scenes import CLASSES
from .settings import TEST_SEED, Cell, Settings

Results = list[dict[str, Any]]
COLOURS = {"ResNet": "#777777", "SE-ResNet": "#b38a3c", "GALA": "#3c78b3", "GALA, ClickMe": "#b33c5c"}
EXAMPLES = 6


def best_level(results: Results) -> float:
    """The λ above 0 of the lowest mean error on the validation scenes."""
    levels = sorted({result["level"] for result in results} - {0.0})
    return min(levels, key=lambda level: statistics.mean(r["val"]["error"] for r in results if r["level"] == level))


def rows(results: Results) -> dict[str, Results]:
    """The paper's four rows, each with its seeds in order."""
    chosen = {
        "ResNet": ("resnet", 0.0), "SE-ResNet": ("se_resnet", 0.0), "GALA": ("gala_resnet", 0.0),
        "GALA, ClickMe": ("gala_resnet", best_level(results)),
    }  # fmt: skip
    return {title: _of(results, kind, level) for title, (kind, level) in chosen.items()}


def summary(results: Results) -> list[dict[str, Any]]:
    """One entry for each kind of network and λ: mean and standard deviation over seeds, all in percent but p.

    `difference` is the mean over seeds of the test error minus that of GALA without human maps and the same seed,
    with its 95 % interval (paired t).
    """
    plain = _of(results, "gala_resnet", 0.0)
    found = []
    for kind, level in dict.fromkeys((result["kind"], result["level"]) for result in results):
        cells = _of(results, kind, level)
        entry: dict[str, Any] = {"kind": kind, "level": level, "seeds": len(cells)}
        entry["val_error"] = _spread([100 * cell["val"]["error"] for cell in cells])
        entry["error"] = _spread([100 * cell["test"]["error"] for cell in cells])
        entry["deceived"] = _spread([100 * cell["test"]["deceived"] for cell in cells])
        for maps in ("attention", "saliency"):
            if maps in cells[0]["test"]:
                entry[maps] = _spread([100 * cell["test"][maps]["ratio"] for cell in cells])
                entry[maps]["largest_p"] = max(cell["test"][maps]["p"] for cell in cells)
        if len(cells) > 1 and cells != plain:
            pairs = zip(cells, plain, strict=True)
            entry["difference"] = _paired([100 * (a["test"]["error"] - b["test"]["error"]) for a, b in pairs])
        found.append(entry)
    return found


def show(results: Results, console: Console) -> None:
    """Prints the table, one row for each λ; that of the chosen λ is marked."""
    chosen = best_level(results)
    seeds = len({result["seed"] for result in results})
    legend = (
        f"mean ± standard deviation of {seeds} seeds, in percent; *: λ of the lowest validation error; **: p < 0.01 in "
        "every seed; difference: of the error from GALA with λ = 0, with its 95 % interval"
    )
    table = Table("network", "λ", title=legend)
    for name in ("top-1 error", "answers of the background", "maps: attention", "maps: input gradient", "difference"):
        table.add_column(name, justify="right")
    for entry in summary(results):
        gala = entry["kind"] == "gala_resnet"
        level = f"{entry['level']:g}{'*' if gala and entry['level'] == chosen else ''}" if gala else ""
        table.add_row(
            entry["kind"], level, _text(entry["error"]), _text(entry["deceived"]), _text(entry.get("attention")),
            _text(entry.get("saliency")), _interval(entry.get("difference")),
        )  # fmt: skip
    console.print(table)


def draw_results(results: Results, path: Path) -> None:
    """Error and map score of the paper's four rows, seed by seed, and both by λ."""
    figure = Figure(figsize=(12, 3.6), layout="constrained")
    error, maps, errors, scores = figure.subplots(1, 4, gridspec_kw={"width_ratios": (1, 1, 1.2, 1.2)})
    _points(error, rows(results), lambda test: 100 * test["error"], "o")
    _points(maps, rows(results), lambda test: 100 * test["saliency"]["ratio"], "o", filled=False)
    _points(maps, rows(results), lambda test: 100 * test["attention"]["ratio"] if "attention" in test else None, "o")
    maps.axhline(0, color="#cccccc", linewidth=0.8, zorder=0)
    _by_level(errors, results, {"test": lambda cell: cell["test"]["error"], "validation": lambda c: c["val"]["error"]})
    kinds = {"attention": "attention", "saliency": "input gradient"}
    _by_level(scores, results, {title: _score_of(kind) for kind, title in kinds.items()})
    titles = ("top-1 error, %", "map score (filled: attention)", "GALA: top-1 error by λ, %", "GALA: map score by λ")
    for axes, title in zip((error, maps, errors, scores), titles, strict=True):
        axes.set_title(title, fontsize=10)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)


def draw_examples(results: Results, settings: Settings, folder: Path, path: Path) -> None:
    """Test scenes, one of each class, with their human maps and where each network of the first seed looks."""
    images = held_out(settings.test, settings.pixels, TEST_SEED)
    chosen = [int((images.labels == label).nonzero()[0]) for label in range(min(EXAMPLES, len(CLASSES)))]
    labels, cues = images.labels[chosen], images.scenes.cues[chosen]
    pixels = torch.stack([images.read(index, 0).image for index in chosen])
    maps = {"human map": images.heatmaps[chosen][:, 0]}
    for title, cells in rows(results).items():
        first = cells[0]
        model = trained(Cell(first["kind"], first["level"], first["seed"]), folder)
        _, attention = attention_maps(model, pixels)
        if attention:
            maps[f"{title}\nattention"] = mean_over_layers(attention, pixels.shape[2:])
        maps[f"{title}\ngradient"] = input_gradient(model, pixels, labels)
    titles = [f"{CLASSES[label]}\non {CLASSES[cue]}" for label, cue in zip(labels, cues, strict=True)]
    overlay(pixels, maps, titles).savefig(path, dpi=120)


def _of(results: Results, kind: str, level: float) -> Results:
    found = [result for result in results if (result["kind"], result["level"]) == (kind, level)]
    return sorted(found, key=lambda result: result["seed"])


def _spread(values: Sequence[float]) -> dict[str, float]:
    return {"mean": statistics.mean(values), "sd": statistics.stdev(values) if len(values) > 1 else 0.0}


def _paired(differences: Sequence[float]) -> dict[str, float]:
    low, high = stats.ttest_1samp(differences, 0.0).confidence_interval(0.95)
    return {"mean": statistics.mean(differences), "low": float(low), "high": float(high)}


def _text(spread: dict[str, float] | None) -> str:
    if spread is None:
        return "-"
    stars = "**" if spread.get("largest_p", 1.0) < 0.01 else ""
    return f"{spread['mean']:.1f} ± {spread['sd']:.1f}{stars}"


def _interval(difference: dict[str, float] | None) -> str:
    return "-" if difference is None else "{mean:+.1f} ({low:+.1f} to {high:+.1f})".format(**difference)


def _points(
    axes: Axes, by_title: dict[str, Results], value: Callable[[dict], float | None], marker: str, filled: bool = True
) -> None:
    for place, (title, cells) in enumerate(by_title.items()):
        values = [found for cell in cells if (found := value(cell["test"])) is not None]
        colour = COLOURS[title]
        face = colour if filled else "none"
        axes.scatter([place] * len(values), values, 28, facecolors=face, edgecolors=colour, marker=marker, alpha=0.8)
        if values:
            axes.hlines(statistics.mean(values), place - 0.25, place + 0.25, color=colour)
    axes.set_xticks(range(len(by_title)), [title.replace(", ", "\n") for title in by_title], fontsize=8)
    axes.set_xlim(-0.6, len(by_title) - 0.4)


def _score_of(kind: str) -> Callable[[dict], float]:
    return lambda cell: cell["test"][kind]["ratio"]


def _by_level(axes: Axes, results: Results, lines: dict[str, Callable[[dict], float]]) -> None:
    levels = sorted({result["level"] for result in results})
    places = range(len(levels))
    for (title, value), colour in zip(lines.items(), ("#b33c5c", "#777777"), strict=True):
        spreads = [_spread([100 * value(cell) for cell in _of(results, "gala_resnet", level)]) for level in levels]
        means, deviations = ([spread[key] for spread in spreads] for key in ("mean", "sd"))
        axes.errorbar(places, means, deviations, marker="o", markersize=4, capsize=2, color=colour, label=title)
    axes.set_xticks(places, [f"{level:g}" for level in levels])
    axes.set_xlabel("λ")
    axes.legend(frameon=False, fontsize=8)
