"""FlopCounterMode counts the operators as it counts the reference's own products."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import gala_cuda
from gala_cuda import GALA


def counted(backend, bias=False, need_input=True, need_weights=True, residual=False, backward=True):
    layer = GALA(12, 3, init="paper", bias=bias, backend=backend).requires_grad_(need_weights)
    x = torch.randn(3, 12, 5, 7, requires_grad=need_input)
    shortcut = torch.randn_like(x) if residual else None
    with FlopCounterMode(display=False) as counter:
        out, attn_map = layer(x, residual=shortcut, return_map=True)
        if backward:
            (out.sum() + attn_map.sum()).backward()
    return counter.get_total_flops()


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"backward": False}, id="forward"),
        pytest.param({}, id="all"),
        pytest.param({"bias": True, "residual": True}, id="bias-residual"),
        pytest.param({"need_input": False}, id="weights-only"),
        pytest.param({"need_weights": False}, id="input-only"),
    ],
)
def test_the_count_is_the_references(cpu_backend, options):
    assert counted(cpu_backend, **options) == counted("reference", **options) > 0


def test_the_count_of_a_network_is_by_its_layers(cpu_backend):
    model, image = gala_cuda.gala_resnet18(5, width=16, stem="small"), torch.zeros(1, 3, 16, 16)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(image)
    of_layer = 2 * (16 * 64 * 16 + 16 * 16 + 2 * 64 * 16)  # C 64, R 16, 4x4 pixels; a product and a sum are two
    assert counter.get_flop_counts()["ResNet.layer3.0.attention"][torch.ops.gala_cuda.gala] == of_layer
