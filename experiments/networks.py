"""The networks that are compared: baselines, and GALA-ResNets that differ in how their attention starts."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from gala_cuda.layer import GALA
from gala_cuda.models.blocks import last_layers
from gala_cuda.models.resnet import MODELS, ResNet


@dataclass(frozen=True)
class Start:
    """How the attention of a GALA-ResNet starts.

    Args:
        squash: as of `GALA`.
        spread: standard deviation of the last weights of both paths, `w_expand` and `v_collapse`, in units of the
            paper start's.
        constant: what the attention would be with last weights of 0. None: there are no biases. For tanh, `a` is then
            1 and `b_w_expand` the argument that gives the constant; for sigmoid, whose constant is 1/2, `a` stays
            random and biases are 0.
        norm: factor of the scale of the normalisation before the attention.
    """

    squash: str = "tanh"
    spread: float = 1.0
    constant: float | None = None
    norm: float = 1.0

    @torch.no_grad()
    def apply(self, attention: GALA, norm: nn.Module) -> None:
        """Changes a layer of the paper's start, with biases if this start has a constant, and the norm before it."""
        attention.w_expand.mul_(self.spread)
        attention.v_collapse.mul_(self.spread)
        if self.constant is not None and self.squash == "tanh":
            attention.a.fill_(1)
            attention.get_parameter("b_w_expand").fill_(math.atanh(self.constant))
        norm.get_parameter("weight").mul_(self.norm)


STARTS = {
    "paper": Start(),
    "half": Start(spread=0.0, constant=0.5, norm=2.0),  # as keep_output has it
    "near half": Start(spread=0.1, constant=0.5, norm=2.0),
    "near half, norm 1": Start(spread=0.1, constant=0.5),
    "near 3/4": Start(spread=0.1, constant=0.75, norm=4 / 3),
    "sigmoid": Start("sigmoid", constant=0.5),  # as the released code has it
    "sigmoid, near half": Start("sigmoid", spread=0.1, constant=0.5, norm=2.0),
    "paper, norm 0": Start(norm=0.0),
}
BASELINES = ("ResNet", "SE-ResNet", "CBAM-ResNet")
PREFIX = "GALA: "


def gala(start: str) -> str:
    """The name of the network whose attention has that start."""
    return PREFIX + start


NETWORKS = (*BASELINES, *map(gala, STARTS))


def build(network: str, depth: int, classes: int, channels: int, width: int, layers: Sequence[str]) -> ResNet:
    """The network of a name of `NETWORKS`, with GALA in `layers`; random weights by torch's generator.

    SE and CBAM (timm's) close the dense paths of all blocks, as in their papers.
    """
    options = {"in_channels": channels, "width": width}
    if network.startswith(PREFIX):
        start = STARTS[network.removeprefix(PREFIX)]
        model = _resnet(
            f"gala_resnet{depth}",
            classes,
            layers=layers,
            squash=start.squash,
            bias=start.constant is not None,
            init="paper",
            **options,
        )
        for _, block in model.blocks():
            if isinstance(block.attention, GALA):
                start.apply(block.attention, last_layers(block)[1])
        return model
    if network == "SE-ResNet":
        return _resnet(f"se_resnet{depth}", classes, **options)
    model = _resnet(f"resnet{depth}", classes, **options)
    if network == "CBAM-ResNet":
        from timm.layers.cbam import CbamModule

        for _, block in model.blocks():
            block.attention = CbamModule(last_layers(block)[0].out_channels)
    return model


def _resnet(name: str, classes: int, **options) -> ResNet:
    model = MODELS[name](classes, **options)
    assert isinstance(model, ResNet)
    return model


def decays_attention(network: str) -> bool:
    """Whether it has attention that the recipe's `decay_attention` is about."""
    return network.startswith(PREFIX) or network == "SE-ResNet"
