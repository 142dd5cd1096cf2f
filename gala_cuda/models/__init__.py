"""ResNet, SE-ResNet and GALA-ResNet, and conversion of ResNets that are already there."""

from .convert import convert
from .resnet import (
    ResNet,
    gala_resnet18,
    gala_resnet26,
    gala_resnet34,
    gala_resnet50,
    gala_resnet101,
    resnet18,
    resnet26,
    resnet34,
    resnet50,
    resnet101,
    se_resnet18,
    se_resnet26,
    se_resnet34,
    se_resnet50,
    se_resnet101,
)
from .squeeze_excite import SqueezeExcite

__all__ = [
    "ResNet",
    "SqueezeExcite",
    "convert",
    "gala_resnet18",
    "gala_resnet26",
    "gala_resnet34",
    "gala_resnet50",
    "gala_resnet101",
    "resnet18",
    "resnet26",
    "resnet34",
    "resnet50",
    "resnet101",
    "se_resnet18",
    "se_resnet26",
    "se_resnet34",
    "se_resnet50",
    "se_resnet101",
]
