"""Rows of the table of tiles, and every different kernel launch that they lead to."""

import contextlib
import fnmatch
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch

from gala_cuda.backends.triton.config import Config, newest, read
from gala_cuda.diagnostics import dtype_name

from .launches import Call, Launch, launches_of
from .machine_code import GPUS

IMAGES = 1, 32, 256  # one number for each of the gate's blocks


@dataclass(frozen=True)
class Row:
    """One row of the table, as the architecture `arch` takes it."""

    arch: int
    element: int  # bytes
    channels_last: bool
    reduced: int
    config: Config

    @property
    def name(self) -> str:
        return f"{self.arch}-{8 * self.element}-{'channels_last' if self.channels_last else 'nchw'}-{self.reduced}"


@dataclass(frozen=True)
class Variant:
    """What a row's kernels are compiled for, beside the row itself."""

    dtype: torch.dtype
    precision: str  # of products of float32
    full: bool  # with biases, residual and map

    @property
    def name(self) -> str:
        kind = self.precision if self.dtype == torch.float32 else dtype_name(self.dtype)
        return f"{kind}-{'full' if self.full else 'plain'}"


VARIANTS = tuple(
    Variant(dtype, precision, full)
    for dtype, precision in (
        (torch.bfloat16, "tf32"),
        (torch.float16, "tf32"),
        (torch.float32, "tf32x3"),
        (torch.float32, "tf32"),
    )
    for full in (False, True)
)


class Use(NamedTuple):
    """What makes a launch."""

    row: Row
    variant: Variant
    images: int


def read_rows(path: Path, patterns: list[str], archs: list[int]) -> list[Row]:
    """The rows of a table's file that the architectures take, if their names match one of `patterns`, as file names do.

    Without `archs`, these are the architectures that have rows. One without rows takes those of an older one.
    """
    table = read(path).rows
    rows = []
    for arch in archs or sorted({where["arch"] for where, _ in table}):
        for element, lanes in sorted({(where["bytes"], where["channels_last"]) for where, _ in table}):
            with contextlib.suppress(LookupError):
                for where, config in newest(table, arch, element, lanes):
                    rows.append(Row(arch, element, lanes, where["reduced"], config))
    return [row for row in rows if any(fnmatch.fnmatch(row.name, pattern) for pattern in patterns)]


def collect(
    rows: list[Row], variants: list[str], kernels: list[str], images: Sequence[int] = IMAGES
) -> dict[Launch, list[Use]]:
    """Each different launch of these rows, variants and kernels (all where empty), with what makes it."""
    found: dict[Launch, list[Use]] = {}
    for use, launch in _launches(rows, variants, images):
        if not kernels or launch.kernel in kernels:
            uses = found.setdefault(launch, [])
            if use not in uses:
                uses.append(use)
    return found


def _launches(rows: list[Row], variants: list[str], images: Sequence[int]) -> Iterator[tuple[Use, Launch]]:
    for row in rows:
        for variant in VARIANTS:
            if variant.dtype.itemsize == row.element and (not variants or variant.name in variants):
                for number in images:
                    yield from ((Use(row, variant, number), launch) for launch in _launched(row, variant, number))


def _launched(row: Row, variant: Variant, images: int) -> list[Launch]:
    """Forward and backward, at a width and size of map as ResNet-50 has them."""
    channels, side, full = 4 * row.reduced, 7 if row.reduced >= 512 else 14, variant.full
    memory_format = torch.channels_last if row.channels_last else torch.contiguous_format
    x = torch.empty(images, channels, side, side, dtype=variant.dtype, device="meta").to(memory_format=memory_format)
    call = Call(x, row.reduced, torch.float32, variant.precision, bias=full, residual=full, map=full)
    return launches_of(call, row.config, row.arch, GPUS[row.arch].sms)
