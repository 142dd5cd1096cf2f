"""Networks for the tests of the models: their sizes and states."""

import torch
from torch import nn


@torch.no_grad()
def randomized(model: nn.Module, seed: int = 0) -> nn.Module:
    """The model with random scale, shift and statistics in every BatchNorm, which otherwise hide mistakes."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if hasattr(module, "running_mean"):
            for tensor, centre, spread in (
                (module.weight, 1.0, 0.3),
                (module.bias, 0.0, 0.3),
                (module.running_mean, 0.0, 0.3),
                (module.running_var, 1.0, 0.15),
            ):
                if tensor is not None:
                    values = torch.randn(tensor.shape, generator=generator)
                    tensor.copy_(centre + spread * values.clamp(-2, 2))
    return model


def images(n: int = 2, size: int = 32, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    """n random images [n, 3, size, size], the same in every call."""
    return torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(7), dtype=torch.float64).to(dtype)


def relative_difference(found: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest difference as a share of the largest expected value."""
    return ((found - expected).abs().max() / expected.abs().max()).item()
