"""Kernel launches, and the memory between them."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from triton import knobs
from triton.runtime import driver

from .arguments import Argument, Number
from .config import Tile
from .kept import ALIGNMENT


class KernelLaunch:
    """One launch of a kernel: its grid of programs, its numbers and its constants. Tensors are given at each call.

    `programs` are those of each part of the kernel, where it has several, one part after the other.
    """

    __slots__ = ("compiled", "constants", "grid", "kernel", "numbers", "options", "programs")

    def __init__(
        self, kernel, programs: int | tuple[int, ...], numbers: tuple[Number, ...],
        constants: Mapping[str, object], tile: Tile,
    ):  # fmt: skip
        self.programs = (programs,) if isinstance(programs, int) else programs
        self.kernel, self.grid = kernel, (sum(self.programs), 1, 1)
        self.numbers = numbers
        constants = {**constants, "STAGES": tile.stages}
        self.constants = tuple(constants[name] for name in kernel.arg_names if name.isupper())
        self.options: dict[str, Any] = {
            "num_warps": tile.warps, "num_stages": tile.stages, "launch_pdl": constants["PDL"],
        }  # fmt: skip
        self.compiled: Any = None

    def __call__(self, *tensors: Argument, stream: int) -> None:
        compiled = self.compiled
        if compiled is None:  # this compiles and launches; the interpreter compiles nothing
            self.compiled = self.kernel[self.grid](*tensors, *self.numbers, *self.constants, **self.options)
        elif knobs.runtime.launch_enter_hook.calls or knobs.runtime.launch_exit_hook.calls:
            compiled[self.grid](*tensors, *self.numbers, *self.constants, stream=stream)
        else:  # the same without what profilers are told, which takes as long as all the rest
            compiled.run(
                *self.grid, stream, compiled.function, compiled.packed_metadata, None, None, None,
                *tensors, *self.numbers, *self.constants,
            )  # fmt: skip


def current_stream(device: torch.device) -> int:
    """The stream that launches go to; the interpreter has none."""
    return driver.active.get_current_stream(device.index) if device.type == "cuda" else 0


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


def clamp_block(size: int, extent: int, least: int = 16) -> int:
    """`size`, or a smaller power of two that is enough for `extent`, but at least `least`."""
    return min(size, max(least, 1 << (extent - 1).bit_length()))


def cdiv(a: int, b: int) -> int:
    return -(-a // b)
