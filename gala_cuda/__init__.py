"""GALA, the global-and-local attention of Linsley et al. (ICLR 2019), fused for PyTorch."""

from . import flops  # noqa: F401 - registers its formulas
from .diagnostics import doctor
from .functional import gala
from .layer import GALA
from .models import SqueezeExcite, WithMaps, convert, preact_resnet, resnet
from .models.preact_resnet import *  # noqa: F403
from .models.resnet import *  # noqa: F403
from .released import ReleasedGALA
from .version import __version__

__all__ = ["GALA", "ReleasedGALA", "SqueezeExcite", "WithMaps", "__version__", "convert", "doctor", "gala"]
__all__ += resnet.__all__ + preact_resnet.__all__
