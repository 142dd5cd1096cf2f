"""A small trainer: data, recipe and loop."""

from .data import Data, load
from .loop import Diverged, Epoch, accuracy, fit
from .recipe import Recipe

__all__ = ["Data", "Diverged", "Epoch", "Recipe", "accuracy", "fit", "load"]
