"""Prints the results of the GPU suite as tables."""

from collections import defaultdict
from typing import Any

from rich.console import Console
from rich.table import Table

from . import records
from .floors import PASSES
from .operators import MODES

Records = dict[str, dict[str, Any]]
SHOWN = 6  # reasons for omissions


def show(found: Records, console: Console) -> None:
    """Prints one table for each part that has results, then failures and omissions with their reasons."""
    for environment in _environments(found):
        versions = ", ".join(f"{name} {version}" for name, version in environment["versions"].items() if version)
        console.print(f"{environment['device']}; driver {environment['driver']}; {versions}; {environment['commit']}")
    for table in (_prepare, _kernels, _machine, _operators, _correctness, _networks, _robustness):
        made = table(found)
        if made is not None:
            console.print(made)
    for part, step, reason in records.entries(found, "failed"):
        console.print(f"[bold red]failed[/] {part}, {step}: {reason}", highlight=False)
    _omissions(found, console)


def _environments(found: Records) -> list[dict[str, Any]]:
    different: list[dict[str, Any]] = []
    for record in found.values():
        different += [environment for environment in record["environments"] if environment not in different]
    return different


def _results(found: Records, *parts: str) -> list[tuple[str, dict[str, Any]]]:
    chosen = {part: found[part] for part in parts if part in found}
    return [(step, result) for _, step, result in records.entries(chosen, "result")]


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left")
    for i, column in enumerate(columns):
        table.add_column(column, justify="right" if i else "left", no_wrap=not i)
    return table


def _prepare(found: Records) -> Table | None:
    table = _table("Prepared", "extension", "kernels needed", "compiled", "seconds", "CPU seconds", "processes")
    for _, result in _results(found, "prepare"):
        figures = (f"{result[key]:.0f}" if key in result else "-" for key in ("seconds", "cpu_seconds", "processes"))
        last = result["extension"].splitlines()[-1]
        table.add_row(last, str(result["needed"]), str(sum(result["compiled"].values())), *figures)
    return table if table.rows else None


def _kernels(found: Records) -> Table | None:
    """Microseconds of each kernel by itself."""
    table = _table("Kernels alone, microseconds", "case", "kernel", "L2 cold", "L2 warm", "in calls")
    for step, result in _results(found, "kernels"):
        times = result["seconds"]
        for kernel in next(iter(times.values())):
            cells = (
                f"{1e6 * times[mode][kernel]:.4g}" if mode in times else "-" for mode in ("cold", "warm", "in calls")
            )
            table.add_row(step, kernel, *cells)
            step = ""
    return table if table.rows else None


def _machine(found: Records) -> Table | None:
    table = _table("Machine", "", "measured")
    for step, result in _results(found, "machine"):
        if "bytes_per_second" in result:
            table.add_row(step, f"{result['bytes_per_second'] / 1e12:.3g} TB/s")
        elif "flops_per_second" in result:
            table.add_row(step, f"{result['flops_per_second'] / 1e12:.3g} TFLOP/s")
        else:
            table.add_row("device", result["name"])
    return table if table.rows else None


def _correctness(found: Records) -> Table | None:
    table = _table(
        "Worst error against float64", "backend, dtype, layout", "problems", "result", "error", "of tolerance"
    )
    for step, result in _results(found, "correctness"):
        name, worst = max(result["worst"].items(), key=lambda item: item[1]["share"])
        table.add_row(step, str(result["problems"]), name, f"{worst['error']:.1e}", f"{worst['share']:.2f}")
    return table if table.rows else None


def _robustness(found: Records) -> Table | None:
    table = _table("Robustness", "check", "")
    steps = found.get("robustness", {"steps": {}})["steps"]
    for step, entry in steps.items():
        if "result" in entry or "failed" in entry:
            table.add_row(step, "[red]failed[/]" if "failed" in entry else "passed")
    return table if table.rows else None


def _operators(found: Records) -> Table | None:
    """Times in microseconds, cold where known; ratios of the fused backends in the same case."""
    results = _results(found, "operators", "shapes")
    if not results:
        return None
    names = list(dict.fromkeys(name for _, result in results for name in result["errors"]))
    table = _table("Microseconds for one call", "case", "L2", "pass", *names, "vs compile", "vs eager", "over floor")
    for step, result in results:
        mode = [mode for mode in MODES if mode in result["times"]][-1]
        for kind in PASSES:
            times = result["times"][mode].get(kind)
            if times is None:
                continue
            cells = [f"{1e6 * times[name]['median']:.4g}" if name in times else "-" for name in names]
            table.add_row(step if kind == PASSES[0] else "", mode, kind, *cells, *_ratios(result, mode, kind))
    return table


def _ratios(result: dict[str, Any], mode: str, kind: str) -> list[str]:
    """Ratios of the fastest fused backend to the fastest compiled formula, to eager and to the floor."""
    times = result["times"][mode][kind]
    fused = [name for name in times if name not in ("eager", "compile", "max-autotune", "se", "cbam")]
    if not fused:
        return ["-"] * 3
    best = min(fused, key=lambda name: times[name]["median"])
    speedup = result["speedup"][mode][kind][best]
    over = "-" if result["floor"] is None else f"{result['over_floor'][mode][kind][best]:.2f}"
    return [*(f"{speedup[base]:.2f}x" if base in speedup else "-" for base in ("compile", "eager")), over]


def _networks(found: Records) -> Table | None:
    table = _table("Training", "network", "batch", "image/s", "of plain ResNet", "of timm's SE", "peak GiB")
    for _, result in _results(found, "networks"):
        for name, rate in result.get("images_per_second", {}).items():
            peak = result["peak_bytes"][name]
            shares = (
                f"{result[key][name]:.1%}" if name in result[key] else "-" for key in ("over_plain", "over_timm_se")
            )
            memory = "-" if peak is None else f"{peak / 2**30:.2f}"
            table.add_row(name, str(result["batch"]), f"{rate:.0f}", *shares, memory)
    return table if table.rows else None


def _omissions(found: Records, console: Console) -> None:
    reasons: dict[str, list[str]] = defaultdict(list)
    for part, step, reason in records.entries(found, "left_out"):
        reasons["no time" if reason.startswith("no time") else reason].append(f"{part}, {step}")
    for _, result in _results(found, "operators", "shapes", "networks"):
        for name, reason in result.get("left_out", {}).items():
            reasons[reason].append(name)
    for step, result in _results(found, "correctness"):
        for problem, reason in result["left_out"].items():
            reasons[reason].append(f"{step}, {problem}")
    for reason, steps in reasons.items():
        different = list(dict.fromkeys(steps))
        more = f" and {len(different) - SHOWN} more" if len(different) > SHOWN else ""
        console.print(f"left out: {reason}: {'; '.join(different[:SHOWN])}{more}", style="dim", highlight=False)
