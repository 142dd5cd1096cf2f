"""gather's backward: the gradient of x, and T = W^T x, of which the local weights' gradients are made.

W = ds . relu_mask, a row for each pixel, in x's dtype: the bits are unpacked once, for both products, and not again in
every block of channels. The products take their operands in x's dtype and add in float32.
"""

import triton
import triton.language as tl

from .gate import add_parts
from .indexing import (
    WORD,
    below,
    count_spans,
    follow,
    load_matrix,
    load_vector,
    multiple,
    multiples,
    of_images,
    row_offsets,
    tile_rows,
)
from .numerics import dot, narrow, squash


@triton.jit
def weigh_mask(
    program,
    ds_parts,  # [count, N HW]
    relu_mask,  # [N HW, words]
    ds,  # [N HW]: the sum of its parts, in order
    weighted,  # [N HW, words WORD]: W
    rows,
    count,
    words,
    ROWS: tl.constexpr,
    WORDS: tl.constexpr,
):
    """W; one program for each ROWS pixels."""
    row = program.to(tl.int64) * ROWS + tl.arange(0, ROWS)
    inside = row < rows
    total = tl.zeros([ROWS], tl.float32)
    for part in range(count):
        total += tl.load(ds_parts + part * tl.cast(rows, tl.int64) + row, mask=inside, other=0.0)
    tl.store(ds + row, total, mask=inside)
    value = narrow(total, weighted.dtype.element_ty)[:, None, None]
    lane = tl.arange(0, WORD)
    for start in range(0, words, WORDS):
        word = start + tl.arange(0, WORDS)
        mask = inside[:, None] & (word < words)[None, :]
        at = (row * words)[:, None] + word[None, :]
        pattern = tl.load(relu_mask + at, mask=mask, other=0)
        on = ((pattern[:, :, None] >> lane[None, None, :]) & 1) != 0
        to = weighted + at[:, :, None] * WORD + lane[None, None, :]
        tl.store(
            to, tl.where(on, value, tl.zeros([ROWS, WORDS, WORD], weighted.dtype.element_ty)), mask=mask[:, :, None]
        )


@triton.jit
def load_weighted(weighted, row, inside, r, padded, WHOLE: tl.constexpr):
    """The block of W [N HW, padded] at these rows and hidden units."""
    mask = inside[:, None] & below(r, padded, WHOLE)[None, :]
    return tl.load(weighted + (row * padded)[:, None] + r[None, :], mask=mask, other=0.0)


