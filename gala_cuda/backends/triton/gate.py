"""gate: the tiles' pooled sums -> p -> z -> g -> alpha, beta, in float32.

The products have few rows, one an image, and weights that are large beside them: the sums over C are split between
programs, and whoever reads the parts adds them up in order.
"""

import triton
import triton.language as tl

from .numerics import dot, how_many, relu


@triton.jit
def add_parts(parts, at, mask, stride, PARTS: tl.constexpr):
    """The sum over the parts, ``stride`` elements apart, at offsets ``at``."""
    total = tl.load(parts + at, mask=mask, other=0.0)
    for part in tl.static_range(1, PARTS):
        total += tl.load(parts + part * stride + at, mask=mask, other=0.0)
    return total


@triton.jit
def shrink_tile(
    tile,
    pool,  # [tiles, SEGMENTS, C]
    w_shrink,  # [R, C]
    stats,  # [N, width]: p is written
    z_parts,  # [splits, N, R]
    images,
    pixels,
    channels,
    reduced,
    width,
    span,  # channels of a split, a multiple of DEPTH
    FLAT: tl.constexpr,
    SEGMENTS: tl.constexpr,
    GATE_PRECISION: tl.constexpr,
    ROWS: tl.constexpr,  # of the gather's tiles
    IMAGES: tl.constexpr,
    DEPTH: tl.constexpr,
    HIDDEN: tl.constexpr,
):
    splits = how_many(channels, span)
    r_blocks = tl.cdiv(reduced, HIDDEN)
    split = tile % splits
    r_block = tile // splits % r_blocks
    n = tile // (splits * r_blocks) * IMAGES + tl.arange(0, IMAGES)
    r = r_block * HIDDEN + tl.arange(0, HIDDEN)
    here = n < images
    share = 1.0 / tl.cast(pixels, tl.float32)
    if FLAT:
        first_tile = n * pixels // ROWS
        last_tile = (n * pixels + pixels - 1) // ROWS
        most = (pixels + ROWS - 2) // ROWS + 1
    else:
        most = tl.cdiv(pixels, ROWS)
        first_tile = n * most
        last_tile = first_tile + most - 1
    z = tl.zeros([IMAGES, HIDDEN], tl.float32)
    for k in range(split * span, tl.minimum(split * span + span, channels), DEPTH):
        c = k + tl.arange(0, DEPTH)
        total = tl.zeros([IMAGES, DEPTH], tl.float32)
        for i in range(most):
            part = first_tile + i
            slot = part.to(tl.int64) * SEGMENTS
            if SEGMENTS > 1:
                slot += n - part * ROWS // pixels
            mask = (here & (part <= last_tile))[:, None] & (c < channels)[None, :]
            total += tl.load(pool + (slot * channels)[:, None] + c[None, :], mask=mask, other=0.0)
        p = total * share
        to = stats + (n.to(tl.int64) * width + pixels)[:, None] + c[None, :]
        tl.store(to, p, mask=here[:, None] & (c < channels)[None, :] & (r_block == 0))
        w = tl.load(
            w_shrink + r.to(tl.int64)[None, :] * channels + c[:, None],
            mask=(r < reduced)[None, :] & (c < channels)[:, None],
            other=0.0,
        )
        z = dot(p, w.to(tl.float32), z, GATE_PRECISION)
    row = tl.cast(split, tl.int64) * images + n
    to = z_parts + row[:, None] * reduced + r[None, :]
    tl.store(to, z, mask=here[:, None] & (r < reduced)[None, :])


@triton.jit(do_not_specialize=["images"])
def shrink(
    pool, w_shrink, stats, z_parts, images, pixels, channels, reduced, width, span,
    FLAT: tl.constexpr, SEGMENTS: tl.constexpr, GATE_PRECISION: tl.constexpr, ROWS: tl.constexpr,
    IMAGES: tl.constexpr, DEPTH: tl.constexpr, HIDDEN: tl.constexpr,
):  # fmt: skip
    """One program a share of the channels, a block of hidden units and a block of images."""
    shrink_tile(
        tl.program_id(0), pool, w_shrink, stats, z_parts, images, pixels, channels, reduced, width, span,
        FLAT, SEGMENTS, GATE_PRECISION, ROWS, IMAGES, DEPTH, HIDDEN,
    )  # fmt: skip


