"""Measures the CPU time of one call on the triton backend: `python -m benchmarks.launch_cost`.

On a GPU the calls are real. Without one, empty functions stand in for the launches, so that what is measured is the way
to them: checks, autograd, the plan's key, allocations and arguments. Triton's launcher and the driver take some
microseconds more for each launch.
"""

import os
import time
from collections.abc import Callable
from typing import Any
from unittest import mock

import torch

CUDA = torch.cuda.is_available()
if not CUDA:
    os.environ["TRITON_INTERPRET"] = "1"

from gala_cuda import GALA  # noqa: E402
from gala_cuda.backends import triton  # noqa: E402
from gala_cuda.backends.interface import BackwardCall, ForwardCall  # noqa: E402
from gala_cuda.backends.squash import Squash  # noqa: E402
from gala_cuda.backends.triton import launch  # noqa: E402

SHAPE = (2, 64, 14, 14)
CALLS, ROUNDS = 200, 15


class Nothing:
    """A compiled kernel that does nothing, and counts how often."""

    launches = 0
    function = packed_metadata = None

    def run(self, *arguments: object) -> None:
        Nothing.launches += 1


def compile_to_nothing() -> None:
    """From now on, launches are made with a kernel that is already compiled, to nothing."""
    make = launch.KernelLaunch.__init__

    def make_empty(made: launch.KernelLaunch, *arguments: Any) -> None:
        make(made, *arguments)
        made.compiled = Nothing()

    mock.patch.object(launch.KernelLaunch, "__init__", make_empty).start()


def microseconds(call: Callable[[], object]) -> float:
    """Microseconds of CPU time of this thread for one call, the least of some rounds."""
    fastest = float("inf")
    for _ in range(ROUNDS):
        if CUDA:
            torch.cuda.synchronize()
        start = time.thread_time()
        for _ in range(CALLS):
            call()
        fastest = min(fastest, (time.thread_time() - start) / CALLS)
    return 1e6 * fastest


def main() -> None:
    if not CUDA:
        compile_to_nothing()
    device = "cuda" if CUDA else "cpu"
    layer = GALA(SHAPE[1], init="paper", backend="triton", device=device)
    x, grad = (torch.randn(SHAPE, device=device).bfloat16().to(memory_format=torch.channels_last) for _ in range(2))
    leaf = x.clone().requires_grad_()
    w = layer.weights
    forward = ForwardCall(x, w, None, Squash.TANH, return_map=False, save=False)
    _, _, stats, relu_mask = triton.forward(forward._replace(save=True))
    assert stats is not None
    assert relu_mask is not None
    arguments = BackwardCall(grad, None, x, w, None, stats, relu_mask, Squash.TANH, True, True)
    calls = {
        "backend, forward": lambda: triton.forward(forward),
        "backend, backward": lambda: triton.backward(arguments),
        "layer, no grad": torch.no_grad()(lambda: layer(x)),
        "layer, forward": lambda: layer(leaf),
        "layer, forward and backward": lambda: torch.autograd.grad(layer(leaf), (leaf, *layer.parameters()), grad),
    }
    print(f"{'µs of CPU time':28}     {'' if CUDA else 'launches, which are not included'}")
    for name, call in calls.items():
        time_of_call = microseconds(call)
        Nothing.launches = 0
        call()
        print(f"{name:28} {time_of_call:6.1f}" + ("" if CUDA else f"  {Nothing.launches}"))


if __name__ == "__main__":
    main()
