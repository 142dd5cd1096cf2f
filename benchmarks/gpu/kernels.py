"""Part "kernels": times each kernel of a forward and backward pass by itself, for the paper's shape in bfloat16.

Every launch of one call of the Triton backend is repeated alone and timed by CUDA events; then whole calls are, whose
kernels begin before the one before has ended, or after. The kernels of the CUDA backend are launched in C++; torch's
profiler gives their times within whole calls.
"""

from collections.abc import Callable
from functools import partial
from typing import Any
from unittest import mock

import torch

from gala_cuda import GALA
from gala_cuda.backends.triton import launch
from gala_cuda.backends.triton.config import multiprocessors

from .clock import clock_of, device_times
from .forms import CLUSTER, FORMS, Kind, running
from .profiled import kernel_times
from .records import Step, UnavailableError
from .settings import REDUCTION, Context, cluster_step
from .uses import Use

CALLS = 20  # that the profiler sees


def steps(context: Context) -> list[Step]:
    """The steps of Triton come first, which are to confirm or refute a model of the kernels, those of clusters last."""
    sizes, first = context.sizes, context.repeated
    kinds = [first._replace(shape=(n, *sizes.stages[0])) for n in sizes.first_batches]
    found = [Step(f"triton {kind}", partial(_alone, context, "triton", kind), 5, uses(kind)) for kind in kinds]
    found += [Step(f"triton overlapped {kind}", partial(_overlapped, context, kind), 3, uses(kind)) for kind in kinds]
    found += [Step(f"cuda {kind}", partial(_profiled, context, "cuda", kind), 3) for kind in kinds]
    for stage in sizes.stages:
        kind = first._replace(shape=(sizes.first_batches[-1], *stage), reduced=max(1, stage[0] // REDUCTION))
        found.append(Step(cluster_step(stage), partial(_profiled, context, CLUSTER, kind), 3))
    return found


def uses(kind: Kind) -> tuple[Use, ...]:
    return (Use(kind, torch.float32),)


def _alone(context: Context, name: str, kind: Kind) -> dict[str, Any]:
    """Device times of every launch of one call, by the kernel's name, with warm and with cold L2."""
    call = _call(context, name, kind)
    kept: list[tuple[str, Callable[[], object]]] = []
    original = launch.KernelLaunch.__call__

    def keep(step, *tensors, stream: int) -> None:
        original(step, *tensors, stream=stream)
        kept.append(
            (
                step.kernel.fn.__name__,
                lambda: original(step, *tensors, stream=launch.current_stream(context.device)),
            )
        )

    call()
    with mock.patch.object(launch.KernelLaunch, "__call__", keep):
        call()
    calls = {}
    for i, (kernel, again) in enumerate(kept):
        number = sum(1 for earlier, _ in kept[:i] if earlier == kernel)
        title = f"{kernel} {number + 1}" if number else kernel
        if title not in context.trials.excluded:
            calls[title] = (context.trials.watched(title, again),)
    clock, found = clock_of(context.device), {}
    for mode in ("cold", "warm"):
        timings = device_times(calls, context.sizes.seconds, clock, mode == "cold")
        found[mode] = {kernel: timing[-1].median for kernel, timing in timings.items()}
    return {"seconds": found, "left_out": context.trials.excluded}


def _overlapped(context: Context, kind: Kind) -> dict[str, Any]:
    """Device times of a whole call of the Triton backend with and without programmatic dependent launch."""
    if not multiprocessors(context.device).pdl:
        raise UnavailableError(f"no programmatic dependent launch on {context.device}, or GALA_TRITON_PDL is 0")
    call, launched = _call(context, "triton", kind), []
    original = launch.KernelLaunch.__call__

    def keep(step, *tensors, stream: int) -> None:
        original(step, *tensors, stream=stream)
        launched.append(step.compiled.run)

    with mock.patch.object(launch.KernelLaunch, "__call__", keep):
        call()

    def chosen(pdl: bool) -> None:
        for launcher in launched:
            launcher.launch_pdl = pdl

    calls = {"one after the other": (partial(chosen, False), call), "overlapped": (partial(chosen, True), call)}
    try:
        timings = device_times(calls, context.sizes.seconds, clock_of(context.device), cold=False)
    finally:
        chosen(True)
    return {"seconds": {"warm": {f"all, {how}": timing[-1].median for how, timing in timings.items()}}}


def _profiled(context: Context, name: str, kind: Kind) -> dict[str, Any]:
    """Seconds of each kernel in one call, its launches together, with the L2 cache as the kernels before left it.

    There are none if the profiler sees nothing.
    """
    return {"seconds": {"in calls": kernel_times(_call(context, name, kind), CALLS)}}


def _call(context: Context, name: str, kind: Kind) -> Callable[[], object]:
    """A call that runs a layer forward and backward."""
    reason = context.why_not(name, kind)
    if reason:
        raise UnavailableError(reason)
    torch.manual_seed(context.seed)
    x, grad = (
        torch.randn(kind.shape, device=context.device).to(kind.dtype, memory_format=torch.channels_last)
        for _ in range(2)
    )
    x.requires_grad_()
    layer = GALA(kind.shape[1], init="paper", backend=FORMS.get(name, name), device=context.device)
    leaves = [x, *layer.parameters()]

    def call() -> None:
        with running(name):
            torch.autograd.grad(layer(x), leaves, grad)

    return call
