"""1x1 convolutions of few channels with a stride, whose gradient by torch damages memory on some CPUs."""

import ctypes
import os
import subprocess
import sys

import pytest
import torch
from networks import network
from torch import nn

import gala_cuda
from gala_cuda import convert
from gala_cuda.models.narrow_convs import NarrowConv2d, replace_narrow_convs

NETWORKS = [name for name in gala_cuda.__all__ if "resnet" in name]
STEPS = """
import sys
import torch
import gala_cuda

def step(name, width, stem, size):
    torch.manual_seed(0)
    model = getattr(gala_cuda, name)(3, width=width, stem=stem).to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    x = torch.randn(2, 3, size, size).to(memory_format=torch.channels_last)
    model(x).square().sum().backward()
    optimizer.step()

torch.set_num_threads(1)
for name in sys.argv[1:]:
    step(name, 4, "small", 16)
step("gala_resnet18", 6, "imagenet", 64)
step("gala_resnet26", 1, "imagenet", 64)
step("gala_resnet18", 8, "imagenet", 224)
step("resnet18", 15, "imagenet", 224)
print("finished")
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("isa", "names"), [pytest.param("AVX2", NETWORKS, id="avx2"), pytest.param("ALL", [], id="own")]
)
def test_no_network_damages_memory(isa, names):
    """Training steps under glibc's checking allocator, which ends the process at the fault; a crash counts too."""
    library = "libc_malloc_debug.so.0"
    try:
        ctypes.CDLL(library)
    except OSError:
        pytest.skip(f"{library} of glibc is not installed")
    checking = {"LD_PRELOAD": library, "MALLOC_CHECK_": "3", "ONEDNN_MAX_CPU_ISA": isa}
    run = subprocess.run(
        [sys.executable, "-c", STEPS, *names], env={**os.environ, **checking}, capture_output=True, text=True
    )
    assert (run.returncode, run.stdout) == (0, "finished\n"), run.stderr


@pytest.mark.parametrize(
    ("channels", "options"),
    [
        pytest.param(4, {"stride": 2, "bias": False}, id="shortcut"),
        pytest.param(7, {"stride": (3, 1)}, id="bias"),
        pytest.param(12, {"stride": 2, "groups": 3}, id="groups"),
    ],
)
@pytest.mark.parametrize("size", [8, 7])
def test_a_guarded_convolution_computes_the_same(channels, options, size):
    torch.manual_seed(0)
    conv = nn.Conv2d(channels, 12, 1, dtype=torch.float64, **options)
    x = torch.randn(2, channels, size, size, dtype=torch.float64, requires_grad=True)

    def answers():
        out = conv(x)
        return out, *torch.autograd.grad(out.square().sum(), [x, *conv.parameters()])

    expected, keys = answers(), list(conv.state_dict())
    replace_narrow_convs(conv)
    assert type(conv) is NarrowConv2d
    assert list(conv.state_dict()) == keys
    for found, wanted in zip(answers(), expected, strict=True):
        assert torch.allclose(found, wanted, rtol=1e-12, atol=1e-12)


def test_only_what_can_fail_is_guarded():
    fine = [
        nn.Conv2d(16, 16, 1, 2), nn.Conv2d(4, 8, 1), nn.Conv2d(4, 8, 3, 2, padding=1), nn.Conv2d(4, 8, 1, 2, padding=1),
        nn.Conv2d(32, 32, 1, 2, groups=2),
    ]  # fmt: skip
    for conv in fine:
        replace_narrow_convs(conv)
        assert type(conv) is nn.Conv2d
    narrow = [name for name, module in gala_cuda.resnet18(3, width=8).named_modules() if type(module) is NarrowConv2d]
    assert narrow == ["layer2.0.downsample.0"]
    assert not any(type(module) is NarrowConv2d for module in gala_cuda.resnet18(3, width=16).modules())


def test_convert_guards_a_narrow_network():
    timm = pytest.importorskip("timm.models.resnet", reason="timm is not installed")
    model = timm.ResNet(timm.BasicBlock, (1, 1, 1, 1), num_classes=3, channels=(8, 16, 16, 16))
    convert(model)
    narrow = [name for name, module in model.named_modules() if type(module) is NarrowConv2d]
    assert narrow == ["layer2.0.downsample.0"]
    assert not any(type(module) is NarrowConv2d for module in convert(network("timm-basic")).modules())
