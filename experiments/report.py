"""What the results say: tables with paired differences, and pictures."""

import statistics
from collections.abc import Callable, Iterable
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table
from scipy import stats

from gala_cuda.clickme.score import mean_over_layers
from gala_cuda.inspection.sheet import overlay
from gala_cuda.models.attention_maps import attention_maps, input_gradient

from .cells import trained
from .images import load
from .networks import gala
from .scenes import CLASSES, SceneImages
from .settings import Cell, Settings

Results = list[dict[str, Any]]
YARDSTICKS = ("ResNet", "SE-ResNet")  # that the others are compared with
EXAMPLES = 6
COLOURS = ("#b33c5c", "#3c78b3")


def summary(cells: Results) -> list[dict[str, Any]]:
    """One entry for each data set, network and λ: mean and standard deviation over seeds, all in percent but p.

    `against` holds, for each baseline, the mean over seeds of the test error minus that baseline's of the same seed,
    with its 95 % interval (paired t).
    """
    found = []
    for data, network, level in dict.fromkeys((cell["data"], cell["network"], cell["level"]) for cell in cells):
        own = select(cells, data, network, level)
        entry: dict[str, Any] = {"data": data, "network": network, "level": level, "seeds": len(own)}
        entry |= {"lr": own[0]["lr"], "decay": own[0]["decay"]}
        entry["val_error"] = _spread(100 * cell["val"]["error"] for cell in own)
        entry["error"] = _spread(100 * cell["test"]["error"] for cell in own)
        if "deceived" in own[0]["test"]:
            entry["deceived"] = _spread(100 * cell["test"]["deceived"] for cell in own)
        for maps in ("attention", "saliency"):
            if maps in own[0]["test"]:
                entry[maps] = _spread(100 * cell["test"][maps]["ratio"] for cell in own)
                entry[maps]["largest_p"] = max(cell["test"][maps]["p"] for cell in own)
        entry["against"] = {
            baseline: _paired(own, select(cells, data, baseline, 0.0)) for baseline in YARDSTICKS if baseline != network
        }
        found.append(entry)
    return found


def select(cells: Results, data: str, network: str, level: float = 0.0) -> Results:
    """The results of a network on a data set, by seed."""
    found = [cell for cell in cells if (cell["data"], cell["network"], cell["level"]) == (data, network, level)]
    return sorted(found, key=lambda cell: cell["seed"])


def show(entries: list[dict[str, Any]], console: Console) -> None:
    """Prints a table for each data set, one row for each network and λ."""
    for data in dict.fromkeys(entry["data"] for entry in entries):
        own = [entry for entry in entries if entry["data"] == data]
        seeds, maps = own[0]["seeds"], "saliency" in own[0]
        table = Table(title=f"{data}: test error and maps, mean ± standard deviation of {seeds} seeds, in percent")
        table.add_column("network")
        for name in ("lr", "decay", "λ", "error", *(f"minus {name}'s" for name in YARDSTICKS),
                     *(("of the background", "attention", "input gradient") if maps else ())):  # fmt: skip
            table.add_column(name, justify="right")
        for entry in own:
            table.add_row(
                entry["network"], f"{entry['lr']:g}", "yes" if entry["decay"] else "no", f"{entry['level']:g}",
                _text(entry["error"]), *(_interval(entry["against"].get(name)) for name in YARDSTICKS),
                *((_text(entry.get(name)) for name in ("deceived", "attention", "saliency")) if maps else ()),
            )  # fmt: skip
        console.print(table)
    console.print("in brackets: 95 % interval of the paired difference; **: p < 0.01 in every seed", highlight=False)


def draw_errors(cells: Results, path: Path) -> None:
    """The test error of each network on each data set, seed by seed."""
    data_sets = list(dict.fromkeys(cell["data"] for cell in cells))
    networks = list(dict.fromkeys(cell["network"] for cell in cells))
    figure = Figure(figsize=(3 + 1.5 * len(data_sets), 1 + 0.3 * len(networks)), layout="constrained")
    for axes, data in zip(figure.subplots(1, len(data_sets), sharey=True, squeeze=False)[0], data_sets, strict=True):
        for place, network in enumerate(networks):
            values = [100 * cell["test"]["error"] for cell in select(cells, data, network)]
            colour = COLOURS[0] if network.startswith(gala("")) else "#777777"
            axes.scatter(values, [place] * len(values), 14, color=colour, alpha=0.6, linewidths=0)
            if values:
                axes.vlines(statistics.mean(values), place - 0.35, place + 0.35, color=colour)
        axes.set_title(data, fontsize=9)
        axes.set_yticks(range(len(networks)), networks, fontsize=8)
        axes.tick_params(axis="x", labelsize=8)
        axes.set_xlim(left=0, right=1.05 * axes.get_xlim()[1])
        axes.set_ylim(len(networks) - 0.5, -0.5)
        axes.spines[["top", "right"]].set_visible(False)
    figure.supxlabel("test error, %", fontsize=9)
    figure.savefig(path, dpi=150)


