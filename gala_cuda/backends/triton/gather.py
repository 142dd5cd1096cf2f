"""gather: reads x once and computes the local map s, the ReLU mask, and each tile's part of the pooled sum.

The matrix product takes its operands in x's dtype and adds in float32.
"""

import triton
import triton.language as tl

from .indexing import WORD, load_matrix, load_vector, row_offsets, tile_rows
from .launch import KernelLaunch, cdiv
from .numerics import dot, narrow, relu
from .problem import NO_TUNING, Problem


@triton.jit(do_not_specialize=["images"])
def gather(
    x,
    v_shrink,  # [R, C] in x's dtype
    b_v_shrink,  # [R], read with BIAS only
    v_collapse,  # [R]
    b_v_collapse,  # [1], read with BIAS only
    stats,  # [N, width], s first
    relu_mask,  # [N, HW, words], written with SAVE only
    pool,  # [tiles, SEGMENTS, C]
    images,
    pixels,
    channels,
    reduced,
    width,
    x_image_stride,
    x_stride,
    CHANNELS_LAST: tl.constexpr,
    FLAT: tl.constexpr,
    SEGMENTS: tl.constexpr,
    BIAS: tl.constexpr,
    SAVE: tl.constexpr,
    PRECISION: tl.constexpr,
    ROWS: tl.constexpr,
    DEPTH: tl.constexpr,
    REDUCED: tl.constexpr,
):
    """One program for each tile of rows."""
    tile = tl.program_id(0)
    image, pixel, inside, first = tile_rows(tile, images, pixels, ROWS, FLAT)
    words = tl.cdiv(reduced, WORD)
    s = tl.zeros([ROWS], tl.float32)
    for start in range(0, reduced, REDUCED):
        r = start + tl.arange(0, REDUCED)
        acc = tl.zeros([ROWS, REDUCED], tl.float32)
        for k in range(0, channels, DEPTH):
            c = k + tl.arange(0, DEPTH)
            at = row_offsets(image, first, pixel, c, x_image_stride, x_stride, CHANNELS_LAST, FLAT)
            rows = tl.load(x + at, mask=inside[:, None] & (c < channels)[None, :], other=0.0)
            v = load_matrix(v_shrink, r, c, reduced, channels, TRANSPOSED=True)
            acc = dot(rows, v, acc, PRECISION)
            for segment in tl.static_range(SEGMENTS):
                if SEGMENTS == 1:
                    part = tl.sum(rows.to(tl.float32), 0)
                else:
                    part = tl.sum(tl.where((image == first + segment)[:, None], rows.to(tl.float32), 0.0), 0)
                to = pool + (tile.to(tl.int64) * SEGMENTS + segment) * channels + c
                tl.store(to, part, mask=(c < channels) & (start == 0))
        if BIAS:
            acc += load_vector(b_v_shrink, r, reduced)[None, :]
        acc = tl.where((r < reduced)[None, :], acc, 0.0)  # NaN there where x is infinite
        collapse = load_vector(v_collapse, r, reduced)
        s += tl.sum(relu(acc) * collapse[None, :], 1)
        if SAVE:
            on = tl.where(acc <= 0, 0, 1)
            lane = tl.arange(0, WORD)
            pattern = tl.sum(tl.reshape(on, [ROWS, REDUCED // WORD, WORD]) << lane[None, None, :], 2)
            word = start // WORD + tl.arange(0, REDUCED // WORD)
            row = image.to(tl.int64) * pixels + pixel
            to = relu_mask + (row * words)[:, None] + word[None, :]
            tl.store(to, pattern, mask=inside[:, None] & (word < words)[None, :])
    if BIAS:
        s += tl.load(b_v_collapse).to(tl.float32)
    tl.store(stats + image.to(tl.int64) * width + pixel, s, mask=inside)


@triton.jit
def prepare(w, row_scale, out, rows, cols, SCALE: tl.constexpr, COLS: tl.constexpr):
    """out [rows, cols] = w in out's dtype, with SCALE its rows times row_scale.

    One program for each COLS columns of each row.
    """
    blocks = tl.cdiv(cols, COLS)
    row = (tl.program_id(0) // blocks).to(tl.int64)
    col = tl.program_id(0) % blocks * COLS + tl.arange(0, COLS)
    at = row * cols + col
    value = tl.load(w + at, mask=col < cols, other=0.0).to(tl.float32)
    if SCALE:
        value *= tl.load(row_scale + row).to(tl.float32)
    tl.store(out + at, narrow(value, out.dtype.element_ty), mask=col < cols)


def prepare_launch(p: Problem, scaled: bool) -> KernelLaunch:
    """The launch that converts v_shrink to x's dtype, with `scaled` its rows times v_collapse."""
    columns = 1024
    programs = p.reduced * cdiv(p.channels, columns)
    constants = {"SCALE": scaled, "COLS": columns}
    return KernelLaunch(prepare, programs, (p.reduced, p.channels), constants, NO_TUNING)
