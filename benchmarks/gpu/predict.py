"""Predicts how far a first call on a GPU gets, and how long its kernels take to compile before.

Compile times are measured here, as CPU time of the processes, and divided by the number of cores of the other machine.
The seconds that steps take on a GPU are expected and not measured: a plan, never a result.
"""

import json
import math
import os
import subprocess
import sys
import tempfile
from collections import Counter, defaultdict
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from gala_cuda.backends.triton.config import Multiprocessors
from gala_cuda.diagnostics import version

from . import schedule
from .environment import ROOT
from .settings import GPU, Context
from .uses import Target, Use
from .worker import STEPS

HOPPER = Target(90, Multiprocessors(132, 228 << 10, pdl=True))
CORES = 16  # of the machine that is predicted
PREDICTED = "predicted.json"
EXTENSION_CPU_SECONDS = 150  # user and system time of the build for 90a, measured once on an Intel Xeon
LEAST = 30.0  # seconds of its longest file and of what cannot be parallel, estimated


def show(folder: Path, parts: list[str], seconds: float, compiled: int | None, console: Console) -> None:
    """Prints the table and writes it as JSON, from a process of its own in which Triton compiles.

    Args:
        compiled: How many kernels to compile; None: all that a first call of `seconds` needs.
    """
    path = (folder / PREDICTED).resolve()
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "benchmarks.gpu.predict", str(path), str(seconds), str(compiled), *parts]
    done = subprocess.run(command, cwd=ROOT, env=environment, check=False)
    if done.returncode:
        console.print("no prediction: its process ended, see above", style="red")
        return
    _print(json.loads(path.read_text()), console)


def predict(parts: list[str], seconds: float, compiled: int | None) -> dict[str, Any]:
    """For each part: steps, kernels, seconds expected on the GPU, and the steps that a first call reaches."""
    context = Context(torch.device("cuda:0"), GPU, 0, Path())
    todo = {part: STEPS[part](context) for part in parts}
    reached = schedule.expected(todo, seconds)
    with tempfile.TemporaryDirectory() as cache:
        os.environ["TRITON_CACHE_DIR"] = cache  # nothing is compiled already
        kernels = _kernels({part: [use for step in reached[part] for use in step.uses] for part in parts}, compiled)
    preparing = max(LEAST, (kernels["cpu_seconds"] + EXTENSION_CPU_SECONDS) / CORES)
    reached = schedule.expected(todo, seconds - preparing)
    return {
        "versions": {"triton": version("triton"), "torch": torch.__version__},
        "seconds": seconds,
        "cores": CORES,
        "kernels": kernels,
        "prepare": {"extension_cpu_seconds": EXTENSION_CPU_SECONDS, "seconds": preparing},
        "parts": {
            part: {
                "steps": len(steps),
                "seconds": sum(step.seconds for step in steps),
                "first_call": [step.name for step in reached[part]],
                "first_call_seconds": sum(step.seconds for step in reached[part]),
            }
            for part, steps in todo.items()
        },
    }


def _kernels(uses: dict[str, list[Use]], compiled: int | None) -> dict[str, Any]:
    """The kernels that each part needs beyond those before it, and the CPU time to compile them all.

    If only some are compiled, their mean stands for the others: that of the same kernel, or else of all.
    """
    from .compiler import EVERY_CORE, Compiler  # they need Triton

    new: dict[str, Counter[str]] = {}
    launches: dict[Any, None] = {}
    with Compiler(EVERY_CORE) as compiler:
        for part, needed in uses.items():
            found = [launch for launch in compiler.collect(needed, HOPPER) if launch not in launches]
            launches |= dict.fromkeys(found)
            new[part] = Counter(launch.kernel for launch in found)
        times, problems = defaultdict(list), []
        try:
            for done in compiler.compile(_chosen(list(launches), compiled), math.inf):
                times[done.kernel].append(done.cpu_seconds)
                problems += [f"{done.kernel}: {done.problem}"] if done.problem else []
        except BrokenProcessPool as error:
            problems.append(f"a compiling process died: {error}")
    every = [seconds for of_kernel in times.values() for seconds in of_kernel]
    mean = sum(every) / len(every) if every else 0.0
    means = {kernel: sum(of_kernel) / len(of_kernel) for kernel, of_kernel in times.items()}
    by_part = {
        part: sum(means.get(kernel, mean) * number for kernel, number in counts.items()) for part, counts in new.items()
    }
    return {
        "needed": {part: sum(counts.values()) for part, counts in new.items()},
        "compiled": len(every),
        "mean_cpu_seconds": means,
        "by_part": by_part,
        "cpu_seconds": sum(by_part.values()),
        "problems": problems,
    }


def _chosen(launches: list, number: int | None) -> list:
    """`number` launches, all if it is None: one of each kernel first, then another of each, and so on."""
    if number is None:
        return launches
    seen: Counter[str] = Counter()
    ranked = []
    for launch in launches:
        ranked.append((seen[launch.kernel], launch))
        seen[launch.kernel] += 1
    ranked.sort(key=lambda pair: pair[0])
    return [launch for _, launch in ranked[:number]]


def _print(found: dict[str, Any], console: Console) -> None:
    kernels, total = found["kernels"], found["prepare"]["seconds"]
    title = f"Predicted, not measured: a first call of {found['seconds'] / 60:.3g} minutes on a GPU with {CORES} cores"
    table = Table(title=title, title_justify="left")
    for name in ("part", "kernels", "CPU s to compile", "steps", "minutes", "in the first call", "minutes", "over at"):
        table.add_column(name, justify="left" if name == "part" else "right")
    cpu = kernels["cpu_seconds"]
    table.add_row(
        "prepare", str(sum(kernels["needed"].values())), f"{cpu:.0f}", "1", _minutes(total), "1", _minutes(total),
        _minutes(total),
    )  # fmt: skip
    for part, entry in found["parts"].items():
        total += entry["first_call_seconds"]
        table.add_row(
            part, f"{kernels['needed'][part]}", f"{kernels['by_part'][part]:.0f}", str(entry["steps"]),
            _minutes(entry["seconds"]), str(len(entry["first_call"])), _minutes(entry["first_call_seconds"]),
            _minutes(total),
        )  # fmt: skip
    console.print(table)
    every = sum(kernels["needed"].values())
    console.print(
        f"Compiled here: {kernels['compiled']} of {every} kernels for sm_{HOPPER.arch}, Triton "
        f"{found['versions']['triton']}. Prepare is their CPU time and that of the extension's build "
        f"({found['prepare']['extension_cpu_seconds']} s, measured once) over {CORES} cores. All other minutes are "
        "expectations: no GPU has run these steps.",
        highlight=False,
    )
    for problem in kernels["problems"]:
        console.print(problem, style="red", highlight=False, markup=False)


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:.1f}"


if __name__ == "__main__":
    target, most, number = sys.argv[1:4]
    answer = predict(sys.argv[4:], float(most), None if number == "None" else int(number))
    Path(target).parent.mkdir(parents=True, exist_ok=True)
    Path(target).write_text(json.dumps(answer, indent=1) + "\n")
