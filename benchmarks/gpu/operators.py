"""Parts "operators" (the paper's shape) and "shapes" (all others): times and memory of the attention block.

Each case is one problem size, dtype and layout, in which all contestants take turns in one process. There are three
ways of timing: "loop" calls back to back by the wall clock, which includes the host's time; "warm" and "cold" are
device times with a warm and a cold L2 cache (`clock`).
"""

from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gala_cuda.bench.peers import BASELINES, OTHERS, Contestant
from gala_cuda.bench.suite import LAYOUTS
from gala_cuda.bench.timing import Timing, alternate, saved_bytes

from .clock import clock_of, device_times
from .entrants import enter
from .floors import PASSES, floors, rates
from .forms import DTYPES, Kind
from .records import MeasurementError, Step
from .settings import REDUCTION, Context
from .uses import Use

GROUPS = (("bfloat16", "channels_last"), ("float32", "channels_last"), ("bfloat16", "nchw"), ("float32", "nchw"))
MODES = ("loop", "warm", "cold")
COMPILED = BASELINES[1:]
STEP_SECONDS, AUTOTUNED_STEP_SECONDS = 30, 80

Times = dict[str, dict[str, Timing]]  # by pass and contestant


class Case(NamedTuple):
    batch: int
    stage: tuple[int, int, int]
    dtype: str
    layout: str
    autotuned: bool

    @property
    def shape(self) -> tuple[int, int, int, int]:
        return (self.batch, *self.stage)

    @property
    def title(self) -> str:
        return f"{'x'.join(map(str, self.shape))} {self.dtype} {self.layout}{' with max-autotune' * self.autotuned}"

    @property
    def kind(self) -> Kind:
        reduced = max(1, self.stage[0] // REDUCTION)
        return Kind(self.shape, reduced, DTYPES[self.dtype], self.layout)


def steps(context: Context) -> list[Step]:
    """The paper's shape in bfloat16, channels_last, at the first batches."""
    return [_step(context, Case(n, context.sizes.stages[0], *GROUPS[0], False)) for n in context.sizes.first_batches]


def other_steps(context: Context) -> list[Step]:
    """All other cases: max-autotune if it does not take too long, the other stages, then float32, then NCHW."""
    sizes = context.sizes
    first = [Case(n, sizes.stages[0], *GROUPS[0], False) for n in sizes.first_batches]
    cases = [case._replace(autotuned=True) for case in first if sizes.compiler == "inductor"]
    cases += [
        case
        for dtype, layout in GROUPS
        for batch in sizes.batches
        for stage in sizes.stages
        if (case := Case(batch, stage, dtype, layout, False)) not in first
    ]
    return [_step(context, case) for case in cases]


def _step(context: Context, case: Case) -> Step:
    seconds = AUTOTUNED_STEP_SECONDS if case.autotuned else STEP_SECONDS
    return Step(case.title, partial(_measure, context, case), seconds, uses(case.kind))


def uses(kind: Kind) -> tuple[Use, ...]:
    """The calls on the Triton backend, with and without gradients, with float32 weights."""
    return tuple(Use(kind, torch.float32, save=save) for save in (True, False))


def _measure(context: Context, case: Case) -> dict[str, Any]:
    context.start_afresh()
    x, grad = _inputs(context, case)
    field = enter(context, case.kind, x, grad, case.autotuned)

    def measure(entrants: list[Contestant]) -> tuple[dict[str, Times], dict[str, int], dict[str, int | None]]:
        times = _times(context, entrants, x, grad)
        saved = {c.name: saved_bytes(c.call, x, c.module.parameters()) for c in entrants}
        return times, saved, {c.name: _peak(c, x, grad, context) for c in entrants}

    times, saved, peaks = field.measure(measure)
    found = {
        "shape": case.shape,
        "dtype": case.dtype,
        "layout": case.layout,
        "reduction": REDUCTION,
        "left_out": field.left_out,
        "wrong": field.broken,
        "errors": field.errors,
        "saved_bytes": saved,
        "x_bytes": x.nbytes,
        "peak_bytes": peaks,
        "times": {mode: {kind: _plain(times[mode][kind]) for kind in PASSES if kind in times[mode]} for mode in times},
        "speedup": {mode: _speedups(times[mode]) for mode in times},
        **_floor(context, case, times),
    }
    if field.broken:
        raise MeasurementError("; ".join(field.broken), found)
    return found


def _inputs(context: Context, case: Case) -> tuple[Tensor, Tensor]:
    generator = torch.Generator(context.device).manual_seed(context.seed)
    x, grad = (
        torch.randn(case.shape, generator=generator, device=context.device, dtype=DTYPES[case.dtype]).to(
            memory_format=LAYOUTS[case.layout]
        )
        for _ in range(2)
    )
    return x.requires_grad_(), grad


class Training:
    """Forward and backward of a contestant as two stages."""

    def __init__(self, entrant: Contestant, x: Tensor, grad: Tensor):
        self._call, self._x, self._grad = entrant.call, x, grad
        self._leaves = [x, *entrant.module.parameters()]
        self._out: Tensor | None = None

    def forward(self) -> None:
        self._out = self._call(self._x)

    def backward(self) -> None:
        assert self._out is not None
        torch.autograd.grad(self._out, self._leaves, self._grad)
        self._out = None

    def both(self) -> None:
        self.forward()
        self.backward()


def _times(context: Context, entrants: list[Contestant], x: Tensor, grad: Tensor) -> dict[str, Times]:
    """Times by mode, pass and contestant. A loop does not time backward by itself."""
    training = {c.name: Training(c, x, grad) for c in entrants}
    inference = {c.name: _without_grad(c, x) for c in entrants}
    seconds, clock = context.sizes.seconds, clock_of(context.device)
    times: dict[str, Times] = {
        "loop": {
            "forward": alternate(inference, seconds, context.device),
            "forward+backward": alternate({name: t.both for name, t in training.items()}, seconds, context.device),
        }
    }
    for mode in MODES[1:] if context.is_cuda else ():
        forward = device_times({name: (call,) for name, call in inference.items()}, seconds, clock, mode == "cold")
        stages = {name: (t.forward, t.backward) for name, t in training.items()}
        both = device_times(stages, seconds, clock, mode == "cold")
        times[mode] = {
            "forward": {name: found[-1] for name, found in forward.items()},
            "backward": {name: found[1] for name, found in both.items()},
            "forward+backward": {name: found[2] for name, found in both.items()},
        }
    return times


def _without_grad(entrant: Contestant, x: Tensor) -> Callable[[], object]:
    return torch.no_grad()(lambda: entrant.call(x))


def _peak(entrant: Contestant, x: Tensor, grad: Tensor, context: Context) -> int | None:
    """The most bytes that forward and backward have allocated at once, beyond what was there before.

    None on the CPU, and for max-autotune, whose CUDA graphs have taken their memory for good.
    """
    if not context.is_cuda or entrant.name == "max-autotune":
        return None
    training = Training(entrant, x, grad)
    torch.cuda.synchronize(context.device)
    torch.cuda.reset_peak_memory_stats(context.device)
    before = torch.cuda.memory_allocated(context.device)
    training.both()
    torch.cuda.synchronize(context.device)
    return torch.cuda.max_memory_allocated(context.device) - before


def _speedups(times: Times) -> dict[str, dict[str, dict[str, float]]]:
    """How many times faster than eager, and than the fastest that torch.compile made, by pass and contestant."""
    found = {}
    for kind, by_name in times.items():
        medians = {name: timing.median for name, timing in by_name.items()}
        bases = {
            "eager": medians.get("eager"),
            "compile": min((medians[n] for n in COMPILED if n in medians), default=None),
        }
        found[kind] = {
            name: {base: time / median for base, time in bases.items() if time is not None}
            for name, median in medians.items()
        }
    return found


def _floor(context: Context, case: Case, times: dict[str, Times]) -> dict[str, Any]:
    """The floor of each pass, and the times of GALA's contestants over it."""
    measured = rates(context, case.dtype)
    if measured is None:
        return {"floor": None}
    floor = floors(case.shape, max(1, case.stage[0] // REDUCTION), case.dtype, measured)
    over = {
        mode: {
            kind: {name: t.median / floor[kind]["seconds"] for name, t in by_name.items() if name not in OTHERS}
            for kind, by_name in times[mode].items()
        }
        for mode in times
    }
    return {"floor": floor, "over_floor": over}


def _plain(timings: dict[str, Timing]) -> dict[str, dict[str, Any]]:
    return {name: {**asdict(timing), "spread": timing.spread} for name, timing in timings.items()}
