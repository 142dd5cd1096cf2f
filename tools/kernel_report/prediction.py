"""Predicts how long the Triton kernels take on a GPU that is not there: `python -m tools.kernel_report.prediction`.

It needs Triton but no GPU: the kernels are compiled for it, and the warps of a multiprocessor are walked through their
machine code (multiprocessor.py says how, rates.py at which rates). docs/gpu.md says how far off such predictions were
where a GPU had measured. `--record` keeps the result where a test looks for a prediction of the kernels as they are.
"""

import argparse
import datetime
import json
import os
import sys
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import torch
import triton
from rich.console import Console
from rich.progress import track

from . import inductor, passes, tables
from .bounds import Kernel
from .fingerprint import RECORDS, fingerprint
from .launches import Launch
from .machine_code import Code, disassembled
from .passes import Pass
from .rates import ALONE, GPUS, LAUNCH, Gpu

PAPER = (256, 1024, 14, 14)
NOTE = "a prediction, not measured"  # on each line
INTRODUCTION = (
    "Under predicted stands what the walk through the machine code gives, before it the bounds by themselves: what the "
    "schedulers issue, shared memory, tensor cores, L2, memory, and programs one after the other, each alone on its "
    "multiprocessor. A pass has a launch added for each kernel. [README.md](README.md) says how far off that was."
)
PASSES = (
    "says", "x", "pass", "launches", "predicted, us", "floor, us", "over it", "torch.compile at least, us", "ratio"
)  # fmt: skip
KERNELS = (
    "says", "kernel", "programs", "waves", "registers", "on an SM", "turns", "instructions", "L2, MB", "memory, MB",
    "issue", "shared", "tensor", "L2", "memory", "alone", "set by", "predicted, us", "measured before, us",
)  # fmt: skip


class Problem(NamedTuple):
    """What is predicted of one shape of x."""

    name: str
    passes: dict[str, Pass]
    bound: dict[str, float]  # microseconds that torch.compile's kernels need at least, by pass


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parse(arguments)
    gpu = GPUS[options.gpu]
    plans = [passes.plan((n, *stage), gpu) for stage in passes.STAGES for n in passes.BATCHES]
    plans = [plan for plan in plans if not options.shapes or plan.shape in options.shapes]
    code = _compiled([each.launch for plan in plans for each in plan.launches], options.jobs)
    problems = []
    for plan in track(plans, "predicting", console=Console(stderr=True)):
        bound = _torch_compile(plan.shape, gpu)
        problems.append(Problem(_name(plan.shape), passes.passes(plan, code.__getitem__, gpu), bound))
    console = Console(width=None if sys.stdout.isatty() else 220)
    for title, columns, lines in _tables(problems, gpu, options.measured):
        tables.show({title: lines}, columns, [], NOTE, console)
    if options.record:
        _record(problems, gpu, options.measured, options.record)
    return 0


def _compiled(launches: list[Launch], jobs: int) -> dict[Launch, tuple[Code, str]]:
    """The code and listing of each different launch. Raises RuntimeError for one that does not compile."""
    different = list(dict.fromkeys(launches))
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        code = track(pool.map(disassembled, different), "compiling", len(different), console=Console(stderr=True))
        found = dict(zip(different, code, strict=True))
    kept = {}
    for launch, each in found.items():
        if isinstance(each, str):
            raise RuntimeError(f"{launch.kernel} does not compile for sm_{launch.arch}: {each}")
        kept[launch] = each
    return kept


def _torch_compile(shape: passes.Shape, gpu: Gpu) -> dict[str, float]:
    forward, backward = inductor.compiled_kernels(shape, passes.REDUCTION, gpu)
    return {"forward": inductor.least_time(forward, gpu), "both": inductor.least_time(forward + backward, gpu)}


def _tables(problems: list[Problem], gpu: Gpu, measured: Path | None) -> list[tuple[str, tuple[str, ...], list]]:
    """Title, columns and lines of the table of passes, and of the kernels of the paper's shape."""
    lines = [_pass_line(each, kind) for each in problems for kind in each.passes]
    found: list[tuple[str, tuple[str, ...], list]] = [(f"{gpu.name}, bfloat16, channels_last: passes", PASSES, lines)]
    for each in problems:
        if each.name in (_name(PAPER), _name((32, *PAPER[1:])), _name((1, *PAPER[1:]))):
            times = _measured(measured, each.name)
            numbers: Counter[str] = Counter()
            lines = []
            for kernel in each.passes["both"].kernels:
                numbers[kernel.name] += 1
                title = f"{kernel.name} {numbers[kernel.name]}" if numbers[kernel.name] > 1 else kernel.name
                lines.append(_kernel_line(title, kernel, times.get(title)))
            found.append((f"{gpu.name}: kernels at {each.name}, forward and backward; bounds in us", KERNELS, lines))
    return found


