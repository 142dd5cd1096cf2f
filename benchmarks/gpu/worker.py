"""Does the steps that are not yet recorded, one after the other: ``python -m benchmarks.gpu.worker``, by the suite.

A process of its own, because a broken kernel can hang or poison it. A step that takes far too long ends the process,
after a trace of where it stood.
"""

import argparse
import faulthandler
import secrets
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from . import correctness, machine, networks, operators, robustness
from .environment import environment
from .records import Record, Step
from .settings import DRY_RUN, GPU, PARTS, Context

STEPS: dict[str, Callable[[Context], list[Step]]] = {
    "machine": machine.steps,
    "correctness": correctness.steps,
    "robustness": robustness.steps,
    "operators": operators.steps,
    "networks": networks.steps,
    "shapes": operators.other_steps,
}
PATIENCE = (60.0, 5.0)  # a step may take so many seconds, and so many times what is expected of it
OVERTIME = 30.0  # seconds beyond the budget that a step under way may take


def run(context: Context, parts: list[str], seconds: float) -> None:
    """Every step of ``parts`` that is not settled, in order, as far as ``seconds`` last."""
    start = time.monotonic()
    state = environment(context.device)
    for part in parts:
        record = Record(context.folder, part, state, context.as_dict())
        end = min(start + seconds, time.monotonic() + PARTS[part] * seconds)
        for step in STEPS[part](context):
            if record.settled(step.name):
                continue
            left = end - time.monotonic()
            expected = step.seconds if context.is_cuda else 0.0
            if left <= expected:
                record.leave_out(step.name, f"no time: {max(0.0, left):.0f} s left, about {expected:.0f} s needed")
                continue
            print(f"{part}: {step.name}", flush=True)
            _do(step, record, context.seed, start + seconds + OVERTIME - time.monotonic())


def _do(step: Step, record: Record, seed: int, left: float) -> None:
    limit = min(PATIENCE[0] + PATIENCE[1] * step.seconds, left)
    faulthandler.dump_traceback_later(limit, exit=True, file=sys.__stderr__)
    try:
        with record.step(step.name) as entry:
            entry["seed"] = seed
            entry["result"] = step.run()
    finally:
        faulthandler.cancel_dump_traceback_later()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parts", nargs="+", required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--dry-run", action="store_true")
    parser.add_argument("--seed", type=int)
    options = parser.parse_args()
    if options.dry_run:
        torch.set_num_threads(1)  # tiny problems gain nothing from more
    device, sizes = (torch.device("cpu"), DRY_RUN) if options.dry_run else (torch.device("cuda:0"), GPU)
    seed = secrets.randbelow(2**31) if options.seed is None else options.seed
    run(Context(device, sizes, seed, options.output), options.parts, options.seconds)


if __name__ == "__main__":
    main()
