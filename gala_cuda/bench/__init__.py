"""Times GALA's backends against eager PyTorch and torch.compile, after checking each against float64."""

from .correctness import WrongResult
from .suite import BATCHES, LAYOUTS, SHAPES, Refused, Result, Settings, run

__all__ = ["BATCHES", "LAYOUTS", "SHAPES", "Refused", "Result", "Settings", "WrongResult", "run"]
