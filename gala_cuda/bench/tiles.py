"""What ``tune`` tries and measures: candidate tiles, example problems, and passes over them with a row's tiles."""

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import torch
import triton
from torch import Tensor

from ..backends.interface import BackwardCall, Weights
from ..backends.triton.backward_plan import Backward, Strides
from ..backends.triton.config import Config, Tile
from ..backends.triton.forward_plan import Forward, TicketForward
from ..backends.triton.launch import KernelLaunch, Layout, clamp_block
from ..backends.triton.problem import Problem
from ..testing import Case, draw, norm_error, norm_tolerance

# the kind of pass that each kernel is part of, and its step in that pass's plan
PARTS = {
    "gather": ("launches", "gather"),
    "scale": ("launches", "scale"),
    "scale_backward": ("backward", "scale"),
    "grad_x": ("backward", "grad_x"),
    "local_products": ("backward", "local_products"),
    "tickets": ("tickets", "all"),
}
# what a program keeps in registers: blocks by the names of their two sizes
KEPT = {
    "gather": (("ROWS", "HIDDEN"),),
    "scale": (("PIXELS", "CHANNELS"),),
    "scale_backward": (("PIXELS", "CHANNELS"),),
    "grad_x": (("ROWS", "CHANNELS"),),
    "local_products": (("HIDDEN", "CHANNELS"),),
    "tickets": (("ROWS", "HIDDEN"), ("PIXELS", "CHANNELS")),
}
PIPELINED = ("gather", "grad_x", "local_products", "tickets")  # loops around a product: stages matter
WARPS, STAGES = (2, 16), (1, 5)
REGISTERS = 255 * 32  # of a warp
CHUNKS = (1 / 4, 1 / 2, 1, 2)  # of the row's chunk_bytes
CHECKED_IMAGES = 16  # at most, in float64


class TileError(Exception):
    """A candidate cannot be used; the message says why."""


class Shape(NamedTuple):
    """A feature map and its block's hidden width."""

    images: int
    channels: int
    height: int
    width: int
    reduced: int


def limits(kernel: str, shapes: list[Shape]) -> dict[str, tuple[int, int]]:
    """The least and the largest useful value of each of a kernel's sizes; ``clamp_block`` cuts larger ones down."""
    channels, reduced = max(s.channels for s in shapes), max(s.reduced for s in shapes)
    pixels = max(s.height * s.width for s in shapes)
    extents = {"ROWS": pixels, "PIXELS": pixels, "HIDDEN": reduced, "CHANNELS": channels, "DEPTH": channels}
    least = dict.fromkeys(extents, 16) | {"HIDDEN": 32}  # a word of the sign pattern
    if kernel == "grad_x":
        extents["DEPTH"], least["DEPTH"] = reduced, 32
    if kernel == "scale_backward":
        least["PIXELS"] = 4
    return {name: (least[name], clamp_block(1 << 30, extent, least[name])) for name, extent in extents.items()}


