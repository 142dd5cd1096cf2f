"""Kernel launches, and the plans that hold them: one for each kind of problem, made once and kept.

A launch through a plan skips Triton's inspection of the arguments. The plan's key fixes all that Triton specialises on:
their types, strides and alignment.
"""

from collections.abc import Callable, Hashable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..layout import pixel_stride
from .config import Tile

ALIGNMENT = 16  # bytes, which 128-bit accesses need and which Triton specialises on
_MOST_PLANS = 1024
_plans: dict[Hashable, Any] = {}


class KernelLaunch:
    """One launch of a kernel: its grid of programs, its numbers and its constants. Tensors are given at each call.

    `programs` are those of each part of the kernel, where it has several, one part after the other.
    """

    __slots__ = ("compiled", "constants", "grid", "kernel", "numbers", "options", "programs")

    def __init__(
        self, kernel, programs: int | tuple[int, ...], numbers: tuple[int, ...], constants: Mapping[str, object],
        tile: Tile,
    ):  # fmt: skip
        self.programs = (programs,) if isinstance(programs, int) else programs
        self.kernel, self.grid = kernel, (sum(self.programs), 1, 1)
        self.numbers = numbers
        constants = {**constants, "STAGES": tile.stages}
        self.constants = tuple(constants[name] for name in kernel.arg_names if name.isupper())
        self.options = {"num_warps": tile.warps, "num_stages": tile.stages}
        self.compiled: Any = None

    def __call__(self, *tensors: Tensor | None) -> None:
        if self.compiled is None:  # this compiles and launches; the interpreter compiles nothing
            self.compiled = self.kernel[self.grid](*tensors, *self.numbers, *self.constants, **self.options)
        else:
            self.compiled[self.grid](*tensors, *self.numbers, *self.constants)


class Layout(NamedTuple):
    """Strides of a feature map in elements: between images, and between pixels (channels_last) or channels (NCHW)."""

    image_stride: int
    stride: int

    @classmethod
    def of(cls, t: Tensor, channels_last: bool) -> "Layout":
        return cls(t.stride(0), pixel_stride(t) if channels_last else t.stride(1))  # type: ignore[arg-type]


class Workspace:
    """The sizes of float32 arrays that are allocated together, each aligned."""

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def add(self, *extents: int) -> int:
        """Adds an array; returns its index."""
        size = 1
        for extent in extents:
            size *= extent
        self.sizes.append(-(-size // ALIGNMENT) * ALIGNMENT)
        return len(self.sizes) - 1

    def allocate(self, device: torch.device) -> tuple[Tensor, ...]:
        return torch.empty(sum(self.sizes), dtype=torch.float32, device=device).split_with_sizes(self.sizes)


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


def clamp_block(size: int, extent: int, least: int = 16) -> int:
    """`size`, or a smaller power of two that is enough for `extent`, but at least `least`."""
    return min(size, max(least, 1 << (extent - 1).bit_length()))


def cdiv(a: int, b: int) -> int:
    return -(-a // b)


def clear_plans() -> None:
    """Drop all plans, such as after another table was chosen."""
    _plans.clear()
