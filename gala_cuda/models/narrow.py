"""1x1 convolutions of few channels and a stride, without the fault of torch's own on CPUs.

oneDNN's gradient of their weights, channels_last, writes past the end of its buffer where there are fewer input
channels than its kernels are wide: 8 with AVX2, 16 with AVX-512 (torch 2.14.1). Trials with groups met no fault; they
are treated alike. Taking the pixels first and convolving them without a stride gives the same.
"""

import torch.nn.functional as F
from torch import Tensor, nn

_ENOUGH = 16  # channels, the width of the widest kernels


class NarrowConv2d(nn.Conv2d):
    """A 1x1 convolution with a stride and without padding, as two steps."""

    def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        rows, columns = self.stride
        return F.conv2d(x[..., ::rows, ::columns], weight, bias, groups=self.groups)


def guard(model: nn.Module) -> None:
    """Make ``NarrowConv2d`` of the convolutions of ``model`` that can meet the fault; weights and hooks stay."""
    for module in model.modules():
        if type(module) is nn.Conv2d and _can_fail(module):
            module.__class__ = NarrowConv2d


def _can_fail(conv: nn.Conv2d) -> bool:
    narrow = conv.in_channels // conv.groups < _ENOUGH
    return narrow and conv.kernel_size == (1, 1) and conv.stride != (1, 1) and conv.padding in ((0, 0), "valid")
