"""Which tiles, warps and stages each kernel runs with: a table by architecture, bytes of x's elements and hidden width.

There is no tuning at run time. ``table.json`` is the shipped table; ``gala-cuda tune`` measures another on a GPU, and
the environment variable GALA_TRITON_TABLE names a file to use instead.
"""

import functools
import json
import os
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

KERNELS = ("gather", "scale", "scale_backward", "grad_x", "local_products", "tickets")
OLDEST = 80  # the first architecture with bfloat16 tensor cores
TABLE = Path(__file__).with_name("table.json")


@dataclass(frozen=True)
class Tile:
    """Sizes of one kernel's blocks by their names in the kernel, and how Triton compiles it."""

    sizes: tuple[tuple[str, int], ...]
    warps: int
    stages: int

    def __getitem__(self, name: str) -> int:
        return dict(self.sizes)[name]

    @classmethod
    def parse(cls, entry: dict[str, int]) -> "Tile":
        sizes = tuple((name, size) for name, size in entry.items() if name.isupper())
        return cls(sizes, entry["warps"], entry["stages"])


@dataclass(frozen=True)
class Config:
    """One row of the table."""

    gather: Tile
    scale: Tile
    scale_backward: Tile
    grad_x: Tile
    local_products: Tile
    tickets: Tile  # of its gather and its scale
    tickets_from: int | None  # bytes of x from which the forward pass is one persistent launch of tickets; None: never
    chunk_bytes: int  # of x that the L2 cache holds from gather until scale reads it again


def lookup(x: Tensor, channels_last: bool, reduced: int) -> Config:
    """The row for x's device, dtype and layout and R = ``reduced`` hidden units."""
    path = os.environ.get("GALA_TRITON_TABLE", "") or str(TABLE)
    return choose(_table(path), architecture(x.device), x.element_size(), channels_last, reduced)


def architecture(device: torch.device) -> int:
    """Compute capability as 10 major + minor; on the CPU, in the interpreter, the oldest one's."""
    if device.type != "cuda":
        return OLDEST
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


def multiprocessors(device: torch.device) -> int:
    """How many the device has; in the interpreter two, so that sums are split there too."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 2


def choose(rows: list[tuple[dict, Config]], arch: int, element: int, channels_last: bool, reduced: int) -> Config:
    """Of the newest architecture not above ``arch``, the row of the least width that ``reduced`` fits in.

    Architectures from 120 on have no more shared memory than 86, so those between, whose rows need more, are left out.
    """
    kind = {"bytes": element, "channels_last": channels_last}
    above = range(90, 120) if arch >= 120 else ()
    fitting = [row for row in rows if kind.items() <= row[0].items() and row[0]["arch"] not in above]
    newest = max(where["arch"] for where, _ in fitting if where["arch"] <= arch)
    fitting = sorted((row for row in fitting if row[0]["arch"] == newest), key=lambda row: row[0]["hidden"])
    return next((config for where, config in fitting if reduced <= where["hidden"]), fitting[-1][1])


@functools.cache
def _table(path: str) -> list[tuple[dict, Config]]:
    return [(row["for"], parse(row)) for row in json.loads(Path(path).read_text())["rows"]]


def parse(row: dict) -> Config:
    """A row of the table file."""
    tiles = {name: Tile.parse(row[name]) for name in KERNELS}
    return Config(**tiles, tickets_from=row["tickets_from"], chunk_bytes=row["chunk_bytes"])
