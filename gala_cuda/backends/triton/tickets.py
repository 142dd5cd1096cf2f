"""The whole forward pass in one persistent launch.

Its work is cut into tickets: tiles of gather, of gate's two halves and of scale, one chunk of images after another, so
that scale finds x in the L2 cache. Programs take tickets in order from one counter. A ticket may have to wait until all
tickets of an earlier stage are done, and those always have lower numbers: they are already taken, by programs that
wait for still lower ones, so the lowest unfinished ticket never waits and no program need be resident for another.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .gate import expand, shrink
from .gather import gather
from .indexing import WORD
from .scale import scale

GATHER, SHRINK, EXPAND, SCALE = range(4)
_GATHER, _SHRINK, _EXPAND = tl.constexpr(GATHER), tl.constexpr(SHRINK), tl.constexpr(EXPAND)
_FIELDS = tl.constexpr(6)
_captured: dict[int, Tensor] = {}  # schedules that CUDA graphs launch with, by address: never freed


class Ticket(NamedTuple):
    """One tile of work, and the counters it waits for and adds to."""

    stage: int
    chunk: int
    tile: int
    wait: int  # index of the counter to wait for
    need: int  # its value from which this ticket may run
    signal: int  # index of the counter to add 1 to when done


def schedule(tiles: Sequence[tuple[int, int, int, int]]) -> list[Ticket]:
    """The tickets in order, from the numbers of tiles of each stage, chunk by chunk.

    Counter 0 hands out tickets; 1 + 4 chunk + stage counts the finished ones. Stages of three chunks are interleaved so
    that between a stage and what waits for it there is always other work: a chunk's expand, then the gather two chunks
    on, the shrink one chunk on, and the chunk's scale.
    """

    def counter(stage: int, chunk: int) -> int:
        return 1 + 4 * chunk + stage

    def stage_of(stage: int, chunk: int) -> list[Ticket]:
        if not 0 <= chunk < len(tiles):
            return []
        before = (counter(stage - 1, chunk), tiles[chunk][stage - 1]) if stage > GATHER else (0, 0)
        return [Ticket(stage, chunk, i, *before, counter(stage, chunk)) for i in range(tiles[chunk][stage])]

    tickets: list[Ticket] = []
    for step in range(len(tiles) + 2):
        for stage, lag in ((EXPAND, 2), (GATHER, 0), (SHRINK, 1), (SCALE, 2)):
            tickets += stage_of(stage, step - lag)
    return tickets


@functools.lru_cache(maxsize=64)
def on_device(tiles: tuple[tuple[int, int, int, int], ...], device: torch.device) -> Tensor:
    """The schedule [tickets, 6] for kernels, shared by all plans of these tiles."""
    return torch.tensor(schedule(tiles), dtype=torch.int32).to(device)


def capturing() -> bool:
    """Whether a CUDA graph is being captured."""
    return torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()


def keep_for_graph(order: Tensor) -> None:
    """Where a CUDA graph is being captured: it launches with the schedule's address, which must stay until the end."""
    if capturing():
        _captured[order.data_ptr()] = order


def counters(chunks: int, device: torch.device) -> Tensor:
    """All counters of a launch, at 0."""
    return torch.zeros(1 + 4 * chunks, dtype=torch.int32, device=device)


