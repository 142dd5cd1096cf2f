"""The reference trainer: recipe, data, loop, checkpoints, evaluation, export."""

from importlib import import_module
from typing import Any

from .recipe import BadRecipe, Recipe

_HOMES = {
    "CheckpointError": "checkpoint",
    "Data": "data",
    "Diverged": "loop",
    "Epoch": "progress",
    "Network": "networks",
    "Run": "run",
    "fit": "loop",
    "load": "data",
    "read_weights": "networks",
    "rebuilt": "networks",
}
__all__ = ["BadRecipe", "Recipe", *_HOMES]


def __getattr__(name: str) -> Any:
    """The other names on first use: they need what ``pip install 'gala-cuda[train]'`` adds, the recipe does not."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOMES[name]}", __name__), name)
