"""One run of the benchmark: each shape is checked, then timed, and what is kept for backward is measured."""

import datetime
import importlib.util
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, field

import torch
from torch import Tensor
from torch._inductor.exc import InductorError

from .. import backends
from ..diagnostics import describe, doctor, dtype_name
from ..errors import GalaError
from ..layer import GALA
from ..testing import clear_ties
from .correctness import check
from .peers import BASELINES, NAMES, OTHERS, Contestant, contestant, default_names
from .timing import Timing, alternate, pin_allocator, saved_bytes

LAYOUTS = {"channels_last": torch.channels_last, "nchw": torch.contiguous_format}
PASSES = ("forward", "forward+backward")
SHAPES = ((256, 56, 56), (512, 28, 28), (1024, 14, 14), (2048, 7, 7))  # where ResNet-50's four stages end
BATCHES = (1, 8, 32)


class BenchmarkError(GalaError, ValueError):
    """The benchmark asked for cannot run."""


@dataclass(frozen=True)
class Settings:
    """What to time. `contestants` of None are eager, torch.compile and each fused backend that runs."""

    batches: tuple[int, ...] = BATCHES
    shapes: tuple[tuple[int, int, int], ...] = SHAPES  # C, H, W
    dtype: torch.dtype = torch.float32
    layout: str = "channels_last"
    reduction: int = 4
    contestants: tuple[str, ...] | None = None
    seconds: float = 10.0  # of timing, for each shape and pass
    threads: int | None = None  # torch's own choice where None
    device: str = "cpu"


@dataclass(frozen=True)
class Case:
    """One shape: each contestant's worst error, the bytes it keeps for backward over x's, and its times by pass."""

    shape: tuple[int, int, int, int]
    errors: dict[str, float]
    saved: dict[str, float]
    timings: dict[str, dict[str, Timing]]

    def speedup(self, kind: str, name: str, baseline: str | None = None) -> float:
        """How many times faster `name` is than `baseline`, or than the fastest baseline."""
        times = {key: timing.median for key, timing in self.timings[kind].items()}
        reference = min(times[key] for key in BASELINES if key in times) if baseline is None else times[baseline]
        return reference / times[name]


@dataclass
class Result:
    """All cases of a run, and what is needed to judge and repeat it."""

    settings: Settings
    device: str
    threads: int
    load: float | None  # average over the minute before: how many other processes wanted a core
    allocator_pinned: bool
    environment: dict
    started: str  # ISO 8601 with time zone
    left_out: dict[str, str]  # contestant: why
    cases: list[Case] = field(default_factory=list)

    @property
    def names(self) -> list[str]:
        return list(self.cases[0].errors)

    def as_dict(self) -> dict:
        """Plain data for JSON: times in seconds, shapes [N, C, H, W], `speedup` against each baseline."""
        plain = asdict(self)
        plain["settings"]["dtype"] = dtype_name(self.settings.dtype)
        for case, entry in zip(self.cases, plain["cases"], strict=True):
            baselines = [name for name in BASELINES if name in case.errors]
            entry["speedup"] = {
                kind: {name: {base: case.speedup(kind, name, base) for base in baselines} for name in case.errors}
                for kind in PASSES
            }
        return plain


def run(settings: Settings, say: Callable[[str], object] = lambda _: None) -> Result:
    """Runs the benchmark; `say` hears what is being done.

    Raises:
        BenchmarkError: a setting is out of range, or a contestant asked for cannot run; the message says which and why.
        WrongResultError: a contestant is wrong; nothing of its shape was timed.
    """
    device = torch.device(settings.device)
    _validate(settings)
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    probe = torch.zeros(1, 1, 1, 1, dtype=settings.dtype, device=device)
    names, left_out = _names(settings, probe)
    result = Result(
        settings=settings,
        device=describe(device),
        threads=torch.get_num_threads(),
        load=os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        allocator_pinned=pin_allocator(),
        environment=doctor().as_dict(),
        started=datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        left_out=left_out,
    )
    if settings.contestants is None and (reason := _cannot_compile(device)):
        names.remove("compile")
        left_out["compile"] = reason
    for channels, height, width in settings.shapes:
        for batch in settings.batches:
            result.cases.append(_case((batch, channels, height, width), names, settings, say))
    return result


