"""gather: reads x once and computes the local map s, the ReLU mask, and each tile's part of the pooled sum.

The matrix product takes its operands in x's dtype and adds in float32. In 16 bits the pooled sum is a product too, of
x by zeros and ones, which are exact: summed over a tile's rows by shuffles, it took longer than the local map.
"""

import triton
import triton.language as tl

from .indexing import (
    WORD,
    below,
    count_spans,
    follow,
    load_matrix,
    load_vector,
    multiple,
    multiples,
    row_offsets,
    tile_rows,
)
from .launch import KernelLaunch, cdiv, clamp_block
from .numerics import computed_anew, dot, narrow, relu
from .problem import NO_TUNING, Problem

SLOTS = tl.constexpr(16)  # rows of the product that pools: the fewest that tensor cores take


@triton.jit(do_not_specialize=["images"])
def gather(
    x,
    local,  # Local, v_shrink in x's dtype
    stats,  # [N, width], s first; written without SHARED
    s_parts,  # [shares, N HW], written with SHARED
    relu_mask,  # [N, HW, words], written with SAVE only
    pool,  # [tiles, SEGMENTS, C]
    images,
    sizes,
    span,  # hidden units of a program, a multiple of REDUCED
    layout,  # of x
    PDL: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    FLAT: tl.constexpr,
    DENSE: tl.constexpr,
    RUN: tl.constexpr,  # pixels and strides are multiples of it
    SEGMENTS: tl.constexpr,
    BIAS: tl.constexpr,
    SAVE: tl.constexpr,
    SHARED: tl.constexpr,  # whether programs share the hidden units of a tile
    PRECISION: tl.constexpr,
    WHOLE: tl.constexpr,  # whether DEPTH divides C and REDUCED R
    ROWS: tl.constexpr,
    DEPTH: tl.constexpr,
    REDUCED: tl.constexpr,
):
    """One program for each tile of rows, with SHARED for each share of the hidden units of each tile."""
    follow(PDL)
    v_shrink, v_collapse, b_v_shrink, b_v_collapse = local
    pixels, channels, reduced, width = sizes
    tile = tl.program_id(0)
    begin = 0
    end = reduced
    if SHARED:
        shares = count_spans(reduced, span)
        tile = tl.program_id(0) // shares
        begin = tl.program_id(0) % shares * span
        end = tl.minimum(begin + span, reduced)
    pixels = multiple(pixels, RUN)
    layout = multiples(layout, RUN)
    row, image, pixel, inside, first = tile_rows(tile, images, pixels, ROWS, FLAT)
    s = tl.zeros([ROWS], tl.float32)
    to_pool = pool + tile.to(tl.int64) * SEGMENTS * channels
    segment = tl.arange(0, SLOTS)
    belongs = narrow(tl.where(segment[:, None] == (image - first)[None, :], 1.0, 0.0), x.dtype.element_ty)
    spoilt = tl.zeros([SLOTS, DEPTH], tl.float32)
    for start in range(begin, end, REDUCED):
        r = start + tl.arange(0, REDUCED)
        acc = tl.zeros([ROWS, REDUCED], tl.float32)
        if BIAS:  # before the sum, when there are registers for it
            acc += load_vector(b_v_shrink, r, reduced)[None, :]
        for k in range(0, channels, DEPTH):
            c = k + tl.arange(0, DEPTH)
            at = row_offsets(row, image, first, pixel, c, layout, CHANNELS_LAST, FLAT, DENSE)
            here = below(c, channels, WHOLE)
            rows = tl.load(x + at, mask=inside[:, None] & here[None, :], other=0.0)
            v = load_matrix(v_shrink, r, c, reduced, channels, TRANSPOSED=True, WHOLE=WHOLE)
            acc = dot(rows, v, acc, PRECISION)
            if x.dtype.element_ty == tl.float32:
                store_sums(to_pool, rows, image, first, c, channels, start, SEGMENTS)
            else:
                part = dot(belongs, rows, tl.zeros([SLOTS, DEPTH], tl.float32), PRECISION)
                mask = (segment < SEGMENTS)[:, None] & here[None, :] & (start == 0)
                tl.store(to_pool + segment.to(tl.int64)[:, None] * channels + c[None, :], part, mask=mask)
                if SEGMENTS > 1:
                    spoilt += part * 0.0
        acc = tl.where(below(r, reduced, WHOLE)[None, :], acc, 0.0)  # NaN there where x is infinite
        collapse = load_vector(v_collapse, r, reduced)
        s += tl.sum(relu(acc) * collapse[None, :], 1)
        if SAVE:
            store_mask(relu_mask, acc, start, tile, images, pixels, reduced, FLAT, ROWS, REDUCED)
    if SEGMENTS > 1 and x.dtype.element_ty != tl.float32:
        # 0 times an infinite or NaN x of one image is NaN in the sum of another: such a tile is summed once more.
        again = tl.where((tl.sum(tl.sum(spoilt, 1), 0) != 0) & (begin == 0), channels, 0)
        tl.debug_barrier()  # between the two writes of a program
        row, image, pixel, inside, first = tile_rows(computed_anew(tile), images, pixels, ROWS, FLAT)
        for k in range(0, again, DEPTH):
            c = k + tl.arange(0, DEPTH)
            at = row_offsets(row, image, first, pixel, c, layout, CHANNELS_LAST, FLAT, DENSE)
            rows = tl.load(x + at, mask=inside[:, None] & (c < channels)[None, :], other=0.0)
            store_sums(to_pool, rows, image, first, c, channels, 0, SEGMENTS)
    if BIAS:
        s += tl.where(begin == 0, tl.load(b_v_collapse).to(tl.float32), 0.0)
    number, of, at_pixel, exists, _ = tile_rows(computed_anew(tile), images, pixels, ROWS, FLAT)
    if SHARED:
        share = (begin // span).to(tl.int64)
        tl.store(s_parts + share * images * pixels + number, s, mask=exists)
    else:
        tl.store(stats + of.to(tl.int64) * width + at_pixel, s, mask=exists)


@triton.jit
def store_mask(
    relu_mask,
    acc,
    start,
    tile,
    images,
    pixels,
    reduced,
    FLAT: tl.constexpr,
    ROWS: tl.constexpr,
    REDUCED: tl.constexpr,
):
    """relu_mask of a tile's rows: a bit for each hidden unit of acc [ROWS, REDUCED], of which `start` is the first."""
    bit = 1 << tl.arange(0, WORD)
    pattern = tl.sum(tl.where(tl.reshape(acc, [ROWS, REDUCED // WORD, WORD]) <= 0, 0, bit[None, None, :]), 2)
    words = tl.cdiv(reduced, WORD)
    word = start // WORD + tl.arange(0, REDUCED // WORD)
    row, _, _, exists, _ = tile_rows(computed_anew(tile), images, pixels, ROWS, FLAT)
    to = relu_mask + (row.to(tl.int64) * words)[:, None] + word[None, :]
    tl.store(to, pattern, mask=exists[:, None] & (word < words)[None, :])


@triton.jit
def store_sums(pool, rows, image, first, c, channels, start, SEGMENTS: tl.constexpr):
    """pool [SEGMENTS, C] at channels `c` = the sums of `rows` over each image's; only where `start` is 0."""
    for segment in tl.static_range(SEGMENTS):
        if SEGMENTS == 1:
            part = tl.sum(rows.to(tl.float32), 0)
        else:
            part = tl.sum(tl.where((image == first + segment)[:, None], rows.to(tl.float32), 0.0), 0)
        tl.store(pool + tl.cast(channels, tl.int64) * segment + c, part, mask=(c < channels) & (start == 0))


@triton.jit
def prepare(w, out, rows, cols, PDL: tl.constexpr, COLS: tl.constexpr):
    """The forward pass's: out [rows, cols] = w in out's dtype."""
    follow(PDL)
    prepare_block(tl.program_id(0), w, None, out, rows, cols, False, COLS)


@triton.jit
def prepare_block(program, w, row_scale, out, rows, cols, SCALE: tl.constexpr, COLS: tl.constexpr):
    """out [rows, cols] = w in out's dtype, with SCALE its rows times row_scale.

    One program for each COLS columns of each row.
    """
    blocks = tl.cdiv(cols, COLS)
    row = (program // blocks).to(tl.int64)
    col = program % blocks * COLS + tl.arange(0, COLS)
    at = row * cols + col
    value = tl.load(w + at, mask=col < cols, other=0.0).to(tl.float32)
    if SCALE:
        value *= tl.load(row_scale + row).to(tl.float32)
    tl.store(out + at, narrow(value, out.dtype.element_ty), mask=col < cols)


def prepare_sizes(p: Problem) -> tuple[dict[str, int], int]:
    """The size of the blocks of `prepare`, and how many there are."""
    columns = clamp_block(2048, p.channels)
    return {"COLS": columns}, p.reduced * cdiv(p.channels, columns)


def prepare_launch(p: Problem) -> KernelLaunch:
    """The launch that converts v_shrink to x's dtype."""
    sizes, programs = prepare_sizes(p)
    return KernelLaunch(prepare, programs, (p.reduced, p.channels), p.constants | sizes, NO_TUNING)