def candidates(kernel: str, tile: Tile, shapes: list[Shape]) -> list[Tile]:
    """The tiles one step from ``tile``: one size, or the warps, halved or doubled, or a stage more or less.

    Left out are sizes beyond ``limits``, and tiles that keep more numbers than the registers of their warps.
    """
    found, useful = [], limits(kernel, shapes)
    for name, size in tile.sizes:
        least, most = useful[name]
        for other in (min(size, most) // 2, min(size, most) * 2):
            if least <= other <= most:
                found.append(replace(tile, sizes=tuple((n, other if n == name else s) for n, s in tile.sizes)))
    found += [replace(tile, warps=w) for w in (tile.warps // 2, tile.warps * 2) if WARPS[0] <= w <= WARPS[1]]
    if kernel in PIPELINED:
        found += [replace(tile, stages=s) for s in (tile.stages - 1, tile.stages + 1) if STAGES[0] <= s <= STAGES[1]]

    def kept(tile: Tile) -> int:
        sizes = {name: min(size, useful[name][1]) for name, size in tile.sizes}
        return max(sizes[rows] * sizes[columns] for rows, columns in KEPT[kernel])

    return [other for other in found if kept(other) <= REGISTERS * other.warps]


class Example:
    """A random problem on the device, with weights as in mixed precision.

    `full` adds biases, a residual and the map. The gradient leans towards x, so that none of its sums cancels: errors
    are relative to the norm of a single problem.
    """

    def __init__(self, shape: Shape, dtype: torch.dtype, layout: str, device: torch.device, full: bool = False):
        self.shape, self.full = shape, full
        order = "channels_last" if layout == "channels_last" else "contiguous"
        wide = torch.promote_types(dtype, torch.float32)
        case = Case(
            shape[:4], shape.reduced, dtype, wide, order, bias=full, residual=full, map=full, representable=True
        )
        drawn = draw(case, device=device)
        self.drawn = drawn._replace(grad_out=drawn.x + drawn.grad_out)
        self.x, self.w, self.residual, squash, self.grad, self.grad_map = self.drawn
        precision = "tf32x3" if dtype == torch.float32 else "tf32"  # torch's default
        self.problem = Problem.of(self.x, self.w, squash, precision)

    def plan(self, kind: str, config: Config) -> Forward | Backward:
        problem = replace(self.problem, config=config)
        residual = None if self.residual is None else Layout.of(self.residual, problem.channels_last)
        if kind == "backward":
            grad = Layout.of(self.grad, problem.channels_last)
            return Backward(problem, Strides(grad, residual or grad, self.full), self.full)
        form = TicketForward if kind == "tickets" else Forward
        return form(problem, self.w, residual, self.full, True)

    def forward(self, plan: Forward) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(out, map or empty, stats, relu_mask)."""
        n, _, height, width, _ = self.shape
        out = torch.empty_like(self.x)
        attn_map = self.x.new_empty((n, height, width) if self.full else 0, dtype=torch.float32)
        return out, attn_map, *plan.run(self.x, self.w, self.residual, out, attn_map)

    def backward(
        self, plan: Backward, out: Tensor | None, attn_map: Tensor, stats: Tensor, relu_mask: Tensor
    ) -> dict[str, Tensor]:
        """The gradients by name, from what ``forward`` returned; ``out`` with ``full`` only."""
        factor = None if self.grad_map is None else torch.where(attn_map == 0, 0.0, self.grad_map / attn_map)
        call = BackwardCall(self.grad, factor, self.x, self.w, out, stats, relu_mask, "tanh", True, True)
        return _named(*plan.run(call))


def _named(grad_x: Tensor | None, grad_w: Weights | None, grad_residual: Tensor | None) -> dict[str, Tensor]:
    assert grad_w is not None
    named = {"x": grad_x, **grad_w._asdict(), "residual": grad_residual}
    return {f"grad {name}": t for name, t in named.items() if t is not None}


class Pass:
    """A forward ("launches" or "tickets") or "backward" pass over an example with a row's tiles, to be repeated.

    On a GPU a call replays a CUDA graph: timed is the GPU's work, not Python's, which runs ahead of it in a network.
    """

    def __init__(self, example: Example, config: Config, kind: str):
        self.example, self.config, self.kind = example, config, kind
        self.plan = example.plan(kind, config)
        run = self._runner()
        run()  # compiles
        self.call = _captured(run, example.x.device)

    def __call__(self) -> None:
        self.call()

    def _runner(self) -> Callable[[], object]:
        example, plan = self.example, self.plan
        if isinstance(plan, Forward):
            return lambda: example.forward(plan)
        before = example.plan("launches", self.config)
        assert isinstance(before, Forward)
        saved = example.forward(before)[1:]
        return lambda: example.backward(plan, None, *saved)


def _captured(run: Callable[[], object], device: torch.device) -> Callable[[], object]:
    if device.type != "cuda":
        return run
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph.replay


def check(example: Example, exact: dict[str, Tensor], kernel: str, config: Config) -> Forward | Backward:
    """Runs both passes with ``config``, tickets in several chunks; the plan that ``kernel`` is part of.

    Raises TileError where a result is off float64.
    """
    form = "tickets" if kernel == "tickets" else "launches"
    config = replace(config, chunk_bytes=max(1, min(config.chunk_bytes, example.x.nbytes // 4)))
    forward, backward = example.plan(form, config), example.plan("backward", config)
    assert isinstance(forward, Forward)
    assert isinstance(backward, Backward)
    saved = example.forward(forward)
    got = {"out": saved[0], "map": saved[1], **example.backward(backward, *saved)}
    limit = norm_tolerance(example.x.dtype)
    for name, want in exact.items():
        error = norm_error(got[name], want)
        if not error <= limit:
            dtype = str(example.x.dtype).removeprefix("torch.")
            raise TileError(
                f"wrong: {name} at {tuple(example.x.shape)}, {dtype}, is off float64 by {error:.1e} relative; expected "
                f"at most {limit:.1e}"
            )
    return backward if PARTS[kernel][0] == "backward" else forward


def refuse_spills(plan: Forward | Backward, kernel: str) -> None:
    """Raises TileError where ``kernel``, compiled in a plan that ran, uses local memory."""
    made: KernelLaunch = getattr(plan, PARTS[kernel][1])
    words = getattr(made.compiled, "n_spills", None)  # the interpreter compiles nothing
    if words:
        raise TileError(f"uses {4 * words} bytes of local memory a thread")


def attempt(run: Callable[[], object], device: torch.device) -> None:
    """Calls ``run``; TileError where Triton cannot compile or launch what it needs. Other failures pass through."""
    try:
        run()
    except torch.OutOfMemoryError:
        raise
    except (triton.TritonError, RuntimeError) as error:
        if device.type == "cuda":
            torch.cuda.synchronize(device)  # raises where the GPU itself failed: nothing can run on it any more
        raise TileError(f"{type(error).__name__}: {' '.join(str(error).split())[:200]}") from error
