"""What a call of the Triton backend launches on any GPU, found without one.

The plans run on tensors without memory. Each launch stops where Triton has specialised it for its arguments, and what
it would compile is kept: the same that it would compile on such a GPU.
"""

import importlib
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import CompiledKernel

from gala_cuda.backends.interface import BackwardCall, ForwardCall, Weights, weight_shapes
from gala_cuda.backends.squash import Squash
from gala_cuda.backends.triton import backward_plan, forward_plan
from gala_cuda.backends.triton.config import Config
from gala_cuda.backends.triton.launch import Layout
from gala_cuda.backends.triton.problem import Problem

_WITHOUT_BIASES = len(Weights._fields) - len(Weights._field_defaults)


class Call(NamedTuple):
    """A call of the operator on the Triton backend."""

    x: Tensor  # [N, C, H, W], on the device "meta"
    reduced: int
    weights: torch.dtype
    precision: str  # of products of float32
    squash: Squash = Squash.TANH
    bias: bool = False
    residual: bool = False
    map: bool = False
    save: bool = True  # for the backward pass, which then runs too


@dataclass(frozen=True)
class Launch:
    """A kernel and all that Triton compiles it for, in Triton's own serialised form."""

    arch: int
    module: str
    kernel: str
    specialization: str

    @property
    def constants(self) -> dict[str, object]:
        """The kernel's constants and how Triton compiles it."""
        kept = json.loads(self.specialization)
        names = list(kept["signature"])
        values = zip(kept["constant_keys"], kept["constant_vals"], strict=True)
        constants = {names[index]: value for (index,), value in values if names[index].isupper()}
        return constants | {"warps": kept["options"]["num_warps"], "stages": kept["options"]["num_stages"]}


class Driver:
    """In place of Triton's driver: one GPU to compile for, whose device number is its architecture."""

    def __init__(self, arch: int):
        self.arch = arch

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.arch, 32)

    def get_current_device(self) -> int:
        return self.arch

    def get_current_stream(self, device: int) -> int:
        return 0


def launches_of(call: Call, config: Config, arch: int, num_sms: int) -> list[Launch]:
    """What a call launches with the tiles of `config`: its forward pass, then its backward pass."""
    x = call.x
    shapes: tuple = weight_shapes(x.shape[1], call.reduced)
    shapes = shapes if call.bias else shapes[:_WITHOUT_BIASES]
    w = Weights(*(torch.empty(shape, dtype=call.weights, device="meta") for shape in shapes))
    problem = replace(Problem.of(x, w, call.squash, call.precision), config=config, num_sms=num_sms)
    return launched(arch, lambda: _run_plans(problem, call, w))


def launched(arch: int, run: Callable[[], object]) -> list[Launch]:
    """What `run` launches on tensors without memory, as Triton specialises it for an architecture."""
    kept = []

    def keep(*, fn, compile, **_) -> bool:
        kept.append(Launch(arch, fn.module, fn.name, compile["specialization_data"]))
        return True  # neither compile nor launch

    triton.runtime.driver.set_active(Driver(arch))
    with triton.knobs.runtime.scope():
        triton.knobs.runtime.jit_cache_hook = keep
        run()
    return kept


def _run_plans(problem: Problem, call: Call, w: Weights) -> None:
    """Runs the plans of a call, with an incoming gradient laid out as x."""
    x, layout = call.x, Layout.of(call.x, problem.channels_last)
    residual = torch.empty_like(x) if call.residual else None
    forward = forward_plan.Forward(problem, w, layout if call.residual else None, call.map, call.save)
    out, attn_map, stats, relu_mask = forward.run(ForwardCall(x, w, residual, call.squash, call.map, call.save))
    if call.save:
        backward = backward_plan.Backward(problem, backward_plan.Strides(layout, layout, call.residual), call.map)
        assert stats is not None
        assert relu_mask is not None
        saved = out if call.residual else None, stats, relu_mask
        backward.run(BackwardCall(torch.empty_like(x), attn_map, x, w, *saved, call.squash, True, True))


def build(launch: Launch) -> CompiledKernel:
    """Compiles the kernel of a launch, or takes it from Triton's cache, where it then is."""
    triton.runtime.driver.set_active(Driver(launch.arch))
    return getattr(importlib.import_module(launch.module), launch.kernel).preload(launch.specialization)
