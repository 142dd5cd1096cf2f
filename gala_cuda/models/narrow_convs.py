"""1x1 convolutions of few channels with a stride, computed without a fault of torch's own on CPUs.

oneDNN's gradient of their weights, in channels_last, writes past the end of its buffer where there are fewer input
channels than its kernels are wide: 8 with AVX2, 16 with AVX-512 (torch 2.14.1). Trials with groups met no fault; they
are treated alike. Taking every stride-th pixel first and convolving those without a stride gives the same result.
"""

import torch.nn.functional as F
from torch import Tensor, nn

_WIDEST_KERNEL = 16  # channels


class NarrowConv2d(nn.Conv2d):
    """A 1x1 convolution with a stride and without padding, in two steps."""

    def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        rows, columns = self.stride
        return F.conv2d(x[..., ::rows, ::columns], weight, bias, groups=self.groups)


def replace_narrow_convs(model: nn.Module) -> None:
    """Turn the convolutions of ``model`` that can meet the fault into ``NarrowConv2d``; weights and hooks stay."""
    for module in model.modules():
        if type(module) is nn.Conv2d and _can_fail(module):
            module.__class__ = NarrowConv2d


def _can_fail(conv: nn.Conv2d) -> bool:
    narrow = conv.in_channels // conv.groups < _WIDEST_KERNEL
    return narrow and conv.kernel_size == (1, 1) and conv.stride != (1, 1) and conv.padding in ((0, 0), "valid")
