"""What a network attends to, as numbers and as pictures: attention maps and input gradients."""

from importlib import import_module
from typing import Any

_HOMES = {
    "attention_maps": "maps",
    "chosen_layers": "maps",
    "gala_blocks": "maps",
    "input_gradient": "maps",
    "overlay": "sheet",
}
__all__ = [*_HOMES]


def __getattr__(name: str) -> Any:
    """The names on first use: pictures need what ``pip install 'gala-cuda[train]'`` adds."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOMES[name]}", __name__), name)
