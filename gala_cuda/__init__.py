"""GALA, the global-and-local attention of Linsley et al. (ICLR 2019), fused for PyTorch."""

from . import flops  # noqa: F401 - registers its formulas
from .diagnostics import doctor
from .functional import gala
from .layer import GALA
from .models import (
    ResNet,
    SqueezeExcite,
    convert,
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
from .version import __version__

__all__ = [
    "GALA",
    "ResNet",
    "SqueezeExcite",
    "__version__",
    "convert",
    "doctor",
    "gala",
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
