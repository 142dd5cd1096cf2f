"""Draws the results: times by shape and batch, and images per second of whole networks."""

from collections import defaultdict
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from gala_cuda.bench.peers import BASELINES, OTHERS
from gala_cuda.bench.report import COLOURS, GREYS

from . import records
from .floors import PASSES
from .operators import MODES

STYLE: Any = {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}
Results = list[dict[str, Any]]


def draw(found: dict[str, dict[str, Any]], folder: Path) -> list[Path]:
    """Writes the pictures for which there are results into `folder`; returns their paths."""
    pictures = {}
    groups: dict[tuple[str, str], Results] = defaultdict(list)
    chosen = {part: record for part, record in found.items() if part in ("operators", "shapes")}
    for _, _, result in records.entries(chosen, "result"):
        groups[result["dtype"], result["layout"]].append(result)
    with matplotlib.rc_context(STYLE):
        for (dtype, layout), results in groups.items():
            pictures[f"times-{dtype}-{layout}.png"] = _times(results, f"{dtype}, {layout}; {_device(found)}")
        for _, _, result in records.entries({"networks": found["networks"]} if "networks" in found else {}, "result"):
            if "images_per_second" in result:  # of the last step, in which most are
                pictures["networks.png"] = _networks(result, _device(found))
        for name, figure in pictures.items():
            figure.savefig(folder / name, dpi=150)
    return [folder / name for name in pictures]


def _device(found: dict[str, dict[str, Any]]) -> str:
    return next(iter(found.values()))["environments"][-1]["device"]


def _times(results: Results, title: str) -> Figure:
    """One row for each pass, one column for each stage, lines over N; the floor dotted."""
    stages = list(dict.fromkeys(tuple(result["shape"][1:]) for result in results))
    mode = [mode for mode in MODES if all(mode in result["times"] for result in results)][-1]
    kinds = [kind for kind in PASSES if kind in results[0]["times"][mode]]
    names = list(dict.fromkeys(name for result in results for name in result["errors"]))
    colours = _colours(names)
    figure = Figure(figsize=(3 + 3.2 * len(stages), 1 + 2.6 * len(kinds)), layout="constrained")
    panels = figure.subplots(len(kinds), len(stages), squeeze=False)
    for column, stage in enumerate(stages):
        cases = sorted((r for r in results if tuple(r["shape"][1:]) == stage), key=lambda result: result["shape"][0])
        for row, kind in enumerate(kinds):
            axes = panels[row][column]
            _lines(axes, cases, mode, kind, colours)
            if row == 0:
                axes.set_title("{} x {} x {}".format(*stage), loc="left", fontweight="bold")
            if column == 0:
                axes.set_ylabel(f"{kind}, µs")
    figure.legend(*panels[0][0].get_legend_handles_labels(), loc="outside right upper", frameon=False)
    figure.suptitle(f"GALA block: {'time of a loop' if mode == 'loop' else f'device time, {mode} L2'}; {title}")
    return figure


def _lines(axes: Axes, cases: Results, mode: str, kind: str, colours: dict[str, str]) -> None:
    for name, colour in colours.items():
        there = [case for case in cases if name in case["times"][mode][kind]]
        seconds = [case["times"][mode][kind][name]["median"] for case in there]
        batches = [case["shape"][0] for case in there]
        axes.plot(batches, [1e6 * t for t in seconds], marker="o", markersize=4, color=colour, label=name)
    floors = [(case["shape"][0], 1e6 * case["floor"][kind]["seconds"]) for case in cases if case["floor"]]
    axes.plot(*zip(*floors, strict=True), marker="_", linestyle=":", color="black", label="floor")
    axes.set(xscale="log", yscale="log", xlabel="N")
    axes.set_xticks(batches := [case["shape"][0] for case in cases], [str(n) for n in batches])
    axes.minorticks_off()


def _networks(result: dict[str, Any], device: str) -> Figure:
    rates = result["images_per_second"]
    figure = Figure(figsize=(8, 1.2 + 0.4 * len(rates)), layout="constrained")
    axes = figure.subplots()
    fused = [name for name in rates if name.startswith("GALA") and name not in ("GALA eager", "GALA compiled")]
    bars = axes.barh(
        list(rates), list(rates.values()), color=[COLOURS[0] if name in fused else GREYS[1] for name in rates]
    )
    axes.bar_label(bars, fmt="%.0f", padding=3)
    axes.invert_yaxis()
    axes.set_xlabel(f"image/s in training, {result['image']} x {result['image']}, batch {result['batch']}")
    figure.suptitle(device)
    return figure


def _colours(names: list[str]) -> dict[str, str]:
    """Baselines grey, backends and other blocks in colours that do not depend on who else is there."""
    palette = dict(zip(BASELINES, GREYS, strict=True)) | dict(zip(OTHERS, COLOURS[3:], strict=True))
    backends = [name for name in names if name not in palette]
    palette |= dict(zip(backends, COLOURS, strict=False))
    return {name: palette[name] for name in names}
