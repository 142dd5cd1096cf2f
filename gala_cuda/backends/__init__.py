"""The backends and how one is chosen. Each has `why_not`, `forward` and `backward`, as `reference` has them."""

import os
import warnings
from types import ModuleType

from torch import Tensor

from . import cpu, cuda, reference, triton

BACKENDS: dict[str, ModuleType] = {"cpu": cpu, "reference": reference, "triton": triton, "cuda": cuda}
NAMES = tuple(BACKENDS)
# backends that the automatic choice leaves out, and why
ON_REQUEST = {"cuda": "no recorded run on a GPU shows it to be right and faster than triton"}
_FUSED = {"cpu": "cpu", "cuda": "triton"}  # the fused backend of each type of device
_warned: set[str] = set()


def why_not(name: str, x: Tensor) -> str | None:
    """None where the backend `name` can run on `x`, else the reason."""
    return BACKENDS[name].why_not(x)


def requested(backend: str | None) -> str:
    """The backend asked for, by argument or by the environment variable GALA_BACKEND; "" leaves the choice to us.

    Raises ValueError for an unknown name.
    """
    name = os.environ.get("GALA_BACKEND", "") if backend is None else backend
    if name and name not in NAMES:
        source = "environment variable GALA_BACKEND" if backend is None else "backend"
        raise ValueError(f"{source} is {name!r}; expected one of {', '.join(NAMES)}")
    return name


def choose(x: Tensor, name: str) -> tuple[str, str | None]:
    """The backend for `x` by name: the one asked for, or where `name` is empty the first that can run; and, where
    that is the reference, why no fused one.

    Raises RuntimeError where the backend asked for cannot run on `x`.
    """
    if name:
        reason = why_not(name, x)
        if reason:
            raise RuntimeError(f"backend {name!r} cannot run: {reason}")
        return name, None
    fused = _FUSED.get(x.device.type, "cpu")
    reason = why_not(fused, x)
    return (fused, None) if reason is None else ("reference", f"{fused} backend: {reason}")


def select(x: Tensor, name: str) -> ModuleType:
    """The backend that `choose` takes. Warns once for each reason why the automatic choice is the reference."""
    chosen, reason = choose(x, name)
    if reason is not None and reason not in _warned:
        _warned.add(reason)
        warnings.warn(
            f"gala_cuda runs the unfused reference on {x.device}: {reason}. "
            "`gala-cuda doctor` lists every backend; backend='reference' silences this.",
            stacklevel=2,
        )
    return BACKENDS[chosen]
