"""Times the released code's block on the CPU: fused, as PyTorch's operations, compiled, and its 5x5 convolution alone.

A call's time is the process's own CPU time, in turn, on one thread: other work on the machine hardly shows.

python -m benchmarks.released_cost --images 1 8 32
"""

import argparse
import copy
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor

from gala_cuda import ReleasedGALA
from gala_cuda.bench.timing import in_turn, pin_allocator
from gala_cuda.testing import norm_error, norm_tolerance

CHANNELS, SIDE = 1024, 14


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    pin_allocator()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    dtype = getattr(torch, options.dtype)
    fused, operations = ReleasedGALA(CHANNELS, backend="cpu"), ReleasedGALA(CHANNELS, backend="reference")
    operations.load_state_dict(fused.state_dict())
    _check(fused, operations, dtype)
    columns = "images", "", "fused, ms", "operations", "compiled", "5x5 alone"
    table = Table(*columns, title=f"{options.dtype}; times over that of fused")
    for images in options.images:
        x = _image(images, dtype).requires_grad_()
        torch.compiler.reset()
        blocks = {"fused": fused, "operations": operations, "compiled": torch.compile(operations, dynamic=False)}
        for label, calls in (
            ("forward", _forward(blocks, fused, x)),
            ("and backward", _both(blocks, fused, x)),
        ):
            times = _times(calls, options.rounds)
            base = times["fused"]
            others = (f"{times[name] / base:.2f}" for name in ("operations", "compiled", "convolution"))
            table.add_row(str(images), label, f"{1000 * base:.1f}", *others)
    Console().print(table)
    print(f"{options.rounds} rounds, medians; torch {torch.__version__}, {torch.get_num_threads()} thread")


def _image(images: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(images, CHANNELS, SIDE, SIDE).to(dtype).to(memory_format=torch.channels_last)


def _check(fused: ReleasedGALA, operations: ReleasedGALA, dtype: torch.dtype) -> None:
    x = _image(2, dtype)
    exact = copy.deepcopy(operations).double()
    with torch.no_grad():
        for block in (fused, operations):
            error = norm_error(block(x), exact(x.double()))
            assert error <= norm_tolerance(dtype), f"{block.backend} errs by {error:.1e}"


def _forward(blocks: dict, fused: ReleasedGALA, x: Tensor) -> dict[str, Callable[[], object]]:
    hidden = _hidden(fused, x)
    calls = {name: torch.no_grad()(lambda block=block: block(x)) for name, block in blocks.items()}
    return calls | {"convolution": torch.no_grad()(lambda: _convolution(fused, hidden))}


def _both(blocks: dict, fused: ReleasedGALA, x: Tensor) -> dict[str, Callable[[], object]]:
    grad, hidden = torch.randn_like(x), _hidden(fused, x).requires_grad_()

    def step(block) -> Callable[[], object]:
        leaves = [x, *block.parameters()]
        return lambda: torch.autograd.grad(block(x), leaves, grad)

    leaves, of_hidden = [hidden, *fused.spatial], torch.randn_like(hidden)
    alone = lambda: torch.autograd.grad(_convolution(fused, hidden), leaves, of_hidden)  # noqa: E731
    return {name: step(block) for name, block in blocks.items()} | {"convolution": alone}


def _hidden(fused: ReleasedGALA, x: Tensor) -> Tensor:
    reduced = len(fused.v_collapse)
    return torch.rand(len(x), reduced, SIDE, SIDE).to(x.dtype).to(memory_format=torch.channels_last)


def _convolution(fused: ReleasedGALA, hidden: Tensor) -> Tensor:
    weight, bias = (t.to(hidden.dtype) for t in fused.spatial)
    return F.conv2d(hidden, weight, bias, padding="same")


def _times(calls: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Seconds of the median call."""
    samples: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        call()
        call()
    for name in in_turn(list(calls), rounds):
        start = time.process_time()
        calls[name]()
        samples[name].append(time.process_time() - start)
    return {name: torch.tensor(each).median().item() for name, each in samples.items()}


if __name__ == "__main__":
    main()
