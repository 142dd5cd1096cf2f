"""Results of the benchmark as tables, JSON and a bar chart."""

import itertools
import json
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from .. import backends
from ..diagnostics import dtype_name
from .peers import BASELINES
from .suite import PASSES, Case, Result

GREYS = ("#b4bcc6", "#7d8b99", "#4c5864")  # baselines
COLOURS = ("#d1495b", "#edae49", "#00798c", "#66a182", "#8d5a97")


def print_tables(result: Result, console: Console) -> None:
    """Prints times with ratios, then memory kept for backward and errors."""
    settings = result.settings
    dtype = dtype_name(settings.dtype)
    console.print(f"{result.device}; {dtype}, {settings.layout}, reduction {settings.reduction}")
    console.print(_times(result))
    console.print(_memory(result))
    for name, reason in result.left_out.items():
        console.print(f"not timed: {name}: {reason}", style="dim")
    if result.load is not None and result.load > 0.5:
        console.print(f"the load average was {result.load:.1f} at the start: others share the cores", style="yellow")
    if not result.allocator_pinned:
        console.print("the allocator is not glibc's and could not be pinned: times may swing", style="yellow")


def write(result: Result, folder: Path) -> list[Path]:
    """Writes bench.json and bench.png into `folder`, which is made; returns both paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / "bench.json", folder / "bench.png"]
    paths[0].write_text(json.dumps(result.as_dict(), indent=1) + "\n")
    with matplotlib.rc_context({"font.size": 10, "axes.spines.top": False, "axes.spines.right": False}):
        chart(result).savefig(paths[1], dpi=150)
    return paths


def chart(result: Result) -> Figure:
    """Speed of each contestant over that of the fastest baseline, one panel for each pass."""
    width = max(8.0, 2.4 + 0.26 * len(result.cases) * (len(result.names) + 1))
    figure = Figure(figsize=(width, 7.5), layout="constrained")
    panels = figure.subplots(len(PASSES), 1, sharex=True)
    step = 0.8 / len(result.names)
    colours = dict(zip(BASELINES, GREYS, strict=True))
    colours.update(zip((name for name in result.names if name not in BASELINES), itertools.cycle(COLOURS)))
    for axes, kind in zip(panels, PASSES, strict=True):
        for i, name in enumerate(result.names):
            positions = [c + (i - (len(result.names) - 1) / 2) * step for c in range(len(result.cases))]
            speeds = [case.speedup(kind, name) for case in result.cases]
            bars = axes.bar(positions, speeds, step * 0.92, label=name, color=colours[name])
            if name not in BASELINES:
                axes.bar_label(bars, fmt="%.2f", padding=2, fontsize=8)
        axes.axhline(1, color="black", linewidth=0.8)
        axes.set_title(kind, loc="left", fontweight="bold")
        axes.set_ylabel("speed, fastest baseline = 1")
        axes.margins(x=0.01, y=0.12)
    panels[-1].set_xticks(range(len(result.cases)), [_stacked(case) for case in result.cases])
    panels[0].legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=len(result.names), frameon=False)
    dtype = dtype_name(result.settings.dtype)
    figure.suptitle(
        f"GALA block, {dtype}, {result.settings.layout}; {result.device}; {result.started[:10]}", fontsize=11
    )
    return figure


def _times(result: Result) -> Table:
    baselines = [name for name in result.names if name in BASELINES]
    fused = [name for name in result.names if name in backends.NAMES]
    table = _table("Milliseconds for one call: median ± half the interquartile range")
    table.add_column("N x C x H x W", no_wrap=True)
    table.add_column("pass", no_wrap=True)
    for name in result.names:
        table.add_column(name, justify="right", no_wrap=True)
    for name in fused:
        for baseline in baselines:
            table.add_column(f"{name} vs\n{baseline}", justify="right", no_wrap=True)
    for case in result.cases:
        for kind in PASSES:
            timings = (case.timings[kind][name] for name in result.names)
            ratios = (case.speedup(kind, name, baseline) for name in fused for baseline in baselines)
            table.add_row(
                _label(case) if kind == PASSES[0] else "",
                kind.replace("forward+", "+ "),
                *(Text.assemble(_three_digits(1e3 * t.median), (f" ±{t.spread:.0%}", "dim")) for t in timings),
                *(Text(f"{ratio:.2f}x", "bold green" if ratio >= 1 else "bold red") for ratio in ratios),
                end_section=kind == PASSES[-1],
            )
    return table


def _memory(result: Result) -> Table:
    table = _table("Kept for backward beyond x and the parameters, in sizes of x; errors against float64")
    table.add_column("N x C x H x W", no_wrap=True)
    for name in result.names:
        table.add_column(name, justify="right")
    for name in result.names:
        table.add_column(f"error of\n{name}", justify="right")
    for case in result.cases:
        kept = (f"{case.saved[name]:.3f}" for name in result.names)
        table.add_row(_label(case), *kept, *(f"{case.errors[name]:.0e}" for name in result.names))
    return table


def _table(title: str) -> Table:
    """A table with few lines, so that the usual contestants fit 80 columns."""
    return Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)


def _three_digits(number: float) -> str:
    return f"{number:.3g}" if number < 1000 else f"{number:.0f}"


def _label(case: Case) -> str:
    return "x".join(map(str, case.shape))


def _stacked(case: Case) -> str:
    n, c, height, width = case.shape
    return f"N={n}\nC={c}\n{height}x{width}"
