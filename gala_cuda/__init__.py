"""GALA, the global-and-local attention of Linsley et al. (ICLR 2019), fused for PyTorch."""

from . import flops, models  # noqa: F401 - flops registers its formulas
from .diagnostics import doctor
from .functional import gala
from .layer import GALA
from .models import *  # noqa: F403
from .version import __version__

__all__ = ["GALA", "__version__", "doctor", "gala"]
__all__ += models.__all__
