"""ResNet, SE-ResNet and GALA-ResNet, and the conversion of existing ResNets to GALA."""

from . import resnet
from .convert import convert
from .resnet import *  # noqa: F403
from .squeeze_excite import SqueezeExcite
from .with_maps import WithMaps

__all__ = ["SqueezeExcite", "WithMaps", "convert"]
__all__ += resnet.__all__
