"""Chooses who is timed on one problem: every contestant that runs and agrees with float64."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TypeVar

from torch import Tensor

from gala_cuda import GALA
from gala_cuda.bench.correctness import check
from gala_cuda.bench.peers import BASELINES, OTHERS, Contestant, contestant
from gala_cuda.testing import clear_ties

from .attempts import TIMED_OUT
from .forms import Kind, running
from .records import MeasurementError
from .settings import REDUCTION, Context

LIMITS = {"compile": 90.0, "max-autotune": 150.0}  # seconds for compilation and check
LIMIT = 45.0  # of all others
Result = TypeVar("Result")


@dataclass
class Field:
    """Those `present` take part, with their `errors`; `left_out` says why others do not.

    `broken` are the backends among those left out that should have taken part.
    """

    context: Context
    present: list[Contestant] = field(default_factory=list)
    errors: dict[str, float] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    broken: list[str] = field(default_factory=list)

    def drop(self, name: str, reason: str) -> None:
        self.present = [entrant for entrant in self.present if entrant.name != name]
        self.errors.pop(name, None)
        self.left_out[name] = reason
        if not reason.startswith(TIMED_OUT) and name in self.context.candidates():
            self.broken.append(f"{name}: {reason}")

    def measure(self, measurement: Callable[[list[Contestant]], Result]) -> Result:
        """`measurement` of those present; whoever fails in it is dropped and it is made again."""
        while self.present:
            with self.context.trials.attempt() as attempt:
                return measurement(self.present)
            assert attempt.name is not None
            assert attempt.reason is not None
            self.drop(attempt.name, attempt.reason)
        raise MeasurementError("no contestant is left: " + "; ".join(self.broken), {"left_out": self.left_out})


def enter(context: Context, kind: Kind, x: Tensor, grad: Tensor, autotuned: bool) -> Field:
    """Checks everyone who can take part in `kind`. Overwrites the ties of x (`gala_cuda.testing.clear_ties`)."""
    usable, left_out = context.usable(kind)
    found = Field(context, left_out=left_out)
    formula = contestant("eager", x.shape[1], REDUCTION, x.dtype, x.device).module
    assert isinstance(formula, GALA)
    clear_ties(x, formula.weights)
    for name in [*BASELINES, *usable, *OTHERS]:
        if name == "max-autotune" and not autotuned:
            continue
        if name in context.trials.excluded:
            found.drop(name, context.trials.excluded[name])
            continue
        with context.trials.attempt(name, LIMITS.get(name, LIMIT)) as attempt:
            entrant = _entrant(name, context, x)
            found.errors.update(check([_kept(entrant)], x, grad))
            found.present.append(entrant)
        if attempt.reason is not None:
            found.drop(name, attempt.reason)
    return found


def _entrant(name: str, context: Context, x: Tensor) -> Contestant:
    with running(name) as backend:
        found = contestant(backend, x.shape[1], REDUCTION, x.dtype, x.device, context.sizes.compiler)
    call = found.call
    if name != backend:

        def call(x: Tensor) -> Tensor:
            with running(name):
                return found.module(x)

    return replace(found, name=name, call=context.trials.watched(name, call))


def _kept(entrant: Contestant) -> Contestant:
    """The same contestant with outputs in memory of their own: a CUDA graph of max-autotune overwrites its last one."""
    return replace(entrant, call=lambda x: entrant.call(x).clone())
