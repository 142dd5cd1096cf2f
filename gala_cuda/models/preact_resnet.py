"""The network of the authors' released code: a ResNet of pre-activation blocks with attention on their inputs."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import check_positive
from ..released import ReleasedGALA
from .blocks import maps_wanted, select_blocks
from .narrow_convs import replace_narrow_convs
from .resnet import ARCHITECTURES, STAGES, Stage, check_stem, named

__all__ = ["PreActResNet", "gala_preact_resnet50", "preact_resnet50"]

_DEPTH = 50


class PreActBottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions, each behind its BatchNorm and ReLU (He et al., ECCV 2016).

    ``attention``, where there is one, multiplies the block's input on its way into the dense path; the identity
    shortcut has the input as it is. That the shortcut goes past the attention is our reading of "attention on the block
    input": the paper does not describe this network. A projecting shortcut starts behind the first ReLU.
    """

    expansion = 4
    attention: nn.Module | None
    downsample: nn.Module | None

    def __init__(self, in_channels: int, channels: int, stride: int, **factory):
        super().__init__()
        out_channels = channels * self.expansion
        self.register_module("attention", None)
        self.bn1 = nn.BatchNorm2d(in_channels, **factory)
        self.conv1 = nn.Conv2d(in_channels, channels, 1, bias=False, **factory)
        self.bn2 = nn.BatchNorm2d(channels, **factory)
        self.conv2 = nn.Conv2d(channels, channels, 3, stride, padding=1, bias=False, **factory)
        self.bn3 = nn.BatchNorm2d(channels, **factory)
        self.conv3 = nn.Conv2d(channels, out_channels, 1, bias=False, **factory)
        projects = stride != 1 or in_channels != out_channels
        self.downsample = nn.Conv2d(in_channels, out_channels, 1, stride, bias=False, **factory) if projects else None

    def forward(self, x: Tensor, return_map: bool = False) -> Tensor | tuple[Tensor, Tensor]:
        """x [N, C_in, H, W] to [N, C, H / stride, W / stride]; with ``return_map`` also the map of its GALA."""
        return_map = maps_wanted(return_map)
        attended, attn_map = x, None
        if return_map:
            if not isinstance(self.attention, ReleasedGALA):
                raise ValueError("return_map is True; expected False of a block without GALA")
            attended, attn_map = self.attention(x, return_map=True)
        elif self.attention is not None:
            attended = self.attention(x)
        first = F.relu(self.bn1(attended))
        out = self.conv2(F.relu(self.bn2(self.conv1(first))))
        out = self.conv3(F.relu(self.bn3(out)))
        out = out + (x if self.downsample is None else self.downsample(first))
        return out if attn_map is None else (out, attn_map)


class PreActResNet(nn.Module):
    """ResNet-50 of pre-activation blocks, without normalisation in its stem and with one before its last layer.

    Args:
        num_classes: width of the last layer.
        in_channels, stem, width, device, dtype: as of ``ResNet``.

    Raises:
        ValueError: an argument is out of range; the message names it.
    """

    def __init__(
        self,
        num_classes: int = 1000,
        *,
        in_channels: int = 3,
        stem: str = "imagenet",
        width: int = 64,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        check_stem(stem)
        check_positive(num_classes=num_classes, in_channels=in_channels, width=width)
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        small = stem == "small"
        kernel, stride = (3, 1) if small else (7, 2)
        self.conv1 = nn.Conv2d(in_channels, width, kernel, stride, padding=kernel // 2, bias=False, **factory)
        self.maxpool = nn.Identity() if small else nn.MaxPool2d(3, stride=2, padding=1)
        channels = width
        for i, (name, depth) in enumerate(zip(STAGES, ARCHITECTURES[_DEPTH][1], strict=True)):
            stage = Stage()
            for j in range(depth):
                stage.append(PreActBottleneck(channels, width * 2**i, stride=2 if i and not j else 1, **factory))
                channels = width * 2**i * PreActBottleneck.expansion
            self.add_module(name, stage)
        self.bn = nn.BatchNorm2d(channels, **factory)
        self.fc = nn.Linear(channels, num_classes, **factory)
        replace_narrow_convs(self)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor, return_maps: bool = False) -> Tensor | tuple[Tensor, dict[str, Tensor]]:
        """As of ``ResNet``: images x [N, in_channels, H, W] to logits [N, num_classes], and perhaps maps by block.

        Raises:
            ValueError: ``return_maps`` of a network without GALA.
        """
        return_maps = maps_wanted(return_maps)
        if return_maps and not any(isinstance(module, ReleasedGALA) for module in self.modules()):
            raise ValueError("return_maps is True, but this network has no GALA block; see gala_preact_resnet50")
        x, maps = self.maxpool(self.conv1(x)), dict[str, Tensor]()
        for name in STAGES:
            stage = self.get_submodule(name)
            if return_maps:
                x, stage_maps = stage(x, return_maps=True)
                maps |= {f"{name}.{number}": attn_map for number, attn_map in stage_maps.items()}
            else:
                x = stage(x)
        logits = self.fc(F.relu(self.bn(x)).mean((2, 3)))
        return (logits, maps) if return_maps else logits


@named
def preact_resnet50(num_classes: int = 1000, **options) -> PreActResNet:
    """ResNet-50 of pre-activation blocks. Options: in_channels, stem, width, device, dtype, as of ``PreActResNet``."""
    return PreActResNet(num_classes, **options)


@named
def gala_preact_resnet50(
    num_classes: int = 1000,
    layers: str | Sequence[str] = ("layer3",),
    reduction: int = 4,
    init: str = "paper",
    **options,
) -> PreActResNet:
    """The network of the authors' released code: ``ReleasedGALA`` on the inputs of the blocks of ``layers``.

    Args:
        num_classes: width of the last layer.
        layers: names of stages or blocks, such as "layer3" or "layer3.0".
        reduction: as of ``ReleasedGALA``.
        init: "paper", which is how ``ReleasedGALA`` starts.
        options: as of ``preact_resnet50``.

    Raises:
        ValueError: an argument is out of range, or an entry of ``layers`` names no block; the message says which.
    """
    if init != "paper":
        raise ValueError(f"init is {init!r}; expected 'paper', as the released code has it")
    model = PreActResNet(num_classes, **options)
    blocks = {name: module for name, module in model.named_modules() if isinstance(module, PreActBottleneck)}
    for name in select_blocks(blocks, layers, "layers"):
        first = blocks[name].bn1
        blocks[name].attention = ReleasedGALA(
            first.num_features, reduction, device=first.weight.device, dtype=first.weight.dtype
        )
    return model
