"""The package's version, which every module may read."""

__version__ = "0.1.0"
