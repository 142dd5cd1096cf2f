"""What the released code's block has of its own: gather with the hidden layer as its result, and the collapse behind
the convolution, in both directions."""

import triton
import triton.language as tl

from ..gather import store_sums
from ..indexing import below, follow, load_matrix, load_vector, row_offsets, tile_rows
from ..numerics import computed_anew, dot, narrow, relu


@triton.jit(do_not_specialize=["images"])
def gather_hidden(
    x,
    v_shrink,  # [R, C] in x's dtype
    b_v_shrink,  # [R]
    hidden,  # [N HW, R]
    pool,  # [tiles, SEGMENTS, C]
    images,
    sizes,
    layout,  # of x
    PDL: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    FLAT: tl.constexpr,
    DENSE: tl.constexpr,
    SEGMENTS: tl.constexpr,
    PRECISION: tl.constexpr,
    WHOLE: tl.constexpr,  # whether DEPTH divides C and REDUCED R
    ROWS: tl.constexpr,
    DEPTH: tl.constexpr,
    REDUCED: tl.constexpr,
):
    """hidden = relu(v_shrink x + b_v_shrink), and each tile's part of the pooled sum; one program for each tile."""
    follow(PDL)
    pixels, channels, reduced, _ = sizes
    tile = tl.program_id(0)
    row, image, pixel, inside, first = tile_rows(tile, images, pixels, ROWS, FLAT)
    to_pool = pool + tile.to(tl.int64) * SEGMENTS * channels
    for start in range(0, reduced, REDUCED):
        r = start + tl.arange(0, REDUCED)
        acc = tl.zeros([ROWS, REDUCED], tl.float32)
        for k in range(0, channels, DEPTH):
            c = k + tl.arange(0, DEPTH)
            at = row_offsets(row, image, first, pixel, c, layout, CHANNELS_LAST, FLAT, DENSE)
            rows = tl.load(x + at, mask=inside[:, None] & below(c, channels, WHOLE)[None, :], other=0.0)
            v = load_matrix(v_shrink, r, c, reduced, channels, TRANSPOSED=True, WHOLE=WHOLE)
            acc = dot(rows, v, acc, PRECISION)
            store_sums(to_pool, rows, image, first, c, channels, start, SEGMENTS)
        value = relu(acc + load_vector(b_v_shrink, r, reduced)[None, :])
        of, _, _, exists, _ = tile_rows(computed_anew(tile), images, pixels, ROWS, FLAT)
        to = hidden + (of.to(tl.int64) * reduced)[:, None] + r[None, :]
        mask = exists[:, None] & below(r, reduced, WHOLE)[None, :]
        tl.store(to, narrow(value, hidden.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["rows"])
def collapse(
    seen,  # [N HW, R]
    v_collapse,  # [R]
    b_v_collapse,  # [1]
    stats,  # [N, width], s first
    rows,
    sizes,
    PDL: tl.constexpr,
    ROWS: tl.constexpr,
    REDUCED: tl.constexpr,
):
    """s = v_collapse . relu(seen) + b_v_collapse; one program for each ROWS pixels."""
    follow(PDL)
    pixels, _, reduced, width = sizes
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    inside = row < rows
    s = tl.zeros([ROWS], tl.float32)
    for start in range(0, reduced, REDUCED):
        r = start + tl.arange(0, REDUCED)
        mask = inside[:, None] & (r < reduced)[None, :]
        value = tl.load(seen + (row * reduced)[:, None] + r[None, :], mask=mask, other=0.0).to(tl.float32)
        s += tl.sum(relu(value) * load_vector(v_collapse, r, reduced)[None, :], 1)
    s += tl.load(b_v_collapse)
    tl.store(stats + row // pixels * width + row % pixels, s, mask=inside)


@triton.jit(do_not_specialize=["rows", "count"])
def collapse_backward(
    ds_parts,  # [count, N HW]
    seen,  # [N HW, R]
    v_collapse,  # [R]
    grad_seen,  # [N HW, R]
    collapse_parts,  # [programs, R]: d v_collapse
    ds_sums,  # [programs]
    rows,
    count,
    reduced,
    PDL: tl.constexpr,
    ROWS: tl.constexpr,
    REDUCED: tl.constexpr,
):
    """The gradient of seen, and the sums of the weights' gradients by program; programs as of `collapse`."""
    follow(PDL)
    program = tl.program_id(0).to(tl.int64)
    row = program * ROWS + tl.arange(0, ROWS)
    inside = row < rows
    ds = tl.zeros([ROWS], tl.float32)
    for part in range(count):
        ds += tl.load(ds_parts + part * tl.cast(rows, tl.int64) + row, mask=inside, other=0.0)
    tl.store(ds_sums + program, tl.sum(ds, 0))
    for start in range(0, reduced, REDUCED):
        r = start + tl.arange(0, REDUCED)
        mask = inside[:, None] & (r < reduced)[None, :]
        at = (row * reduced)[:, None] + r[None, :]
        value = tl.load(seen + at, mask=mask, other=0.0).to(tl.float32)
        grad = tl.where(value <= 0, 0.0, ds[:, None] * load_vector(v_collapse, r, reduced)[None, :])
        tl.store(grad_seen + at, narrow(grad, grad_seen.dtype.element_ty), mask=mask)
        sums = tl.sum(ds[:, None] * relu(value), 0)
        tl.store(collapse_parts + program * reduced + r, sums, mask=r < reduced)
