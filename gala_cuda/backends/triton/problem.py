"""The problem that a plan is made for, and the sizes of blocks and splits that both passes use."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ..interface import Weights
from ..layout import is_channels_last
from ..squash import Squash
from .arguments import Layout, Sizes
from .config import MOST, Config, Multiprocessors, Tile, lookup, multiprocessors
from .launch import cdiv, clamp_block

FEWEST_ROWS = 64  # of a tile for the tensor cores of compute capability 9.0
PROGRAMS = 4  # how many to aim at for each streaming multiprocessor
SPLITS = 8  # between at most so many programs an image's pixels are split
MOST_PARTS = 64  # of a tile's blocks between programs
OF_A_PROGRAM = 1024  # bytes of shared memory that the system takes of each program
# Three products of TF32 numbers, nearly as accurate as float32, on the tensor cores. One is not enough, in 16 bits
# neither: it cuts its operands to 10 bits, and hidden units near 0 change their sign.
GATE_PRECISION = "tf32x3"
GATE = Tile((), warps=4, stages=1)


class GateBlocks(NamedTuple):
    """Sizes of the blocks of the gate's products: [images, depth] times [depth, outputs]."""

    images: int
    tiles: int  # of pooled sums at a time
    depth: int  # channels at a time in sums over channels
    reduced: int
    splits: int  # of such a sum between programs, at most
    step: int  # hidden units at a time in sums over hidden units
    channels: int


GATE_UNITS = 256  # an image of so many more hidden units, whose weights are so much larger, counts for one more
GATE_BLOCKS = {  # by the most images that they are for, so counted
    8: GateBlocks(images=1, tiles=16, depth=64, reduced=64, splits=16, step=128, channels=32),  # without tensor cores
    64: GateBlocks(images=16, tiles=4, depth=32, reduced=64, splits=32, step=128, channels=32),
    MOST * MOST: GateBlocks(images=32, tiles=4, depth=32, reduced=128, splits=16, step=64, channels=64),
}
NO_TUNING = Tile((), warps=4, stages=1)


@dataclass(frozen=True)
class Problem:
    """Everything a launch depends on but the tensors' addresses."""

    images: int
    channels: int
    pixels: int
    reduced: int
    dtype: torch.dtype
    device: torch.device
    channels_last: bool
    x: Layout
    out: Layout
    bias: bool
    squash: Squash
    precision: str
    config: Config
    sms: Multiprocessors

    @classmethod
    def of(cls, x: Tensor, w: Weights, squash: Squash, precision: str) -> "Problem":
        n, c, height, width = x.shape
        if (reduced := w.w_shrink.shape[0]) > MOST:
            raise ValueError(f"w_shrink has {reduced} hidden units, expected at most {MOST} for the Triton kernels")
        channels_last = is_channels_last(x)
        like = torch.empty_like(x, device="meta")
        return cls(
            n,
            c,
            height * width,
            reduced,
            x.dtype,
            x.device,
            channels_last,
            Layout.of(x, channels_last),
            Layout.of(like, channels_last),
            w.b_w_shrink is not None,
            squash,
            precision,
            lookup(x, channels_last, reduced),
            multiprocessors(x.device),
        )

    @property
    def sizes(self) -> Sizes:
        c, hw, r = self.channels, self.pixels, self.reduced
        return Sizes(hw, c, r, hw + c + r)

    @property
    def gate(self) -> GateBlocks:
        images = self.images * cdiv(self.reduced, GATE_UNITS)
        return next(blocks for most, blocks in GATE_BLOCKS.items() if images <= most)

    def dense(self, *layouts: Layout) -> bool:
        """Whether in all of these layouts the pixels of all images are equally far apart."""
        return all(layout.image_stride == self.pixels * layout.stride for layout in layouts)

    def run(self, *layouts: Layout) -> int:
        """How many pixels of a channel start together on a boundary of as many, in all of these NCHW layouts."""
        if self.channels_last:
            return 1
        numbers = [self.pixels, *(stride for layout in layouts for stride in layout)]
        return next(run for run in (8, 4, 2, 1) if all(number % run == 0 for number in numbers))

    def at_once(self, elements: int) -> int:
        """How many programs run at once, where each keeps so many elements of x's dtype in shared memory."""
        return self.sms.number * max(1, self.sms.shared // (elements * self.dtype.itemsize + OF_A_PROGRAM))

    @property
    def constants(self) -> dict[str, object]:
        """Constants that any kernel may take."""
        return {
            "PDL": self.sms.pdl,
            "CHANNELS_LAST": self.channels_last,
            "BIAS": self.bias,
            "SQUASH": int(self.squash),
            "PRECISION": self.precision,
            "GATE_PRECISION": GATE_PRECISION,
        }


@dataclass(frozen=True)
class Rows:
    """How a kernel's tiles cut the pixels of all images, which are its rows."""

    size: int
    flat: bool  # whether a tile may span several images
    segments: int  # the most images a tile spans
    tiles: int

    @classmethod
    def filling(cls, problem: Problem, size: int) -> "Rows":
        """Tiles of `size` rows, or of half as many where that leaves multiprocessors without a tile."""
        rows = cls.of(problem, size)
        if rows.tiles >= problem.sms.number or size < 2 * FEWEST_ROWS:
            return rows
        return cls.of(problem, size // 2)

    @classmethod
    def of(cls, problem: Problem, size: int) -> "Rows":
        images, pixels = problem.images, problem.pixels
        size = clamp_block(size, pixels)
        flat = problem.channels_last and pixels % size != 0 and 2 * pixels >= size
        if flat:
            return cls(size, True, cdiv(size - 1, pixels) + 1, cdiv(images * pixels, size))
        return cls(size, False, 1, images * cdiv(pixels, size))

    def of_an_image(self, pixels: int) -> int:
        """The most tiles that an image of so many pixels has a part in."""
        return cdiv(pixels + self.size - 2, self.size) + 1 if self.flat else cdiv(pixels, self.size)

    @property
    def constants(self) -> dict[str, object]:
        return {"FLAT": self.flat, "SEGMENTS": self.segments, "ROWS": self.size}


def spans(extent: int, block: int, parts: int) -> tuple[int, int]:
    """Cuts `extent` into at most `parts` equal spans, each a multiple of `block`: (span, how many there are)."""
    blocks = cdiv(extent, block)
    span = cdiv(blocks, max(1, min(parts, blocks))) * block
    return span, cdiv(extent, span)


def even_parts(tiles: int, blocks: int, at_once: int, beginning: int) -> int:
    """Between how many programs to divide the blocks of each tile, so that the last round of programs is a full one.

    So many programs run at once; to begin takes each of them as long as `beginning` blocks.
    """

    def time(parts: int) -> int:
        return cdiv(tiles * parts, at_once) * (beginning + cdiv(blocks, parts))

    return min(range(1, min(blocks, MOST_PARTS) + 1), key=time)


def shares(problem: Problem, pixels: int, blocks: int) -> tuple[int, int]:
    """Cuts an image's pixels into shares, so that there are programs enough: (pixels of a share, number of shares)."""
    wanted = cdiv(PROGRAMS * problem.sms.number, max(1, problem.images * blocks))
    return spans(problem.pixels, pixels, min(wanted, SPLITS))
