"""GALA, the global-and-local attention of Linsley et al. (ICLR 2019), fused for PyTorch."""

from .diagnostics import doctor
from .functional import gala
from .layer import GALA

__version__ = "0.1.0"
__all__ = ["GALA", "doctor", "gala"]
