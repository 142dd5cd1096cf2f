"""ResNet, SE-ResNet and GALA-ResNet, and the conversion of existing ResNets to GALA."""

from . import preact_resnet, resnet
from .convert import convert
from .preact_resnet import *  # noqa: F403
from .resnet import *  # noqa: F403
from .squeeze_excite import SqueezeExcite
from .with_maps import WithMaps

__all__ = ["SqueezeExcite", "WithMaps", "convert"]
__all__ += resnet.__all__ + preact_resnet.__all__
