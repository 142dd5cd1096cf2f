"""Part "prepare": builds the extension and compiles Triton's kernels, before all other parts.

The suite starts it in a process of its own, `python -m benchmarks.gpu.prepare`. Both are done at the same time, by all
cores; kernels that are not ready in time are compiled when they are first called.
"""

import time
from collections import Counter
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from typing import Any

import torch

from gala_cuda.backends.triton.config import multiprocessors

from . import schedule, worker
from .environment import environment
from .extension import Build, architecture, worth_building
from .records import MeasurementError, Record, Step
from .settings import Context
from .uses import Target, Use

SECONDS = 60  # expected


def steps(context: Context, uses: list[Use], seconds: float) -> list[Step]:
    return [Step("compile", partial(_compile, context, uses, seconds), SECONDS)]


def _compile(context: Context, uses: list[Use], seconds: float) -> dict[str, Any]:
    end = time.monotonic() + seconds
    reason = context.why_not("cuda", context.repeated)
    if reason is None or not worth_building():
        found = {"extension": reason or "there", **_kernels(context, uses, end)}
    else:
        with Build(architecture(torch.cuda.get_device_capability(context.device))) as build:
            kernels = _kernels(context, uses, end)
            found = {"extension": build.finish(end - time.monotonic()), **kernels}
            if build.failure:
                raise MeasurementError(f"the extension does not build: {build.failure}", found)
    if found["problems"]:
        raise MeasurementError(f"{len(found['problems'])} Triton kernels do not compile: {found['problems'][0]}", found)
    return found


def _kernels(context: Context, uses: list[Use], end: float) -> dict[str, Any]:
    if reason := context.why_not("triton", context.repeated):
        return {"needed": 0, "compiled": {}, "problems": [], "left_out": reason}
    from .compiler import EVERY_CORE, Compiler  # they need Triton

    start = time.monotonic()
    counts: Counter[str] = Counter()
    cpu_seconds, problems = 0.0, []
    target = target_of(context.device)
    with Compiler() as compiler:
        launches = compiler.collect(uses, target)
        try:
            for done in compiler.compile(launches, end - time.monotonic()):
                counts[done.kernel] += 1
                cpu_seconds += done.cpu_seconds
                if done.problem is not None:
                    problems.append(f"{done.kernel}: {done.problem}")
        except BrokenProcessPool as error:
            problems.append(f"a compiling process died: {error}")
    return {
        "needed": len(launches),
        "compiled": dict(counts),
        "problems": problems,
        "seconds": time.monotonic() - start,
        "cpu_seconds": cpu_seconds,
        "processes": EVERY_CORE,
        "architecture": target.arch,
    }


def target_of(device: torch.device) -> Target:
    major, minor = torch.cuda.get_device_capability(device)
    return Target(10 * major + minor, multiprocessors(device))


def main() -> None:
    options, context = worker.options_of(__doc__)
    state = environment(context.device)
    todo = {}
    for part in options.parts:
        record = Record(context.folder, part, state, context.as_dict(), options.call)
        todo[part] = record.to_do(worker.STEPS[part](context))
    if not any(todo.values()):
        return
    seconds = options.seconds * schedule.portion("prepare", ["prepare", *(part for part in todo if todo[part])])
    reached = schedule.expected(todo, options.seconds - min(seconds, SECONDS))
    uses = [use for steps_of_part in reached.values() for step in steps_of_part for use in step.uses]
    record = Record(context.folder, "prepare", state, context.as_dict(), options.call)
    for step in steps(context, uses, seconds):
        print(f"prepare: {step.name}", flush=True)
        worker.do(step, record, context, seconds + 30.0)


if __name__ == "__main__":
    main()
