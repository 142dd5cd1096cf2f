"""Part "kernels": each kernel of a forward and backward pass by itself, the paper's shape in bfloat16, channels_last.

Of the Triton backend every launch of one call is repeated alone, by CUDA events. The kernels of the CUDA backend are
launched in C++: their times are those of torch's profiler, in whole calls.
"""

from collections.abc import Callable
from functools import partial
from typing import Any
from unittest import mock

import torch

from gala_cuda import GALA

from .clock import clock_of, device_times
from .forms import Kind, running
from .launches import Use
from .profiled import kernel_times
from .records import Step, Unavailable
from .settings import Context

CALLS = 20  # that the profiler sees


def steps(context: Context) -> list[Step]:
    """Triton's first, in which a model of the kernels is to be confirmed or refuted."""
    kinds = [context.repeated._replace(shape=(n, *context.sizes.stages[0])) for n in context.sizes.first_batches]
    measures = (("triton", _alone), ("cuda", _profiled))
    return [
        Step(f"{name} {kind}", partial(measure, context, name, kind), 5, uses(kind) if name == "triton" else ())
        for name, measure in measures
        for kind in kinds
    ]


def uses(kind: Kind) -> tuple[Use, ...]:
    return (Use("triton", kind, torch.float32),)


def _alone(context: Context, name: str, kind: Kind) -> dict[str, Any]:
    """Device times of every launch of one call, by the kernel's name, with warm and with cold L2."""
    from gala_cuda.backends.triton import launch

    call = _call(context, name, kind)
    kept: list[tuple[str, Callable[[], object]]] = []
    original = launch.Step.__call__

    def keep(step, *tensors) -> None:
        original(step, *tensors)
        kept.append((step.kernel.fn.__name__, partial(original, step, *tensors)))

    call()
    with mock.patch.object(launch.Step, "__call__", keep):
        call()
    calls = {}
    for kernel, again in kept:
        number = sum(1 for title in calls if title.split()[0] == kernel)
        calls[f"{kernel} {number + 1}" if number else kernel] = (context.trials.watched(kernel, again),)
    clock, found = clock_of(context.device), {}
    for mode in ("cold", "warm"):
        timings = device_times(calls, context.sizes.seconds, clock, mode == "cold")
        found[mode] = {kernel: timing[-1].median for kernel, timing in timings.items()}
    return {"seconds": found}


def _profiled(context: Context, name: str, kind: Kind) -> dict[str, Any]:
    """Seconds of each kernel in one call, its launches together, L2 as the kernels before left it."""
    found = kernel_times(_call(context, name, kind), CALLS)
    if not found:
        raise Unavailable("torch's profiler saw no kernel")
    return {"seconds": {"in calls": found}}


def _call(context: Context, name: str, kind: Kind) -> Callable[[], object]:
    """Forward and backward of a layer."""
    reason = context.why_not(name, kind)
    if reason:
        raise Unavailable(reason)
    torch.manual_seed(context.seed)
    x, grad = (
        torch.randn(kind.shape, device=context.device).to(kind.dtype, memory_format=torch.channels_last)
        for _ in range(2)
    )
    x.requires_grad_()
    with running(name) as backend:
        layer = GALA(kind.shape[1], backend=backend, device=context.device)
    leaves = [x, *layer.parameters()]
    return lambda: torch.autograd.grad(layer(x), leaves, grad)