def _case(shape: tuple[int, int, int, int], names: list[str], settings: Settings, say: Callable) -> Case:
    torch.compiler.reset()  # each shape compiles afresh: dynamo stops after a few versions of one function
    x, grad = _inputs(shape, settings)
    entrants = [contestant(name, shape[1], settings.reduction, x.dtype, x.device) for name in names]
    title = "x".join(map(str, shape))
    block = next(c.module for c in entrants if isinstance(c.module, GALA))  # all of them have the same parameters
    clear_ties(x, block.weights)
    say(f"{title}: checking {', '.join(names)} against float64")
    errors = check(entrants, x, grad)
    saved = {c.name: saved_bytes(c.call, x, c.module.parameters()) / x.nbytes for c in entrants}
    timings = {}
    for kind in PASSES:
        say(f"{title}: timing {kind}")
        calls = {c.name: _call(c, kind, x, grad) for c in entrants}
        timings[kind] = alternate(calls, settings.seconds, x.device)
    return Case(shape, errors, saved, timings)


def _inputs(shape: tuple[int, int, int, int], settings: Settings) -> tuple[Tensor, Tensor]:
    """x, which requires grad, and the incoming gradient, both standard normal, in the layout of the settings."""
    generator = torch.Generator().manual_seed(0)
    x, grad = (
        torch.randn(shape, generator=generator)
        .to(settings.device, settings.dtype)
        .to(memory_format=LAYOUTS[settings.layout])
        for _ in range(2)
    )
    return x.requires_grad_(), grad


def _call(contestant: Contestant, kind: str, x: Tensor, grad: Tensor) -> Callable[[], object]:
    if kind == "forward":
        return torch.no_grad()(lambda: contestant.call(x))
    leaves = [x, *contestant.module.parameters()]

    def forward_backward() -> None:
        for leaf in leaves:
            leaf.grad = None
        contestant.call(x).backward(grad)

    return forward_backward


def _validate(settings: Settings) -> None:
    for name, values in (("batches", settings.batches), ("shapes", settings.shapes)):
        if not values or min(min(v) if isinstance(v, tuple) else v for v in values) < 1:
            raise BenchmarkError(f"{name} is {values}; expected positive sizes")
    if settings.layout not in LAYOUTS:
        raise BenchmarkError(f"layout is {settings.layout!r}; expected one of {', '.join(LAYOUTS)}")
    unknown = [name for name in settings.contestants or () if name not in NAMES]
    if unknown:
        raise BenchmarkError(f"contestants has {', '.join(map(repr, unknown))}; expected some of {', '.join(NAMES)}")
    if settings.contestants is not None and not set(settings.contestants) & set(BASELINES):
        raise BenchmarkError(f"contestants is {settings.contestants}; expected at least one of {', '.join(BASELINES)}")


def _names(settings: Settings, probe: Tensor) -> tuple[list[str], dict[str, str]]:
    if settings.contestants is None:
        return default_names(probe)
    for name in settings.contestants:
        if name in backends.NAMES and (reason := backends.why_not(name, probe)):
            raise BenchmarkError(f"contestant {name!r} cannot run: {reason}")
        if name in OTHERS and importlib.util.find_spec("timm") is None:
            raise BenchmarkError(
                f"contestant {name!r} cannot run: timm is not installed; pip install 'gala-cuda[bench]'"
            )
    return list(dict.fromkeys(settings.contestants)), {}


def _cannot_compile(device: torch.device) -> str | None:
    """Why torch.compile does not work here, such as for want of a C++ compiler."""
    try:
        torch.compile(lambda x: x + 1, dynamic=False)(torch.zeros(8, device=device))
    except InductorError as error:
        return f"torch.compile fails: {str(error).splitlines()[0]}"
    return None
