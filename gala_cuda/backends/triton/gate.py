"""gate: the tiles' pooled sums -> p -> z -> g -> alpha, beta, in float32.

The products have few rows, one per image, and weights that are large beside them: the sums over C are split between
programs, and whoever reads the parts adds them up in order.
"""

import triton
import triton.language as tl

from .indexing import count_spans, load_matrix, load_vector
from .launch import KernelLaunch, cdiv, clamp_block
from .numerics import dot, relu
from .problem import GATE, GATE_BLOCK, GATE_DEPTH, GATE_IMAGES, Problem


@triton.jit
def add_parts(parts, at, mask, stride, PARTS: tl.constexpr):
    """The sum over the parts, `stride` elements apart, at offsets `at`."""
    total = tl.load(parts + at, mask=mask, other=0.0)
    for part in tl.static_range(1, PARTS):
        total += tl.load(parts + part * stride + at, mask=mask, other=0.0)
    return total


@triton.jit(do_not_specialize=["images"])
def shrink(
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
    REDUCED: tl.constexpr,
):
    """One program for each split of the channels, block of hidden units and block of images."""
    tile = tl.program_id(0)
    splits = count_spans(channels, span)
    r_blocks = tl.cdiv(reduced, REDUCED)
    split = tile % splits
    r_block = tile // splits % r_blocks
    n = tile // (splits * r_blocks) * IMAGES + tl.arange(0, IMAGES)
    r = r_block * REDUCED + tl.arange(0, REDUCED)
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
    z = tl.zeros([IMAGES, REDUCED], tl.float32)
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
        w = load_matrix(w_shrink, r, c, reduced, channels, TRANSPOSED=True)
        z = dot(p, w.to(tl.float32), z, GATE_PRECISION)
    store_split(z_parts, z, split, n, images, r, reduced)


@triton.jit
def store_split(parts, value, split, n, images, r, reduced):
    """parts [splits, images, R] at the split, the images `n` and the hidden units `r` = value."""
    row = tl.cast(split, tl.int64) * images + n
    to = parts + row[:, None] * reduced + r[None, :]
    tl.store(to, value, mask=(n < images)[:, None] & (r < reduced)[None, :])


@triton.jit(do_not_specialize=["images"])
def expand(
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
    """One program for each block of channels and block of images."""
    tile = tl.program_id(0)
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
                z += load_vector(b_w_shrink, r, reduced)[None, :]
            tl.store(saved + r[None, :], z, mask=mask & (tile % blocks == 0))
        w = load_matrix(w_expand, c, r, channels, reduced, TRANSPOSED=True)
        acc = dot(relu(z), w.to(tl.float32), acc, GATE_PRECISION)
    if BIAS:
        acc += load_vector(b_w_expand, c, channels)[None, :]
    weight_a = load_vector(a, c, channels)[None, :]
    weight_m = load_vector(m, c, channels)[None, :]
    mask = here[:, None] & (c < channels)[None, :]
    at = image * channels + c[None, :]
    tl.store(alpha + at, weight_a * acc, mask=mask)
    tl.store(beta + at, weight_a + weight_m * acc, mask=mask)
    if SAVED:
        tl.store(g + at, acc, mask=mask)


def expand_launch(p: Problem, splits: int, saved: bool) -> KernelLaunch:
    """The launch that computes alpha and beta from z in `splits` parts; with `saved`, from z in stats, and g too."""
    channels, depth = clamp_block(GATE_BLOCK, p.channels), clamp_block(GATE_DEPTH, p.reduced)
    sizes = {"SPLITS": splits, "IMAGES": GATE_IMAGES, "DEPTH": depth, "CHANNELS": channels}
    programs = cdiv(p.images, GATE_IMAGES) * cdiv(p.channels, channels)
    numbers = (p.images, p.pixels, p.channels, p.reduced, p.width)
    return KernelLaunch(expand, programs, numbers, p.constants | sizes | {"SAVED": saved}, GATE)
