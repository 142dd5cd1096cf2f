"""Random problems and passes over them with given tiles: what `gala-cuda tune` checks and times."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from ..backends.interface import BackwardCall, ForwardCall, Outputs, Weights
from ..backends.squash import SQUASHES
from ..backends.triton.arguments import Layout
from ..backends.triton.backward_plan import Backward, Form
from ..backends.triton.config import Config
from ..backends.triton.forward_plan import Forward
from ..backends.triton.launch import KernelLaunch
from ..backends.triton.problem import Problem
from ..diagnostics import dtype_name
from ..testing import Case, draw, norm_error, norm_tolerance
from .candidates import Shape
from .tuned_row import TileError


class Part(NamedTuple):
    """Where a kernel is launched: in which kind of pass, and by which launch of that pass's plan."""

    kind: str
    launch: Callable[[Any], KernelLaunch]


PARTS = {
    "gather": Part("forward", lambda plan: plan.gather),
    "scale": Part("forward", lambda plan: plan.scale),
    "scale_backward": Part("backward", lambda plan: plan.scale),
    "grad_x": Part("backward", lambda plan: plan.grad_x),
    "local_products": Part("backward", lambda plan: plan.local_products),
}


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
        self.squash = SQUASHES[squash]
        precision = "tf32x3" if dtype == torch.float32 else "tf32"  # torch's default
        self.problem = Problem.of(self.x, self.w, self.squash, precision)

    def plan(self, kind: str, config: Config) -> Forward | Backward:
        problem = replace(self.problem, config=config)
        residual = None if self.residual is None else Layout.of(self.residual, problem.channels_last)
        if kind == "backward":
            grad = Layout.of(self.grad, problem.channels_last)
            return Backward(problem, Form(grad, residual or grad, residual=self.full, map=self.full))
        return Forward(problem, self.w, residual, self.full, True)

    def forward(self, plan: Forward) -> Outputs:
        """With the map where `full`, and with what backward reads."""
        return plan.run(ForwardCall(self.x, self.w, self.residual, self.squash, self.full, True))

    def backward(self, plan: Backward, outputs: Outputs) -> dict[str, Tensor]:
        """The gradients by name, from what `forward` returned."""
        out, attn_map, stats, relu_mask = outputs
        assert stats is not None
        assert relu_mask is not None
        factor = None
        if attn_map is not None and self.grad_map is not None:
            factor = torch.where(attn_map == 0, 0.0, self.grad_map / attn_map)
        saved = out if self.full else None, stats, relu_mask
        call = BackwardCall(self.grad, factor, self.x, self.w, *saved, self.squash, True, True)
        return _named(*plan.run(call))


def _named(grad_x: Tensor | None, grad_w: Weights | None, grad_residual: Tensor | None) -> dict[str, Tensor]:
    assert grad_w is not None
    named = {"x": grad_x, **grad_w._asdict(), "residual": grad_residual}
    return {f"grad {name}": t for name, t in named.items() if t is not None}


class Pass:
    """A "forward" or "backward" pass over an example with a row's tiles, to be repeated.

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
        before = example.plan("forward", self.config)
        assert isinstance(before, Forward)
        outputs = example.forward(before)
        return lambda: example.backward(plan, outputs)


def _captured(run: Callable[[], object], device: torch.device) -> Callable[[], object]:
    if device.type != "cuda":
        return run
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph.replay


def check(example: Example, exact: dict[str, Tensor], kernel: str, config: Config) -> Forward | Backward:
    """Runs both passes with `config` and returns the plan that `kernel` is part of.

    Raises TileError where a result is off float64.
    """
    forward, backward = example.plan("forward", config), example.plan("backward", config)
    assert isinstance(forward, Forward)
    assert isinstance(backward, Backward)
    outputs = example.forward(forward)
    assert outputs.attn_map is not None
    got = {"out": outputs.out, "map": outputs.attn_map, **example.backward(backward, outputs)}
    limit = norm_tolerance(example.x.dtype)
    for name, want in exact.items():
        error = norm_error(got[name], want)
        if not error <= limit:
            shape, dtype = tuple(example.x.shape), dtype_name(example.x.dtype)
            raise TileError(
                f"wrong: {name} at {shape}, {dtype}, is off float64 by {error:.1e} relative; expected at most "
                f"{limit:.1e}"
            )
    return backward if PARTS[kernel].kind == "backward" else forward


def refuse_spills(plan: Forward | Backward, kernel: str) -> None:
    """Raises TileError where `kernel`, compiled in a plan that ran, uses local memory."""
    made: KernelLaunch = PARTS[kernel].launch(plan)
    words = getattr(made.compiled, "n_spills", None)  # the interpreter compiles nothing
    if words:
        raise TileError(f"uses {4 * words} bytes of local memory in each thread")


def attempt(run: Callable[[], object], device: torch.device) -> None:
    """Calls `run`; TileError where Triton cannot compile or launch what it needs. Other failures pass through."""
    try:
        run()
    except torch.OutOfMemoryError:
        raise
    except (triton.TritonError, RuntimeError) as error:
        if device.type == "cuda":
            torch.cuda.synchronize(device)  # raises where the GPU itself failed: nothing can run on it any more
        raise TileError(f"{type(error).__name__}: {' '.join(str(error).split())[:200]}") from error
