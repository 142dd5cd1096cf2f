"""Does the steps that are not yet recorded, one after the other; the suite starts it in a process of its own.

A broken kernel can hang a process or make it unusable. A step that takes far too long ends the process, after a trace
of where it stood, and the suite starts another one.
"""

import argparse
import secrets
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from . import correctness, kernels, machine, networks, operators, profiled, robustness, schedule
from .attempts import ContextLostError, Trials, alive, patience
from .environment import environment
from .records import Record, Step
from .settings import DRY_RUN, GPU, Context

STEPS: dict[str, Callable[[Context], list[Step]]] = {
    "kernels": kernels.steps,
    "machine": machine.steps,
    "operators": operators.steps,
    "correctness": correctness.steps,
    "networks": networks.steps,
    "robustness": robustness.steps,
    "shapes": operators.other_steps,
}
PATIENCE = (30.0, 3.0)  # a step may take so many seconds, and so many times what is expected of it
RESTART = 75  # the exit code that asks for another worker: this one can run or time nothing more
MARKER = "trying"  # the file that names the contestant being tried


def run(context: Context, parts: list[str], seconds: float, call: str = "") -> None:
    """Does every step of `parts` that is not settled, in order, as far as `seconds` allow.

    Raises SystemExit(RESTART) if nothing can run on the GPU, or be timed rightly, any more in this process.
    """
    end, state = time.monotonic() + seconds, environment(context.device)
    records = {part: Record(context.folder, part, state, context.as_dict(), call) for part in parts}
    todo = {part: records[part].to_do(STEPS[part](context)) for part in parts}
    for part, step, left in schedule.started(todo, seconds):
        record, needed = records[part], step.seconds if context.is_cuda else 0.0
        if left <= needed:
            record.leave_out(step.name, f"no time: {left:.0f} s left, about {needed:.0f} s needed")
            continue
        if profiled.profiles and part != "kernels":
            raise SystemExit(RESTART)
        print(f"{part}: {step.name}", flush=True)
        limit = (PATIENCE[0] + PATIENCE[1] * step.seconds) * patience(context.device)
        do(step, record, context, min(limit, end - time.monotonic()))


def do(step: Step, record: Record, context: Context, limit: float) -> None:
    """Does and records one step, which may take `limit` seconds."""
    context.trials.begin(record.excluded(step.name), limit)
    try:
        with record.step(step.name) as entry:
            entry["seed"] = context.seed
            entry["result"] = step.run()
    except ContextLostError as error:
        print(error, file=sys.stderr)
        raise SystemExit(RESTART) from error
    finally:
        context.trials.end()
    if not alive(context.device):
        raise SystemExit(RESTART)


def options_of(description: str | None) -> tuple[argparse.Namespace, Context]:
    """The options of the worker's command line, and the context of its steps."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--parts", nargs="+", required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--call", default="", help="what tells this call of the suite from others")
    parser.add_argument("--dry-run", action="store_true")
    parser.add_argument("--seed", type=int)
    options = parser.parse_args()
    if options.dry_run:
        torch.set_num_threads(1)  # tiny problems gain nothing from more
    device, sizes = (torch.device("cpu"), DRY_RUN) if options.dry_run else (torch.device("cuda:0"), GPU)
    seed = secrets.randbelow(2**31) if options.seed is None else options.seed
    return options, Context(device, sizes, seed, options.output, Trials(device, options.output / MARKER))


if __name__ == "__main__":
    chosen, context = options_of(__doc__)
    run(context, chosen.parts, chosen.seconds, chosen.call)