@triton.jit(do_not_specialize=["images"])
def grad_x(
    grad_sum,  # the gradient of x A + residual: grad_residual, or without a residual grad_out
    grad,  # of x
    shrink,  # v_collapse times the rows of v_shrink, [R, C] in x's dtype
    stats,
    weighted,  # W [N HW, padded]
    gate,  # Gate
    dp,  # [N, C], over HW
    images,
    sizes,
    padded,
    span,  # channels of a program, a multiple of CHANNELS
    sum_layout,
    grad_layout,
    PDL: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    FLAT: tl.constexpr,
    DENSE: tl.constexpr,
    RUN: tl.constexpr,  # as of gather
    SEGMENTS: tl.constexpr,
    SQUASH: tl.constexpr,
    PRECISION: tl.constexpr,
    HELD: tl.constexpr,  # whether DEPTH covers all hidden units
    WHOLE: tl.constexpr,  # whether the blocks' sizes divide those of the matrices
    ROWS: tl.constexpr,
    DEPTH: tl.constexpr,
    CHANNELS: tl.constexpr,
    STAGES: tl.constexpr,
):
    """grad_x = grad_sum A + dp / HW + W . shrink; one program for each tile of rows and span of channels.

    With HELD the tile's rows of W are read once and stay in shared memory.
    """
    follow(PDL)
    alpha, beta, _ = gate
    pixels, channels, reduced, width = sizes
    shares = count_spans(channels, span)
    tile = tl.program_id(0) // shares
    begin = tl.program_id(0) % shares * span
    pixels = multiple(pixels, RUN)
    sum_layout, grad_layout = multiples(sum_layout, RUN), multiples(grad_layout, RUN)
    number, image, pixel, inside, first = tile_rows(tile, images, pixels, ROWS, FLAT)
    row = number.to(tl.int64)
    s = tl.load(stats + image.to(tl.int64) * width + pixel, mask=inside, other=0.0)
    if HELD:
        held = load_weighted(weighted, row, inside, tl.arange(0, DEPTH), padded, WHOLE)
    for block in tl.range(begin, tl.minimum(begin + span, channels), CHANNELS, num_stages=STAGES):
        c = block + tl.arange(0, CHANNELS)
        here = below(c, channels, WHOLE)
        mask = inside[:, None] & here[None, :]
        a = of_images(alpha, image, first, images, c, here, channels, SEGMENTS)
        b = of_images(beta, image, first, images, c, here, channels, SEGMENTS)
        at = row_offsets(number, image, first, pixel, c, sum_layout, CHANNELS_LAST, FLAT, DENSE)
        direct = tl.load(grad_sum + at, mask=mask, other=0.0).to(tl.float32)
        value = direct * squash(a + b * s[:, None], SQUASH, grad_sum.dtype.element_ty)
        value += of_images(dp, image, first, images, c, here, channels, SEGMENTS)
        if HELD:
            v = load_matrix(shrink, tl.arange(0, DEPTH), c, reduced, channels, TRANSPOSED=False, WHOLE=WHOLE)
            value = dot(held, v, value, PRECISION)
        else:
            for k in range(0, reduced, DEPTH):
                r = k + tl.arange(0, DEPTH)
                w = load_weighted(weighted, row, inside, r, padded, WHOLE)
                v = load_matrix(shrink, r, c, reduced, channels, TRANSPOSED=False, WHOLE=WHOLE)
                value = dot(w, v, value, PRECISION)
        at = row_offsets(number, image, first, pixel, c, grad_layout, CHANNELS_LAST, FLAT, DENSE)
        tl.store(grad + at, narrow(value, grad.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["images", "tiles", "splits"])
def local_products(
    x,
    weighted,  # W [N HW, padded]
    ds,  # [N HW], with BIAS
    products,  # Products, a part for each split; without BIAS T alone
    images,
    sizes,
    padded,
    tiles,
    splits,
    layout,  # of x
    PDL: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    FLAT: tl.constexpr,
    DENSE: tl.constexpr,
    RUN: tl.constexpr,  # as of gather
    BIAS: tl.constexpr,
    PRECISION: tl.constexpr,
    WHOLE: tl.constexpr,
    ROWS: tl.constexpr,
    REDUCED: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """T = W^T x; one program for each block of T and each share of the tiles of rows."""
    follow(PDL)
    t, counts, ds_sums = products
    pixels, channels, reduced, _ = sizes
    pixels = multiple(pixels, RUN)
    layout = multiples(layout, RUN)
    c_blocks = tl.cdiv(channels, CHANNELS)
    r_blocks = tl.cdiv(reduced, REDUCED)
    c_block = tl.program_id(0) % c_blocks
    r_block = tl.program_id(0) // c_blocks % r_blocks
    split = tl.program_id(0) // (c_blocks * r_blocks)
    c = c_block * CHANNELS + tl.arange(0, CHANNELS)
    r = r_block * REDUCED + tl.arange(0, REDUCED)
    acc = tl.zeros([REDUCED, CHANNELS], tl.float32)
    count = tl.zeros([REDUCED], tl.float32)
    ds_sum = tl.zeros([ROWS], tl.float32)
    share, longer = tiles // splits, tiles % splits  # the first `longer` shares have one tile more
    begin = split * share + tl.minimum(split, longer)
    for tile in range(begin, begin + share + tl.where(split < longer, 1, 0)):
        number, image, pixel, inside, first = tile_rows(tile, images, pixels, ROWS, FLAT)
        row = number.to(tl.int64)
        w = load_weighted(weighted, row, inside, r, padded, WHOLE)
        at = row_offsets(number, image, first, pixel, c, layout, CHANNELS_LAST, FLAT, DENSE)
        rows = tl.load(x + at, mask=inside[:, None] & below(c, channels, WHOLE)[None, :], other=0.0)
        acc = dot(tl.trans(w), rows, acc, PRECISION)
        if BIAS:
            row_ds = tl.load(ds + row, mask=inside, other=0.0)
            count += tl.sum(tl.where(w != 0, row_ds[:, None], 0.0), 0)  # W is ds rounded
            ds_sum += row_ds
    row = split.to(tl.int64) * reduced + r
    tl.store(t + row[:, None] * channels + c[None, :], acc, mask=(r < reduced)[:, None] & (c < channels)[None, :])
    if BIAS:
        tl.store(counts + row, count, mask=(r < reduced) & (c_block == 0))
        tl.store(ds_sums + split, tl.sum(ds_sum, 0), mask=(c_block == 0) & (r_block == 0))


@triton.jit
def local_grads(
    program,
    products,  # Products
    weights,  # Local
    weight_grads,  # Local
    sizes,
    BIAS: tl.constexpr,
    SPLITS: tl.constexpr,
    UNITS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """The gradients of the local path's weights from T; one program for each block of hidden units."""
    t, counts, ds_sums = products
    v_shrink, v_collapse, b_v_shrink, _ = weights
    grad_v_shrink, grad_v_collapse, grad_b_v_shrink, grad_b_v_collapse = weight_grads
    _, channels, reduced, _ = sizes
    r = program * UNITS + tl.arange(0, UNITS)
    unit = r < reduced
    v = load_vector(v_collapse, r, reduced)
    collapse = tl.zeros([UNITS, CHANNELS], tl.float32)
    size = tl.cast(reduced, tl.int64) * channels  # of a split's part
    for k in range(0, channels, CHANNELS):
        c = k + tl.arange(0, CHANNELS)
        at = r.to(tl.int64)[:, None] * channels + c[None, :]
        mask = unit[:, None] & (c < channels)[None, :]
        total = add_parts(t, at, mask, size, SPLITS)
        tl.store(grad_v_shrink + at, narrow(v[:, None] * total, grad_v_shrink.dtype.element_ty), mask=mask)
        collapse += tl.load(v_shrink + at, mask=mask, other=0.0).to(tl.float32) * total
    value = tl.sum(collapse, 1)
    if BIAS:
        count = tl.zeros([UNITS], tl.float32)
        total_ds = 0.0
        for split in range(SPLITS):
            count += tl.load(counts + tl.cast(split, tl.int64) * reduced + r, mask=unit, other=0.0)
            total_ds += tl.load(ds_sums + split)
        value += load_vector(b_v_shrink, r, reduced) * count
        tl.store(grad_b_v_shrink + r, narrow(v * count, grad_b_v_shrink.dtype.element_ty), mask=unit)
        tl.store(grad_b_v_collapse, narrow(total_ds, grad_b_v_collapse.dtype.element_ty), mask=program == 0)
    tl.store(grad_v_collapse + r, narrow(value, grad_v_collapse.dtype.element_ty), mask=unit)
