"""ClickMe (Linsley et al., ICLR 2019): people's maps of where to look, as data, as a loss and as a measure."""

from importlib import import_module
from typing import Any

_HOMES = {
    "ClickMeSample": "sample",
    "GalaMapLoss": "loss",
    "HarmonizationLoss": "loss",
    "clickme_folder": "data",
    "open_samples": "samples",
    "MapRecord": "similarity",
    "MapScore": "similarity",
    "human_ceiling": "similarity",
}
__all__ = [*_HOMES]


def __getattr__(name: str) -> Any:
    """The names on first use: some need what ``pip install 'gala-cuda[train]'`` adds."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOMES[name]}", __name__), name)