@triton.jit
def expand_tile(
    tile,
    z_parts,  # [SPLITS, N, R]; not read with SAVED
    w_expand,  # [C, R]
    b_w_shrink,  # [R], with BIAS
    b_w_expand,  # [C], with BIAS
    a,
    m,  # [C]
    stats,  # [N, width]: z is written, or read with SAVED
    g,  # [N, C], written with SAVED
    alpha,
    beta,  # [N, C]
    images,
    pixels,
    channels,
    reduced,
    width,
    BIAS: tl.constexpr,
    SAVED: tl.constexpr,
    SPLITS: tl.constexpr,
    GATE_PRECISION: tl.constexpr,
    IMAGES: tl.constexpr,
    DEPTH: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    blocks = tl.cdiv(channels, CHANNELS)
    n = tile // blocks * IMAGES + tl.arange(0, IMAGES)
    c = tile % blocks * CHANNELS + tl.arange(0, CHANNELS)
    here = n < images
    image = n.to(tl.int64)[:, None]
    saved = stats + image * width + pixels + channels
    acc = tl.zeros([IMAGES, CHANNELS], tl.float32)
    for k in range(0, reduced, DEPTH):
        r = k + tl.arange(0, DEPTH)
        mask = here[:, None] & (r < reduced)[None, :]
        if SAVED:
            z = tl.load(saved + r[None, :], mask=mask, other=0.0)
        else:
            z = add_parts(z_parts, image * reduced + r[None, :], mask, tl.cast(images, tl.int64) * reduced, SPLITS)
            if BIAS:
                z += tl.load(b_w_shrink + r, mask=r < reduced, other=0.0).to(tl.float32)[None, :]
            tl.store(saved + r[None, :], z, mask=mask & (tile % blocks == 0))
        w = tl.load(
            w_expand + c.to(tl.int64)[None, :] * reduced + r[:, None],
            mask=(c < channels)[None, :] & (r < reduced)[:, None],
            other=0.0,
        )
        acc = dot(relu(z), w.to(tl.float32), acc, GATE_PRECISION)
    if BIAS:
        acc += tl.load(b_w_expand + c, mask=c < channels, other=0.0).to(tl.float32)[None, :]
    weight_a = tl.load(a + c, mask=c < channels, other=0.0).to(tl.float32)[None, :]
    weight_m = tl.load(m + c, mask=c < channels, other=0.0).to(tl.float32)[None, :]
    mask = here[:, None] & (c < channels)[None, :]
    at = image * channels + c[None, :]
    tl.store(alpha + at, weight_a * acc, mask=mask)
    tl.store(beta + at, weight_a + weight_m * acc, mask=mask)
    if SAVED:
        tl.store(g + at, acc, mask=mask)


@triton.jit(do_not_specialize=["images"])
def expand(
    z_parts, w_expand, b_w_shrink, b_w_expand, a, m, stats, g, alpha, beta, images, pixels, channels, reduced, width,
    BIAS: tl.constexpr, SAVED: tl.constexpr, SPLITS: tl.constexpr, GATE_PRECISION: tl.constexpr,
    IMAGES: tl.constexpr, DEPTH: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """One program a block of channels and a block of images."""
    expand_tile(
        tl.program_id(0), z_parts, w_expand, b_w_shrink, b_w_expand, a, m, stats, g, alpha, beta, images, pixels,
        channels, reduced, width, BIAS, SAVED, SPLITS, GATE_PRECISION, IMAGES, DEPTH, CHANNELS,
    )  # fmt: skip