def _pass_line(problem: Problem, kind: str) -> tuple[str, ...]:
    found, bound = problem.passes[kind], problem.bound[kind]
    return (
        NOTE,
        problem.name,
        kind,
        str(len(found.kernels)),
        f"{found.total:.0f}",
        f"{found.floor:.0f}",
        f"{found.total / found.floor:.1f}",
        f"{bound:.0f}",
        f"{found.total / bound:.2f}",
    )


def _kernel_line(title: str, kernel: Kernel, measured: float | None) -> tuple[str, ...]:
    bounds = kernel.bounds
    return (
        NOTE,
        title,
        str(kernel.programs),
        f"{kernel.waves:.1f}",
        str(kernel.registers),
        str(kernel.resident),
        " / ".join(map(_turns, kernel.turns)),
        " / ".join(map(str, kernel.instructions)),
        f"{kernel.bytes_l2 / 1e6:.0f}",
        f"{kernel.bytes_memory / 1e6:.0f}",
        *(f"{value:.1f}" for value in bounds[:-1]),
        bounds.set_by,
        f"{bounds.walked:.1f}",
        "" if measured is None else f"{measured:.1f}",
    )


def _turns(turns: Any) -> str:
    """Such as "1 of (16), 0": a loop of one turn with one of 16 inside, and one that does not turn."""
    found = [str(each) if isinstance(each, int) else _turns(each[:1]) + _inner(each[1]) for each in turns]
    return ", ".join(found) or "-"


def _inner(turns: Any) -> str:
    return f" of ({_turns(turns)})" if turns else ""


def _measured(path: Path | None, name: str) -> dict[str, float]:
    """Microseconds of kernels timed by themselves, less what that adds, from a kernels.json of `make gpu`."""
    step = f"triton {name} bfloat16 channels_last"
    steps = json.loads(path.read_text())["steps"] if path else {}
    if step not in steps:
        return {}
    return {kernel: 1e6 * (time - ALONE) for kernel, time in steps[step]["result"]["seconds"]["warm"].items()}


def _record(problems: list[Problem], gpu: Gpu, measured: Path | None, folder: Path) -> None:
    """Writes the tables, and everything behind them, under the day and the kernels' fingerprint."""
    found = {
        "note": NOTE,
        "kernels": fingerprint(),
        "versions": {"triton": triton.__version__, "torch": torch.__version__},
        "gpu": gpu._asdict(),
        "launch_us": 1e6 * LAUNCH,
        "problems": {each.name: {kind: _entry(each, kind) for kind in each.passes} for each in problems},
    }
    name = f"{datetime.datetime.now(datetime.timezone.utc).date()}-{gpu.name}-{fingerprint()}"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(_lines(found) + "\n")
    text = [f"# Predicted for the {gpu.name}", f"With Triton {triton.__version__}. {INTRODUCTION}"]
    text += [tables.markdown(*table) for table in _tables(problems, gpu, measured)]
    (folder / f"{name}.md").write_text("\n\n".join(text) + "\n")


def _lines(value: Any, depth: int = 5) -> str:
    """JSON with a line for each value down to some depth, which for a record is a kernel."""
    if not depth or not isinstance(value, dict | list) or not value:
        return json.dumps(value)
    if isinstance(value, list):
        return "[\n" + ",\n".join(json.dumps(each) for each in value) + "\n]"
    return "{\n" + ",\n".join(f"{json.dumps(name)}: {_lines(each, depth - 1)}" for name, each in value.items()) + "\n}"


def _entry(problem: Problem, kind: str) -> dict[str, Any]:
    found = problem.passes[kind]
    entry = {
        "predicted_us": round(found.total, 1),
        "floor_us": round(found.floor, 1),
        "torch_compile_at_least_us": round(problem.bound[kind], 1),
        "launches": len(found.kernels),
    }
    return entry | ({"kernels": [kernel.entry for kernel in found.kernels]} if kind == "both" else {})


def _name(shape: passes.Shape) -> str:
    return "x".join(map(str, shape))


def _shape(text: str) -> passes.Shape:
    n, c, height, width = map(int, text.split("x"))
    return n, c, height, width


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="prediction", description=__doc__)
    parser.add_argument("--gpu", choices=GPUS, default="H200", help="default: %(default)s")
    parser.add_argument("--shapes", nargs="+", type=_shape, default=[], metavar="NxCxHxW", help="default: all 16")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes that compile; default: %(default)s")
    parser.add_argument("--measured", type=Path, help="a kernels.json of `make gpu`, whose times stand beside")
    parser.add_argument("--record", nargs="?", type=Path, const=RECORDS, metavar="FOLDER", help="keep the result")
    options = parser.parse_args(arguments)
    if triton.knobs.runtime.interpret:
        parser.error("TRITON_INTERPRET is set, expected unset: the interpreter compiles nothing")
    known = {(n, *stage) for stage in passes.STAGES for n in passes.BATCHES}
    if unknown := [shape for shape in options.shapes if shape not in known]:
        parser.error(f"--shapes {' '.join(map(_name, unknown))}, expected of {' '.join(map(_name, sorted(known)))}")
    return options


if __name__ == "__main__":
    sys.exit(main())
