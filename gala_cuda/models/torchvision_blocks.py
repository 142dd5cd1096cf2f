"""torchvision's residual blocks with GALA. ``convert`` imports this module only for a network with such blocks."""

from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck

from .blocks import attend_and_add


class GALABasicBlock(BasicBlock):
    """torchvision's BasicBlock with ``attention`` after bn2."""

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        shortcut = x if self.downsample is None else self.downsample(x)
        return attend_and_add(self.attention, out, shortcut, self.relu)


class GALABottleneck(Bottleneck):
    """torchvision's Bottleneck with ``attention`` after bn3."""

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        shortcut = x if self.downsample is None else self.downsample(x)
        return attend_and_add(self.attention, out, shortcut, self.relu)


GALA_FORMS: dict[type[nn.Module], type[nn.Module]] = {BasicBlock: GALABasicBlock, Bottleneck: GALABottleneck}
