"""Times the GALA block of every backend under pytest-benchmark: `python -m pytest benchmarks/bench_operator.py`.

It is for watching one backend over time (`--benchmark-autosave`, `--benchmark-compare`). To compare the backends with
torch.compile, take `gala-cuda bench`, which calls its contestants in turn and pins the allocator.
"""

import pytest
import torch

from gala_cuda import backends
from gala_cuda.bench.correctness import check
from gala_cuda.bench.peers import contestant

CPU = torch.device("cpu")
SHAPES = [(1, 1024, 14, 14), (8, 1024, 14, 14), (8, 256, 56, 56)]  # the paper's place at two batches; the largest map


@pytest.fixture(params=SHAPES, ids=lambda shape: "x".join(map(str, shape)))
def x(request):
    torch.manual_seed(0)
    return torch.randn(request.param).to(memory_format=torch.channels_last).requires_grad_()


@pytest.fixture(params=("eager", *backends.NAMES))
def block(request, x):
    """A contestant that agrees with float64 on x."""
    name = request.param
    reason = backends.why_not(name, x) if name in backends.NAMES else None
    if reason:
        pytest.skip(f"{name}: {reason}")
    found = contestant(name, x.shape[1], 4, x.dtype, CPU)
    check([found], x, torch.randn_like(x))
    return found


def test_forward(benchmark, block, x):
    with torch.no_grad():
        benchmark(block.call, x)


def test_forward_backward(benchmark, block, x):
    grad, leaves = torch.randn_like(x), [x, *block.module.parameters()]
    benchmark(lambda: torch.autograd.grad(block.call(x), leaves, grad))
