"""The plans of passes: one for each kind of problem, made once and kept.

A launch through a plan skips Triton's inspection of the arguments. The plan's key fixes all that Triton specialises on:
their types, strides and alignment.
"""

from collections.abc import Callable, Hashable
from typing import Any

from torch import Tensor

ALIGNMENT = 16  # bytes, which 128-bit accesses need and which Triton specialises on
_MOST_PLANS = 1024
_plans: dict[Hashable, Any] = {}


def kept_plan(key: Hashable, make: Callable[[], Any]) -> Any:
    """The plan kept under `key`; where there is none, `make` makes it."""
    found = _plans.get(key)
    if found is None:
        if len(_plans) >= _MOST_PLANS:
            _plans.clear()
        found = _plans[key] = make()
    return found


def alignment(*tensors: Tensor | None) -> int | tuple[int, ...]:
    """0 where every tensor starts on a 16-byte boundary, else how far each is beyond one."""
    bits = 0
    for t in tensors:
        if t is not None:
            bits |= t.data_ptr()
    if bits % ALIGNMENT == 0:
        return 0
    return tuple(0 if t is None else t.data_ptr() % ALIGNMENT for t in tensors)


def clear_plans() -> None:
    """Drop all plans, such as after another table was chosen."""
    _plans.clear()
