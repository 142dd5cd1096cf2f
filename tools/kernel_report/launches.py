"""What a call of the Triton backend launches on any GPU, found without one.

The plans run on tensors without memory. Each launch stops where Triton has specialised it for its arguments, and what
it would compile is kept: the same that it would compile on such a GPU.
"""

import importlib
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple
from unittest import mock

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import CompiledKernel

from gala_cuda.backends.interface import BackwardCall, ForwardCall, Weights, weight_shapes
from gala_cuda.backends.squash import Squash
from gala_cuda.backends.triton import backward_plan, forward_plan
from gala_cuda.backends.triton.arguments import Argument, Layout
from gala_cuda.backends.triton.config import Config, Multiprocessors
from gala_cuda.backends.triton.launch import KernelLaunch
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
        constants = {names[index]: value for (index, *_), value in values if names[index].isupper()}
        return constants | {"warps": kept["options"]["num_warps"], "stages": kept["options"]["num_stages"]}


class Planned(NamedTuple):
    """A launch as a plan makes it: also what it is given, which Triton does not compile for."""

    launch: Launch
    programs: tuple[int, ...]  # of each of the kernel's parts
    warps: int
    sizes: dict[str, int]  # its numbers and constants, by their names
    tensors: dict[int, int]  # the bytes of each tensor it is given; a tensor has one number in all launches


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


class Inputs(NamedTuple):
    """What a call is given beside x: on the device "meta"."""

    w: Weights
    residual: Tensor | None
    grad_out: Tensor


def inputs_of(call: Call) -> Inputs:
    shapes: tuple = weight_shapes(call.x.shape[1], call.reduced)
    shapes = shapes if call.bias else shapes[:_WITHOUT_BIASES]
    w = Weights(*(torch.empty(shape, dtype=call.weights, device="meta") for shape in shapes))
    return Inputs(w, torch.empty_like(call.x) if call.residual else None, torch.empty_like(call.x))


def launches_of(
    call: Call, config: Config, arch: int, sms: Multiprocessors, inputs: Inputs | None = None
) -> list[Launch]:
    """What a call launches with the tiles of `config`: its forward pass, then its backward pass."""
    inputs = inputs or inputs_of(call)
    problem = replace(Problem.of(call.x, inputs.w, call.squash, call.precision), config=config, sms=sms)
    return launched(arch, lambda: _run_plans(problem, call, inputs))


def planned(call: Call, config: Config, arch: int, sms: Multiprocessors) -> tuple[list[Planned], list[int]]:
    """As `launches_of`, with what each launch is given; and the numbers of the tensors that were there before."""
    given: list[tuple[KernelLaunch, tuple[Argument, ...]]] = []  # which keeps the tensors, and their ids, apart
    original, inputs = KernelLaunch.__call__, inputs_of(call)

    def keep(step: KernelLaunch, *tensors: Argument, stream: int) -> None:
        given.append((step, tensors))
        original(step, *tensors, stream=stream)

    with mock.patch.object(KernelLaunch, "__call__", keep):
        launches = launches_of(call, config, arch, sms, inputs)
    numbers: dict[int, int] = {}
    there = [t for t in (call.x, inputs.residual, inputs.grad_out, *inputs.w) if t is not None]
    before = [numbers.setdefault(id(t), len(numbers)) for t in there]
    found = []
    for launch, (step, tensors) in zip(launches, given, strict=True):
        touched = {numbers.setdefault(id(t), len(numbers)): t.nbytes for t in _tensors(tensors)}
        found.append(Planned(launch, step.programs, step.options["num_warps"], _sizes(step, len(tensors)), touched))
    return found, before


def _tensors(given: tuple[Argument, ...]) -> list[Tensor]:
    """The tensors of a launch's arguments, of which some are tuples."""
    each = [tuple(one) if isinstance(one, tuple) else (one,) for one in given]
    return [t for tensors in each for t in tensors if t is not None]


def _sizes(step: KernelLaunch, tensors: int) -> dict[str, int]:
    """A launch's numbers, which come after so many tensors, and its constants, by their names."""
    arguments = [name for name in step.kernel.arg_names if not name.isupper()]
    constants = [name for name in step.kernel.arg_names if name.isupper()]
    named = {name: value for name, value in zip(constants, step.constants, strict=True) if isinstance(value, int)}
    for name, number in zip(arguments[tensors:], step.numbers, strict=True):
        named |= {name: number} if isinstance(number, int) else number._asdict()  # type: ignore[attr-defined]
    return named


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


def _run_plans(problem: Problem, call: Call, inputs: Inputs) -> None:
    """Runs the plans of a call, with an incoming gradient laid out as x."""
    x, layout = call.x, Layout.of(call.x, problem.channels_last)
    w, residual, grad_out = inputs
    forward = forward_plan.Forward(problem, w, layout if call.residual else None, call.map, call.save)
    out, attn_map, stats, relu_mask = forward.run(ForwardCall(x, w, residual, call.squash, call.map, call.save))
    if call.save:
        backward = backward_plan.Backward(problem, backward_plan.Form(layout, layout, call.residual, call.map))
        assert stats is not None
        assert relu_mask is not None
        saved = out if call.residual else None, stats, relu_mask
        backward.run(BackwardCall(grad_out, attn_map, x, w, *saved, call.squash, True, True))


def build(launch: Launch) -> CompiledKernel:
    """Compiles the kernel of a launch, or takes it from Triton's cache, where it then is."""
    triton.runtime.driver.set_active(Driver(launch.arch))
    return getattr(importlib.import_module(launch.module), launch.kernel).preload(launch.specialization)
