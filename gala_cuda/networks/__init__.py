"""Networks described by name, and the files of weights that they are built from."""

from .loading import read_weights, rebuild
from .network import Network

__all__ = ["Network", "read_weights", "rebuild"]
