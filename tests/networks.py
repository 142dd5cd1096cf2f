"""Networks of each library with random states, and their inputs, for the tests of the models."""

from typing import TypeVar

import pytest
import torch
from torch import nn

import gala_cuda

Network = TypeVar("Network", bound=nn.Module)


@torch.no_grad()
def randomized(model: Network, seed: int = 0) -> Network:
    """The model with random scale, shift and statistics in every BatchNorm: the initial ones would hide mistakes."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if hasattr(module, "running_mean"):
            for name, centre, spread in (
                ("weight", 1.0, 0.3),
                ("bias", 0.0, 0.3),
                ("running_mean", 0.0, 0.3),
                ("running_var", 1.0, 0.15),
            ):
                tensor = getattr(module, name)
                if tensor is not None:
                    values = torch.randn(tensor.shape, generator=generator)
                    tensor.copy_(centre + spread * values.clamp(-2, 2))
    return model


def images(n: int = 2, size: int = 32, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    """n random images [n, 3, size, size], the same in every call."""
    return torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(7), dtype=torch.float64).to(dtype)


def relative_difference(found: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest difference as a fraction of the largest expected value."""
    return ((found - expected).abs().max() / expected.abs().max()).item()


def torchvision_resnet(block: str, **options) -> nn.Module:
    resnet = pytest.importorskip("torchvision.models.resnet", reason="torchvision is not installed")
    return resnet.ResNet(getattr(resnet, block), [1, 1, 2, 1], num_classes=5, **options)


def timm_resnet(block: str, **options) -> nn.Module:
    resnet = pytest.importorskip("timm.models.resnet", reason="timm is not installed")
    return resnet.ResNet(getattr(resnet, block), (1, 1, 2, 1), num_classes=5, **options)


def timm_with_everything() -> nn.Module:
    """A ResNet with anti-aliasing, another activation, drop_block and drop_path, all of which convert must keep."""
    layers = pytest.importorskip("timm.layers", reason="timm is not installed")
    return timm_resnet(
        "Bottleneck", aa_layer=layers.BlurPool2d, act_layer=nn.SiLU, drop_path_rate=0.3, drop_block_rate=0.2
    )


def frozen_batch_norm() -> nn.Module:
    misc = pytest.importorskip("torchvision.ops.misc", reason="torchvision is not installed")
    return torchvision_resnet("Bottleneck", norm_layer=misc.FrozenBatchNorm2d)


NETWORKS = {
    "torchvision-basic": lambda: torchvision_resnet("BasicBlock"),
    "torchvision-bottleneck": lambda: torchvision_resnet("Bottleneck"),
    "timm-basic": lambda: timm_resnet("BasicBlock"),
    "timm-bottleneck": lambda: timm_resnet("Bottleneck"),
    "ours-basic": lambda: gala_cuda.resnet18(5, width=16),
    "ours-bottleneck": lambda: gala_cuda.resnet26(5, width=16),
}
VARIANTS = {
    "timm-everything": timm_with_everything,
    "timm-drop-path": lambda: timm_resnet("BasicBlock", drop_path_rate=0.3),
    "frozen": frozen_batch_norm,
    "group-norm": lambda: torchvision_resnet("Bottleneck", norm_layer=lambda channels: nn.GroupNorm(8, channels)),
}


def network(name: str, dtype: torch.dtype = torch.float64) -> nn.Module:
    torch.manual_seed(0)
    return randomized((NETWORKS | VARIANTS)[name]()).to(dtype)
