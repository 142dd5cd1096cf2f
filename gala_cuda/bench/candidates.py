"""Which tiles `gala-cuda tune` tries for a kernel: those one step from the best so far."""

from dataclasses import replace
from typing import NamedTuple

from ..backends.triton.config import Tile
from ..backends.triton.launch import clamp_block

# what a program keeps in registers: a block by the names of its two sizes
KEPT = {
    "gather": ("ROWS", "REDUCED"),
    "scale": ("PIXELS", "CHANNELS"),
    "scale_backward": ("PIXELS", "CHANNELS"),
    "grad_x": ("ROWS", "CHANNELS"),
    "local_products": ("REDUCED", "CHANNELS"),
}
WARPS, STAGES = (2, 16), (1, 5)
REGISTERS = 255 * 32  # of one warp


class Shape(NamedTuple):
    """A feature map and its block's reduced width."""

    images: int
    channels: int
    height: int
    width: int
    reduced: int


def limits(kernel: str, shapes: list[Shape]) -> dict[str, tuple[int, int]]:
    """The least and the largest useful value of each of a kernel's sizes; `clamp_block` cuts larger ones down."""
    channels, reduced = max(s.channels for s in shapes), max(s.reduced for s in shapes)
    pixels = max(s.height * s.width for s in shapes)
    extents = {"ROWS": pixels, "PIXELS": pixels, "REDUCED": reduced, "CHANNELS": channels, "DEPTH": channels}
    least = dict.fromkeys(extents, 16) | {"REDUCED": 32}  # a word of the ReLU mask
    if kernel == "grad_x":
        extents["DEPTH"], least["DEPTH"] = reduced, 32
    if kernel == "scale_backward":
        least["PIXELS"] = 4
    return {name: (least[name], clamp_block(1 << 30, extent, least[name])) for name, extent in extents.items()}


def candidates(kernel: str, tile: Tile, shapes: list[Shape]) -> list[Tile]:
    """The tiles one step from `tile`: one size, or the warps, halved or doubled, or a stage more or less.

    Left out are sizes beyond `limits`, and tiles that keep more numbers than the registers of their warps.
    """
    found, useful = [], limits(kernel, shapes)
    for name, size in tile.sizes:
        least, most = useful[name]
        for other in (min(size, most) // 2, min(size, most) * 2):
            if least <= other <= most:
                found.append(replace(tile, sizes=tuple((n, other if n == name else s) for n, s in tile.sizes)))
    found += [replace(tile, warps=w) for w in (tile.warps // 2, tile.warps * 2) if WARPS[0] <= w <= WARPS[1]]
    found += [replace(tile, stages=s) for s in (tile.stages - 1, tile.stages + 1) if STAGES[0] <= s <= STAGES[1]]

    def kept(tile: Tile) -> int:
        rows, columns = (min(tile[name], useful[name][1]) for name in KEPT[kernel])
        return rows * columns

    return [other for other in found if kept(other) <= REGISTERS * other.warps]
