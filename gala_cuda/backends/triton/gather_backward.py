"""gather's backward: the gradient of x, and T = (ds . relu_mask)^T x, of which the local weights' gradients are made.

The matrix products take their operands in x's dtype and add in float32.
"""

import triton
import triton.language as tl

from .indexing import WORD, load_matrix, of_images, row_offsets, tile_rows
from .numerics import dot, narrow, squash


@triton.jit
def unpack_mask(relu_mask, row, inside, start, words, ROWS: tl.constexpr, REDUCED: tl.constexpr):
    """[ROWS, REDUCED] of 0 and 1: which hidden units, from `start` on, were on in each row."""
    word = start // WORD + tl.arange(0, REDUCED // WORD)
    at = relu_mask + (row * words)[:, None] + word[None, :]
    pattern = tl.load(at, mask=inside[:, None] & (word < words)[None, :], other=0)
    return tl.reshape((pattern[:, :, None] >> tl.arange(0, WORD)[None, None, :]) & 1, [ROWS, REDUCED])


@triton.jit(do_not_specialize=["images"])
def grad_x(
    grad_sum,  # the gradient of x A + residual: grad_residual, or without a residual grad_out
    grad,  # of x
    shrink,  # v_collapse times the rows of v_shrink, [R, C] in x's dtype
    stats,
    relu_mask,
    ds,  # [N HW]
    alpha,
    beta,
    dp,  # over HW: [N, C] each
    images,
    pixels,
    channels,
    reduced,
    width,
    sum_image_stride,
    sum_stride,
    grad_image_stride,
    grad_stride,
    CHANNELS_LAST: tl.constexpr,
    FLAT: tl.constexpr,
    SEGMENTS: tl.constexpr,
    SQUASH: tl.constexpr,
    PRECISION: tl.constexpr,
    ROWS: tl.constexpr,
    DEPTH: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """grad_x = grad_sum A + dp / HW + ds (relu_mask . shrink); one program for each tile of rows and channels."""
    blocks = tl.cdiv(channels, CHANNELS)
    tile = tl.program_id(0) // blocks
    c = tl.program_id(0) % blocks * CHANNELS + tl.arange(0, CHANNELS)
    image, pixel, inside, first = tile_rows(tile, images, pixels, ROWS, FLAT)
    row = image.to(tl.int64) * pixels + pixel
    words = tl.cdiv(reduced, WORD)
    acc = tl.zeros([ROWS, CHANNELS], tl.float32)
    for k in range(0, reduced, DEPTH):
        r = k + tl.arange(0, DEPTH)
        on = unpack_mask(relu_mask, row, inside, k, words, ROWS, DEPTH)
        on = narrow(on.to(tl.float32), shrink.dtype.element_ty)
        v = load_matrix(shrink, r, c, reduced, channels, TRANSPOSED=False)
        acc = dot(on, v, acc, PRECISION)
    row_ds = tl.load(ds + row, mask=inside, other=0.0)
    s = tl.load(stats + image.to(tl.int64) * width + pixel, mask=inside, other=0.0)
    a = of_images(alpha, image, first, images, c, channels, ROWS, SEGMENTS)
    b = of_images(beta, image, first, images, c, channels, ROWS, SEGMENTS)
    attention = squash(a + b * s[:, None], SQUASH, grad_sum.dtype.element_ty)
    mask = inside[:, None] & (c < channels)[None, :]
    at = row_offsets(image, first, pixel, c, sum_image_stride, sum_stride, CHANNELS_LAST, FLAT)
    direct = tl.load(grad_sum + at, mask=mask, other=0.0).to(tl.float32)
    value = acc * row_ds[:, None] + of_images(dp, image, first, images, c, channels, ROWS, SEGMENTS)
    value += direct * attention
    at = row_offsets(image, first, pixel, c, grad_image_stride, grad_stride, CHANNELS_LAST, FLAT)
    tl.store(grad + at, narrow(value, grad.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["images", "tiles", "splits"])
def local_products(
    x,
    relu_mask,
    ds,  # [N HW]
    t,  # [splits, R, C]
    counts,  # [splits, R] sum of ds where a unit was on; with BIAS only
    ds_sums,  # [splits]; with BIAS only
    images,
    pixels,
    channels,
    reduced,
    tiles,
    splits,
    x_image_stride,
    x_stride,
    CHANNELS_LAST: tl.constexpr,
    FLAT: tl.constexpr,
    BIAS: tl.constexpr,
    PRECISION: tl.constexpr,
    ROWS: tl.constexpr,
    REDUCED: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """T = (ds . relu_mask)^T x; one program for each block of T and each share of the tiles of rows."""
    c_blocks = tl.cdiv(channels, CHANNELS)
    r_blocks = tl.cdiv(reduced, REDUCED)
    c_block = tl.program_id(0) % c_blocks
    r_block = tl.program_id(0) // c_blocks % r_blocks
    split = tl.program_id(0) // (c_blocks * r_blocks)
    c = c_block * CHANNELS + tl.arange(0, CHANNELS)
    r = r_block * REDUCED + tl.arange(0, REDUCED)
    words = tl.cdiv(reduced, WORD)
    acc = tl.zeros([REDUCED, CHANNELS], tl.float32)
    count = tl.zeros([REDUCED], tl.float32)
    ds_sum = tl.zeros([ROWS], tl.float32)
    share, longer = tiles // splits, tiles % splits  # the first `longer` shares have one tile more
    begin = split * share + tl.minimum(split, longer)
    for tile in range(begin, begin + share + tl.where(split < longer, 1, 0)):
        image, pixel, inside, first = tile_rows(tile, images, pixels, ROWS, FLAT)
        row = image.to(tl.int64) * pixels + pixel
        row_ds = tl.load(ds + row, mask=inside, other=0.0)
        on = unpack_mask(relu_mask, row, inside, r_block * REDUCED, words, ROWS, REDUCED)
        weighted = tl.where(on != 0, row_ds[:, None], 0.0)
        at = row_offsets(image, first, pixel, c, x_image_stride, x_stride, CHANNELS_LAST, FLAT)
        rows = tl.load(x + at, mask=inside[:, None] & (c < channels)[None, :], other=0.0)
        acc = dot(tl.trans(narrow(weighted, x.dtype.element_ty)), rows, acc, PRECISION)
        if BIAS:
            count += tl.sum(weighted, 0)
            ds_sum += row_ds
    row = split.to(tl.int64) * reduced + r
    tl.store(t + row[:, None] * channels + c[None, :], acc, mask=(r < reduced)[:, None] & (c < channels)[None, :])
    if BIAS:
        tl.store(counts + row, count, mask=(r < reduced) & (c_block == 0))
        tl.store(ds_sums + split, tl.sum(ds_sum, 0), mask=(c_block == 0) & (r_block == 0))


@triton.jit(do_not_specialize=["splits"])
def local_grads(
    t,
    counts,
    ds_sums,
    v_shrink,  # in its own dtype, as its gradient
    v_collapse,
    b_v_shrink,
    grad_v_shrink,
    grad_v_collapse,
    grad_b_v_shrink,
    grad_b_v_collapse,
    channels,
    reduced,
    splits,
    BIAS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """The gradients of the local path's weights from T; one program for each hidden unit."""
    r = tl.program_id(0)
    v = tl.load(v_collapse + r).to(tl.float32)
    collapse = tl.zeros([CHANNELS], tl.float32)
    size = tl.cast(reduced, tl.int64) * channels  # of a split's part
    for k in range(0, channels, CHANNELS):
        c = k + tl.arange(0, CHANNELS)
        at = r.to(tl.int64) * channels + c
        total = tl.zeros([CHANNELS], tl.float32)
        part = t + at
        for _ in range(splits):
            total += tl.load(part, mask=c < channels, other=0.0)
            part += size
        tl.store(grad_v_shrink + at, narrow(v * total, grad_v_shrink.dtype.element_ty), mask=c < channels)
        collapse += tl.load(v_shrink + at, mask=c < channels, other=0.0).to(tl.float32) * total
    value = tl.sum(collapse, 0)
    if BIAS:
        count = 0.0
        total_ds = 0.0
        for split in range(splits):
            count += tl.load(counts + tl.cast(split, tl.int64) * reduced + r)
            total_ds += tl.load(ds_sums + split)
        value += tl.load(b_v_shrink + r).to(tl.float32) * count
        tl.store(grad_b_v_shrink + r, narrow(v * count, grad_b_v_shrink.dtype.element_ty))
        tl.store(grad_b_v_collapse, narrow(total_ds, grad_b_v_collapse.dtype.element_ty), mask=r == 0)
    tl.store(grad_v_collapse + r, narrow(value, grad_v_collapse.dtype.element_ty))
