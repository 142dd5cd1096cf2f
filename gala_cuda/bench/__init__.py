"""Times GALA's backends against eager PyTorch and torch.compile, after checking each against float64."""

from .correctness import WrongResultError
from .suite import BATCHES, LAYOUTS, SHAPES, BenchmarkError, Result, Settings, run

__all__ = ["BATCHES", "LAYOUTS", "SHAPES", "BenchmarkError", "Result", "Settings", "WrongResultError", "run"]