def draw_levels(cells: Results, settings: Settings, path: Path) -> None:
    """Error and map score of the starts that are taught, by λ."""
    data, places = next(iter(settings.data)), sorted({0.0, *chain.from_iterable(settings.taught.values())})
    figure = Figure(figsize=(9, 3), layout="constrained")
    measures: dict[str, Callable[[dict], float]] = {
        "top-1 error, %": lambda test: test["error"],
        "map score of attention": lambda test: test["attention"]["ratio"],
        "map score of input gradients": lambda test: test["saliency"]["ratio"],
    }
    for axes, (title, value) in zip(figure.subplots(1, 3), measures.items(), strict=True):
        for (start, levels), colour in zip(settings.taught.items(), COLOURS, strict=False):
            spreads = {
                places.index(level): _spread(
                    100 * value(cell["test"]) for cell in select(cells, data, gala(start), level)
                )
                for level in (0.0, *levels)
            }
            means, deviations = ([spread[key] for spread in spreads.values()] for key in ("mean", "sd"))
            axes.errorbar(list(spreads), means, deviations, marker="o", markersize=4, capsize=2, color=colour,
                          label=start)  # fmt: skip
        axes.set_xticks(range(len(places)), [f"{level:g}" for level in places])
        axes.set_xlabel("λ")
        axes.set_title(title, fontsize=9)
        axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8, title="start", title_fontsize=8)
    figure.savefig(path, dpi=150)


def draw_examples(rows: dict[str, Cell], settings: Settings, folder: Path, path: Path) -> None:
    """Test scenes, one of each class, with their human maps and where the networks of `rows` look."""
    data, (first, *_) = next(iter(settings.data)), rows.values()
    images = load(settings.data[data], settings, first.seed).test
    assert isinstance(images, SceneImages)
    chosen = [int((images.labels == label).nonzero()[0]) for label in range(min(EXAMPLES, len(CLASSES)))]
    labels, cues = images.labels[chosen], images.scenes.cues[chosen]
    pixels = torch.stack([images.read(index, 0).image for index in chosen])
    maps = {"human map": images.heatmaps[chosen][:, 0]}
    for title, cell in rows.items():
        model = trained(cell, settings, folder)
        _, attention = attention_maps(model, pixels)
        if attention:
            maps[f"{title}\nattention"] = mean_over_layers(attention, pixels.shape[2:])
        maps[f"{title}\ngradient"] = input_gradient(model, pixels, labels)
    titles = [f"{CLASSES[label]}\non {CLASSES[cue]}" for label, cue in zip(labels, cues, strict=True)]
    overlay(pixels, maps, titles).savefig(path, dpi=120)


def best_level(cells: Results, data: str, network: str) -> float:
    """The λ above 0 of the lowest mean error on validation images."""
    levels = sorted({cell["level"] for cell in cells if cell["network"] == network} - {0.0})

    def error(level: float) -> float:
        return statistics.mean(cell["val"]["error"] for cell in select(cells, data, network, level))

    return min(levels, key=error)


def _paired(cells: Results, others: Results) -> dict[str, float]:
    pairs = zip(cells, others, strict=True)
    differences = [100 * (one["test"]["error"] - other["test"]["error"]) for one, other in pairs]
    low, high = stats.ttest_1samp(differences, 0.0).confidence_interval(0.95)
    return {"mean": statistics.mean(differences), "low": float(low), "high": float(high)}


def _spread(values: Iterable[float]) -> dict[str, float]:
    values = list(values)
    return {"mean": statistics.mean(values), "sd": statistics.stdev(values) if len(values) > 1 else 0.0}


def _text(spread: dict[str, float] | None) -> str:
    if spread is None:
        return "-"
    stars = "**" if spread.get("largest_p", 1.0) < 0.01 else ""
    return f"{spread['mean']:.1f} ± {spread['sd']:.1f}{stars}"


def _interval(difference: dict[str, float] | None) -> str:
    return "-" if difference is None else "{mean:+.1f} ({low:+.1f} to {high:+.1f})".format(**difference)