@triton.jit(do_not_specialize=["images", "chunk_images", "tickets", "map_rows"])
def forward_tickets(
    schedule,  # [tickets, 6] of Ticket
    counters,
    x,
    v_shrink,
    residual,
    out,
    w_shrink,
    w_expand,
    v_collapse,
    a,
    m,
    b_w_shrink,
    b_w_expand,
    b_v_shrink,
    b_v_collapse,
    stats,
    relu_mask,
    pool,  # [chunks, tiles of a chunk, SEGMENTS, C]
    z_parts,  # [chunks, SPLITS, images of a chunk, R]
    alpha,
    beta,
    map_parts,
    tickets,
    images,
    chunk_images,
    pool_chunk,  # elements of a chunk's part of pool
    z_chunk,  # and of z_parts
    map_rows,
    pixels,
    channels,
    reduced,
    width,
    gate_span,
    scale_span,
    x_image_stride,
    x_stride,
    residual_image_stride,
    residual_stride,
    out_image_stride,
    out_stride,
    CHANNELS_LAST: tl.constexpr,
    FLAT: tl.constexpr,
    SEGMENTS: tl.constexpr,
    BIAS: tl.constexpr,
    SAVE: tl.constexpr,
    RESIDUAL: tl.constexpr,
    MAP: tl.constexpr,
    SQUASH: tl.constexpr,
    PRECISION: tl.constexpr,
    GATE_PRECISION: tl.constexpr,
    SPLITS: tl.constexpr,
    ROWS: tl.constexpr,
    DEPTH: tl.constexpr,
    REDUCED: tl.constexpr,
    IMAGES: tl.constexpr,
    SHRINK_DEPTH: tl.constexpr,
    SHRINK_REDUCED: tl.constexpr,
    EXPAND_DEPTH: tl.constexpr,
    EXPAND_CHANNELS: tl.constexpr,
    SCALE_PIXELS: tl.constexpr,
    SCALE_CHANNELS: tl.constexpr,
):
    """Each program takes tickets until none is left."""
    ticket = tl.atomic_add(counters, 1, sem="relaxed")
    while ticket < tickets:
        entry = schedule + ticket * _FIELDS
        stage, chunk, tile = tl.load(entry), tl.load(entry + 1), tl.load(entry + 2)
        wait, need, signal = tl.load(entry + 3), tl.load(entry + 4), tl.load(entry + 5)
        while tl.atomic_add(counters + wait, 0, sem="acquire", scope="gpu") < need:
            pass
        first = tl.cast(chunk, tl.int64) * chunk_images
        here = tl.minimum(chunk_images, images - chunk * chunk_images)
        stats_here = stats + first * width
        alpha_here, beta_here = alpha + first * channels, beta + first * channels
        z_here = z_parts + chunk * tl.cast(z_chunk, tl.int64)
        pool_here = pool + chunk * tl.cast(pool_chunk, tl.int64)
        if stage == _GATHER:
            relu_mask_here = relu_mask + first * pixels * tl.cdiv(reduced, WORD)
            gather(
                tile, x + first * x_image_stride, v_shrink, b_v_shrink, v_collapse, b_v_collapse, stats_here,
                relu_mask_here, pool_here, here, pixels, channels, reduced, width, x_image_stride, x_stride,
                CHANNELS_LAST, FLAT, SEGMENTS, BIAS, SAVE, PRECISION, ROWS, DEPTH, REDUCED,
            )  # fmt: skip
        elif stage == _SHRINK:
            shrink(
                tile, pool_here, w_shrink, stats_here, z_here, here, pixels, channels, reduced, width, gate_span,
                FLAT, SEGMENTS, GATE_PRECISION, ROWS, IMAGES, SHRINK_DEPTH, SHRINK_REDUCED,
            )  # fmt: skip
        elif stage == _EXPAND:
            expand(
                tile, z_here, w_expand, b_w_shrink, b_w_expand, a, m, stats_here, None, alpha_here, beta_here, here,
                pixels, channels, reduced, width, BIAS, False, SPLITS, GATE_PRECISION, IMAGES, EXPAND_DEPTH,
                EXPAND_CHANNELS,
            )  # fmt: skip
        else:
            residual_here = residual + first * residual_image_stride if RESIDUAL else residual
            map_here = map_parts + first * pixels
            scale(
                tile, x + first * x_image_stride, residual_here, out + first * out_image_stride, stats_here, alpha_here,
                beta_here, map_here, map_rows, pixels, channels, width, scale_span, x_image_stride, x_stride,
                residual_image_stride, residual_stride, out_image_stride, out_stride, CHANNELS_LAST, RESIDUAL, MAP,
                SQUASH, SCALE_PIXELS, SCALE_CHANNELS,
            )  # fmt: skip
        tl.debug_barrier()  # all threads' stores lie before the signal
        tl.atomic_add(counters + signal, 1, sem="release", scope="gpu")
        ticket = tl.atomic_add(counters, 1, sem="relaxed")
