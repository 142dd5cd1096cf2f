"""Predicted times of the CUDA kernels: that their warps are followed to where the work is, and who is refused."""

from pathlib import Path

import pytest
from shim import why_no_compiler

from gala_cuda import native
from tools.kernel_report import cuda_prediction
from tools.kernel_report.cuda_binary import Binary
from tools.kernel_report.cuda_report import tool
from tools.kernel_report.rates import GPUS

CUOBJDUMP = tool("cuobjdump")
CUDA = native.module is not None and "cuda" in native.module.build_info()
WHY_NOT = why_no_compiler() or ("no cuobjdump" if CUOBJDUMP is None else None if CUDA else "no CUDA kernels")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT or "")]

N, C, PIXELS, R = SHAPE = (64, 1024, 196, 256)
X = 2 * N * C * PIXELS  # bytes
PRODUCT = N * PIXELS * C * R  # multiply-adds of each of the three large products
HMMA = 16 * 8 * 16  # of one instruction


@pytest.fixture(scope="module", params=["A100", "H200"])
def kernels(request):
    """Those of both passes at the paper's shape, by name, on a GPU of each way to write a loop."""
    assert CUOBJDUMP is not None
    assert native.module is not None
    gpu = GPUS[request.param]
    binary = Binary(CUOBJDUMP, Path(str(native.module.__file__)), cuda_prediction.ARCHITECTURES[gpu.arch])
    return {
        kernel.name: kernel
        for name in ("forward", "backward")
        for kernel in cuda_prediction.predicted(SHAPE, name, binary, gpu)
    }


def test_every_kernel_is_predicted(kernels):
    forward = {"pack", "gather", "gather_finish", "gate", "scale"}
    backward = {"scale_backward", "sum", "combine", "grad_x", "outer", "column", "local_products", "local_grads"}
    assert set(kernels) == forward | backward
    for kernel in kernels.values():
        bounds = kernel.bounds
        assert 0 < max(bounds.issue, bounds.shared, bounds.tensor) <= bounds.walked * 1.01, kernel.name


@pytest.mark.parametrize("name", ["gather", "grad_x", "local_products"])
def test_the_products_are_all_there(name, kernels):
    """As many as the problem has; the blocks that are followed may have a few more or fewer than the others."""
    kernel = kernels[name]
    of_a_warp = sum(step.unit == "tensor cores" for path in kernel.paths for step in path) / len(kernel.paths)
    made = of_a_warp * kernel.warps * kernel.blocks * HMMA
    assert 0.9 * PRODUCT <= made <= 1.1 * PRODUCT


@pytest.mark.parametrize(("name", "tensors"), [("gather", 1), ("scale", 2), ("scale_backward", 2), ("grad_x", 2)])
def test_the_tensors_are_all_moved(name, tensors, kernels):
    """And beside them weights and statistics, of which several blocks read the same."""
    assert 0.9 * tensors * X <= kernels[name].bytes_l2 <= tensors * X + 6 * X


@pytest.mark.parametrize(
    ("symbol", "name"),
    [
        ("_ZN4gala4cuda12scale_kernelINS0_4bf16ELi8ELb1EEEvNS0_11ScaleParamsE", "scale"),
        ("_ZN4gala4cuda10sum_kernelENS0_9SumParamsE", "sum"),
    ],
)
def test_names(symbol, name):
    assert cuda_prediction.short_name(symbol) == name


def test_a_library_without_kernels_is_refused(tmp_path):
    assert CUOBJDUMP is not None
    assert native.module is not None
    with pytest.raises(ValueError, match="has no kernels for sm_75"):
        Binary(CUOBJDUMP, Path(str(native.module.__file__)), "75")


def test_the_command(capsys):
    assert cuda_prediction.main(["--images", "1"]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if "gather" in line or "N = 1" in line]
    assert "forward: 6 launches" in lines[0]
    assert all(cuda_prediction.NOTE in line for line in lines if "gather" in line)
