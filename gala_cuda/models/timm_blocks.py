"""timm's residual blocks with GALA. ``convert`` imports this module only for a network with such blocks.

Attention takes the place of timm's ``se``, before drop_path; ``convert`` refuses blocks that have an ``se``.
"""

from typing import Any

from timm.layers import DropPath
from timm.models.resnet import BasicBlock, Bottleneck
from torch import Tensor, nn

from .blocks import attend_and_add, has_hooks


class GALABasicBlock(BasicBlock):
    """timm's BasicBlock with ``attention`` after bn2."""

    aa: nn.Module  # the anti-aliasing; nn.Identity where there is none

    def forward(self, x: Tensor) -> Tensor:
        out = self.act1(self.drop_block(self.bn1(self.conv1(x))))
        out = self.bn2(self.conv2(self.aa(out)))
        return _attend_and_add(self, out, x, self.act2)


class GALABottleneck(Bottleneck):
    """timm's Bottleneck with ``attention`` after bn3."""

    aa: nn.Module

    def forward(self, x: Tensor) -> Tensor:
        out = self.act1(self.bn1(self.conv1(x)))
        out = self.act2(self.drop_block(self.bn2(self.conv2(out))))
        out = self.bn3(self.conv3(self.aa(out)))
        return _attend_and_add(self, out, x, self.act3)


def _attend_and_add(block: Any, out: Tensor, x: Tensor, activation: nn.Module) -> Tensor:
    shortcut = x if block.downsample is None else block.downsample(x)
    drop_path = block.drop_path
    if drop_path is None or (type(drop_path) is DropPath and not drop_path.training and not has_hooks(drop_path)):
        return attend_and_add(block.attention, out, shortcut, activation)
    return activation(drop_path(block.attention(out)) + shortcut)


GALA_FORMS: dict[type[nn.Module], type[nn.Module]] = {BasicBlock: GALABasicBlock, Bottleneck: GALABottleneck}
