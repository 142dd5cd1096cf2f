"""ResNet, SE-ResNet and GALA-ResNet in depths from 18 to 101."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import check_positive
from ..layer import GALA, starts_at_0
from .blocks import BasicBlock, Bottleneck, double, last_layers, maps_wanted, select_blocks
from .narrow_convs import replace_narrow_convs
from .squeeze_excite import SqueezeExcite

__all__ = [
    "ResNet",
    "gala_resnet18", "gala_resnet26", "gala_resnet34", "gala_resnet50", "gala_resnet101",
    "resnet18", "resnet26", "resnet34", "resnet50", "resnet101",
    "se_resnet18", "se_resnet26", "se_resnet34", "se_resnet50", "se_resnet101",
]  # fmt: skip

# By depth: the kind of residual block, and how many of them in each stage.
ARCHITECTURES: dict[int, tuple[type[BasicBlock | Bottleneck], tuple[int, ...]]] = {
    18: (BasicBlock, (2, 2, 2, 2)),
    26: (Bottleneck, (2, 2, 2, 2)),
    34: (BasicBlock, (3, 4, 6, 3)),
    50: (Bottleneck, (3, 4, 6, 3)),
    101: (Bottleneck, (3, 4, 23, 3)),
}
_STEMS = ("imagenet", "small")
STAGES = ("layer1", "layer2", "layer3", "layer4")


def check_stem(stem: str) -> None:
    """Raises ValueError where there is no such stem."""
    if stem not in _STEMS:
        raise ValueError(f"stem is {stem!r}; expected one of {', '.join(map(repr, _STEMS))}")


class Stage(nn.Sequential):
    """The residual blocks of one resolution."""

    def forward(self, x: Tensor, return_maps: bool = False) -> Tensor | tuple[Tensor, dict[str, Tensor]]:
        """x through the blocks; with ``return_maps`` also the maps [N, H, W] of GALA blocks by their names."""
        maps, return_maps = {}, maps_wanted(return_maps)
        for name, block in self.named_children():
            if return_maps and isinstance(block.attention, GALA):
                x, maps[name] = block(x, return_map=True)
            else:
                x = block(x)
        return (x, maps) if return_maps else x


class ResNet(nn.Module):
    """ResNet (He et al., CVPR 2016), v1.5: the stride of a Bottleneck sits in its 3x3 convolution.

    The state-dict keys and, with the same weights, the outputs equal those of torchvision (and of timm for depth 26).

    Args:
        depth: 18, 26, 34, 50 or 101; 18 and 34 have BasicBlocks, the others Bottlenecks.
        num_classes: width of the last layer.
        in_channels: channels of the input images.
        stem: "imagenet" (7x7 convolution of stride 2 and max pooling, a quarter of the resolution) or "small" (3x3
            convolution of stride 1, full resolution, for images of about 32x32 and less).
        width: channels of layer1 before a Bottleneck's expansion; every further stage doubles them.
        zero_init_residual: start with the weight of each block's last BatchNorm at 0, so that blocks are identities.
        device, dtype: of the parameters.

    Raises:
        ValueError: an argument is out of range; the message names it.
    """

    def __init__(
        self,
        depth: int,
        num_classes: int = 1000,
        *,
        in_channels: int = 3,
        stem: str = "imagenet",
        width: int = 64,
        zero_init_residual: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        if depth not in ARCHITECTURES:
            raise ValueError(f"depth is {depth!r}; expected one of {', '.join(map(str, ARCHITECTURES))}")
        check_stem(stem)
        check_positive(num_classes=num_classes, in_channels=in_channels, width=width)
        block, depths = ARCHITECTURES[depth]
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        small = stem == "small"
        kernel, stride = (3, 1) if small else (7, 2)
        self.conv1 = nn.Conv2d(in_channels, width, kernel, stride, padding=kernel // 2, bias=False, **factory)
        self.bn1 = nn.BatchNorm2d(width, **factory)
        self.maxpool = nn.Identity() if small else nn.MaxPool2d(3, stride=2, padding=1)
        channels = width
        for i, stage_name in enumerate(STAGES):
            stage = Stage()
            for j in range(depths[i]):
                stage.append(block(channels, width * 2**i, stride=2 if i and not j else 1, **factory))
                channels = width * 2**i * block.expansion
            self.add_module(stage_name, stage)
        self.fc = nn.Linear(channels, num_classes, **factory)
        replace_narrow_convs(self)
        self._init_weights(zero_init_residual)

    def _init_weights(self, zero_init_residual: bool) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        if zero_init_residual:
            for _, block in self.blocks():
                nn.init.zeros_(last_layers(block)[1].get_parameter("weight"))

    def blocks(self) -> Iterator[tuple[str, nn.Module]]:
        """The residual blocks and their names, "layer1.0" and so on."""
        for stage_name in STAGES:
            for name, block in self.get_submodule(stage_name).named_children():
                yield f"{stage_name}.{name}", block

    def forward(self, x: Tensor, return_maps: bool = False) -> Tensor | tuple[Tensor, dict[str, Tensor]]:
        """Images x [N, in_channels, H, W] to logits [N, num_classes].

        With ``return_maps`` also the attention map of every GALA block by its name, {"layer3.0": [N, H', W'], ...}: the
        L2 norm of the attention over channels, float32 (float64 for float64 x), differentiable.

        Raises:
            ValueError: ``return_maps`` of a network without GALA.
        """
        return_maps = maps_wanted(return_maps)
        if return_maps and not any(isinstance(block.attention, GALA) for _, block in self.blocks()):
            raise ValueError("return_maps is True, but this network has no GALA block; see gala_resnet50 and convert")
        x = self.maxpool(F.relu(self.bn1(self.conv1(x)), inplace=True))
        maps = {}
        for stage_name in STAGES:
            stage = self.get_submodule(stage_name)
            if return_maps:
                x, stage_maps = stage(x, return_maps=True)
                maps.update({f"{stage_name}.{name}": attn_map for name, attn_map in stage_maps.items()})
            else:
                x = stage(x)
        logits = self.fc(x.mean((2, 3)))
        return (logits, maps) if return_maps else logits


MODELS: dict[str, Callable[..., nn.Module]] = {}  # the functions below and of preact_resnet, by their names
Builder = TypeVar("Builder", bound=Callable[..., nn.Module])


def named(builder: Builder) -> Builder:
    """Makes the function one of ``MODELS``."""
    MODELS[builder.__name__] = builder
    return builder


@named
def resnet18(num_classes: int = 1000, **options) -> ResNet:
    """ResNet-18. Options: in_channels, stem, width, zero_init_residual, device, dtype, as for ``ResNet``."""
    return ResNet(18, num_classes, **options)


@named
def resnet26(num_classes: int = 1000, **options) -> ResNet:
    """ResNet-26, with two Bottlenecks per stage. Options as for ``resnet18``."""
    return ResNet(26, num_classes, **options)


@named
def resnet34(num_classes: int = 1000, **options) -> ResNet:
    """ResNet-34. Options as for ``resnet18``."""
    return ResNet(34, num_classes, **options)


@named
def resnet50(num_classes: int = 1000, **options) -> ResNet:
    """ResNet-50. Options as for ``resnet18``."""
    return ResNet(50, num_classes, **options)


@named
def resnet101(num_classes: int = 1000, **options) -> ResNet:
    """ResNet-101. Options as for ``resnet18``."""
    return ResNet(101, num_classes, **options)


@named
def se_resnet18(num_classes: int = 1000, reduction: int = 16, **options) -> ResNet:
    """SE-ResNet-18: ``SqueezeExcite`` at the end of every dense path. Options as for ``resnet18``."""
    return _se_resnet(18, num_classes, reduction, **options)


@named
def se_resnet26(num_classes: int = 1000, reduction: int = 16, **options) -> ResNet:
    """SE-ResNet-26. Options as for ``se_resnet18``."""
    return _se_resnet(26, num_classes, reduction, **options)


@named
def se_resnet34(num_classes: int = 1000, reduction: int = 16, **options) -> ResNet:
    """SE-ResNet-34. Options as for ``se_resnet18``."""
    return _se_resnet(34, num_classes, reduction, **options)


@named
def se_resnet50(num_classes: int = 1000, reduction: int = 16, **options) -> ResNet:
    """SE-ResNet-50. Options as for ``se_resnet18``."""
    return _se_resnet(50, num_classes, reduction, **options)


@named
def se_resnet101(num_classes: int = 1000, reduction: int = 16, **options) -> ResNet:
    """SE-ResNet-101. Options as for ``se_resnet18``."""
    return _se_resnet(101, num_classes, reduction, **options)


@named
def gala_resnet18(num_classes: int = 1000, layers: str | Sequence[str] = ("layer3",), **options) -> ResNet:
    """ResNet-18 with ``gala_cuda.GALA`` at the end of the dense paths of ``layers``.

    Args:
        num_classes: width of the last layer.
        layers: names of stages or blocks, such as "layer3" (the paper's choice in ResNet-50) or "layer3.0".
        options: reduction=4, squash=None, bias=None, init="half", backend=None as for ``gala_cuda.GALA``;
            in_channels, stem, width, zero_init_residual, device, dtype as for ``ResNet``.

    Without the keys ``<block>.attention.*`` the state dict is that of the plain network; with the same random seed,
    so are the initial weights, except that with ``init="half"`` the scales of the normalisations before GALA start at
    2, to make up for an attention near 1/2.

    Raises:
        ValueError: an argument is out of range, or an entry of ``layers`` names no block; the message says which.
    """
    return _gala_resnet(18, num_classes, layers, **options)


@named
def gala_resnet26(num_classes: int = 1000, layers: str | Sequence[str] = ("layer3",), **options) -> ResNet:
    """ResNet-26 with GALA. Arguments as for ``gala_resnet18``."""
    return _gala_resnet(26, num_classes, layers, **options)


@named
def gala_resnet34(num_classes: int = 1000, layers: str | Sequence[str] = ("layer3",), **options) -> ResNet:
    """ResNet-34 with GALA. Arguments as for ``gala_resnet18``."""
    return _gala_resnet(34, num_classes, layers, **options)


@named
def gala_resnet50(num_classes: int = 1000, layers: str | Sequence[str] = ("layer3",), **options) -> ResNet:
    """The paper's GALA-ResNet-50. Arguments as for ``gala_resnet18``."""
    return _gala_resnet(50, num_classes, layers, **options)


@named
def gala_resnet101(num_classes: int = 1000, layers: str | Sequence[str] = ("layer3",), **options) -> ResNet:
    """ResNet-101 with GALA. Arguments as for ``gala_resnet18``."""
    return _gala_resnet(101, num_classes, layers, **options)


def _se_resnet(depth: int, num_classes: int, reduction: int, **options) -> ResNet:
    model = ResNet(depth, num_classes, **options)
    for _, block in model.blocks():
        conv, _ = last_layers(block)
        block.attention = SqueezeExcite(
            conv.out_channels, reduction, device=conv.weight.device, dtype=conv.weight.dtype
        )
    return model


def _gala_resnet(
    depth: int,
    num_classes: int,
    layers: str | Sequence[str],
    reduction: int = 4,
    squash: str | None = None,
    bias: bool | None = None,
    init: str = "half",
    backend: str | None = None,
    **options,
) -> ResNet:
    if options.get("zero_init_residual") and starts_at_0(init, squash):
        raise ValueError("zero_init_residual is True; expected False with init='paper' and tanh: neither leaves 0")
    model = ResNet(depth, num_classes, **options)
    blocks = dict(model.blocks())
    for name in select_blocks(blocks, layers, "layers"):
        conv, norm = last_layers(blocks[name])
        factory: dict[str, Any] = {"device": conv.weight.device, "dtype": conv.weight.dtype}
        blocks[name].attention = GALA(conv.out_channels, reduction, squash, bias, init=init, backend=backend, **factory)
        if init == "half":
            double(norm)
    return model
