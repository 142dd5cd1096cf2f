"""The residual blocks of our ResNet, and what the blocks of every library share: where GALA sits in them.

Attention is ``block.attention``: after the last BatchNorm of the dense path, before the shortcut is added (Linsley et
al., section 3, "the final activity in a dense path of a residual module"). Counting the convolutions of ResNet-50 from
0, the paper's layers 24, 27, 30, 33, 36, 39 are the last convolutions of layer3.0 to layer3.5.
"""

import operator
from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from ..layer import GALA


def select_blocks(names: Iterable[str], where: str | Sequence[str], argument: str) -> list[str]:
    """Those of the blocks ``names`` that ``where`` selects, by name or by the name of a module around them.

    "layer3" selects "layer3.0", and not "layer30.0". Raises ValueError, which names ``argument`` and the names that
    exist, for an entry that selects no block.
    """
    wanted = [where] if isinstance(where, str) else list(where)
    prefixes = {name: _prefixes(name) for name in names}
    exist = list(dict.fromkeys(prefix for own in prefixes.values() for prefix in own))
    unmatched = [entry for entry in wanted if entry not in exist]
    if unmatched or not wanted:
        given = ", ".join(map(repr, unmatched)) or "nothing"
        raise ValueError(f"{argument} names {given}; expected names of the residual blocks {', '.join(exist)}")
    return [name for name, own in prefixes.items() if not set(wanted).isdisjoint(own)]


def _prefixes(name: str) -> list[str]:
    """``name`` and the names of the modules around it."""
    parts = name.split(".")
    return [".".join(parts[: i + 1]) for i in range(len(parts))]


def last_layers(block: nn.Module) -> tuple[nn.Conv2d, nn.Module]:
    """The convolution and the normalisation that end the dense path of a BasicBlock or a Bottleneck of any library."""
    number = 3 if hasattr(block, "conv3") else 2
    return getattr(block, f"conv{number}"), getattr(block, f"bn{number}")


def scale_and_shift(norm: nn.Module) -> dict[str, Tensor]:
    """Those that a normalisation has of weight and bias, as parameters or as buffers."""
    own = dict(norm.named_parameters(recurse=False)) | dict(norm.named_buffers(recurse=False))
    return {name: own[name] for name in ("weight", "bias") if name in own}


@torch.no_grad()
def double(norm: nn.Module) -> None:
    """Doubles scale and shift, to make up for an attention of 1/2 behind it."""
    for tensor in scale_and_shift(norm).values():
        tensor.mul_(2)


def attend_and_add(attention: GALA, x: Tensor, shortcut: Tensor, activation: nn.Module) -> Tensor:
    """activation(x A + shortcut), in one fused pass if the activation is a ReLU without hooks."""
    if type(activation) is nn.ReLU and not has_hooks(activation):
        return attention(x, residual=shortcut)
    return activation(attention(x) + shortcut)


def has_hooks(module: nn.Module) -> bool:
    """Whether hooks see that the module is called, so that it must not be fused with another."""
    return bool(
        module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    )


def maps_wanted(return_maps: Any) -> bool:
    """``return_maps``, or False while torch.fx traces: a traced network has no maps, and raises when asked for them."""
    if not isinstance(return_maps, fx.Proxy):
        return return_maps
    torch._assert(
        operator.eq(return_maps, False),  # recorded, to be evaluated when the traced network is called
        "return_maps is True, but the network was traced without maps; trace with concrete_args={'return_maps': True}",
    )
    return False


class _Block(nn.Module):
    """The end of both residual blocks: relu(attention(dense path) + shortcut)."""

    attention: nn.Module | None
    downsample: nn.Module | None

    def _add_shortcut(self, in_channels: int, out_channels: int, stride: int, factory: dict) -> None:
        self.register_module("attention", None)
        self.register_module("downsample", None)
        if stride != 1 or in_channels != out_channels:
            self.downsample = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride, bias=False, **factory),
                nn.BatchNorm2d(out_channels, **factory),
            )

    def _attend_and_add(self, out: Tensor, x: Tensor, return_map: bool) -> Tensor | tuple[Tensor, Tensor]:
        shortcut = x if self.downsample is None else self.downsample(x)
        if isinstance(self.attention, GALA):
            return self.attention(out, residual=shortcut, return_map=return_map)
        if maps_wanted(return_map):
            raise ValueError("return_map is True; expected False of a block without GALA")
        if self.attention is not None:
            out = self.attention(out)
        return F.relu(out + shortcut, inplace=True)


class BasicBlock(_Block):
    """Two 3x3 convolutions (He et al., CVPR 2016)."""

    expansion = 1

    def __init__(self, in_channels: int, channels: int, stride: int, **factory):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, padding=1, bias=False, **factory)
        self.bn1 = nn.BatchNorm2d(channels, **factory)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False, **factory)
        self.bn2 = nn.BatchNorm2d(channels, **factory)
        self._add_shortcut(in_channels, channels, stride, factory)

    def forward(self, x: Tensor, return_map: bool = False) -> Tensor | tuple[Tensor, Tensor]:
        """x [N, C_in, H, W] to [N, C, H / stride, W / stride]; with ``return_map`` also the map of its GALA."""
        out = F.relu(self.bn1(self.conv1(x)), inplace=True)
        out = self.bn2(self.conv2(out))
        return self._attend_and_add(out, x, return_map)


class Bottleneck(_Block):
    """1x1, 3x3 and 1x1 convolutions (He et al., CVPR 2016), the stride in the 3x3 one ("v1.5")."""

    expansion = 4

    def __init__(self, in_channels: int, channels: int, stride: int, **factory):
        super().__init__()
        out_channels = channels * self.expansion
        self.conv1 = nn.Conv2d(in_channels, channels, 1, bias=False, **factory)
        self.bn1 = nn.BatchNorm2d(channels, **factory)
        self.conv2 = nn.Conv2d(channels, channels, 3, stride, padding=1, bias=False, **factory)
        self.bn2 = nn.BatchNorm2d(channels, **factory)
        self.conv3 = nn.Conv2d(channels, out_channels, 1, bias=False, **factory)
        self.bn3 = nn.BatchNorm2d(out_channels, **factory)
        self._add_shortcut(in_channels, out_channels, stride, factory)

    def forward(self, x: Tensor, return_map: bool = False) -> Tensor | tuple[Tensor, Tensor]:
        """x [N, C_in, H, W] to [N, C, H / stride, W / stride]; with ``return_map`` also the map of its GALA."""
        out = F.relu(self.bn1(self.conv1(x)), inplace=True)
        out = F.relu(self.bn2(self.conv2(out)), inplace=True)
        out = self.bn3(self.conv3(out))
        return self._attend_and_add(out, x, return_map)


GALA_FORMS: dict[type[nn.Module], type[nn.Module]] = {BasicBlock: BasicBlock, Bottleneck: Bottleneck}
