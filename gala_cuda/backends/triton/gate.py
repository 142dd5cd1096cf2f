"""gate: the tiles' pooled sums -> p -> z -> g -> alpha, beta, in float32.

The products are small, so that their time is that of one program: the sums over C are split between programs, and
`finish_hidden` adds the parts up in order. Of few images each program of `expand` does that for itself.
"""

import triton
import triton.language as tl

from .indexing import count_spans, follow, load_matrix, load_vector
from .launch import KernelLaunch, cdiv, clamp_block
from .numerics import dot, relu
from .problem import GATE, NO_TUNING, Problem, Rows, spans


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
    sizes,
    most,  # tiles of an image
    span,  # channels of a split, a multiple of DEPTH
    PDL: tl.constexpr,
    FLAT: tl.constexpr,
    SEGMENTS: tl.constexpr,
    GATE_PRECISION: tl.constexpr,
    ROWS: tl.constexpr,  # of the gather's tiles
    TOGETHER: tl.constexpr,  # tiles that are loaded at once
    IMAGES: tl.constexpr,
    DEPTH: tl.constexpr,
    REDUCED: tl.constexpr,
):
    """One program for each split of the channels, block of hidden units and block of images."""
    follow(PDL)
    pixels, channels, reduced, width = sizes
    split, r_block, n, r = split_block(images, channels, reduced, span, IMAGES, REDUCED)
    here = n < images
    image = n.to(tl.int64)
    share = 1.0 / tl.cast(pixels, tl.float32)
    if FLAT:
        first_tile = n * pixels // ROWS
        last_tile = (n * pixels + pixels - 1) // ROWS
    else:
        first_tile = n * most
        last_tile = first_tile + most - 1
    z = tl.zeros([IMAGES, REDUCED], tl.float32)
    for k in range(split * span, tl.minimum(split * span + span, channels), DEPTH):
        c = k + tl.arange(0, DEPTH)
        w = load_matrix(w_shrink, r, c, reduced, channels, TRANSPOSED=True)
        total = tl.zeros([IMAGES, DEPTH], tl.float32)
        for start in range(0, most, TOGETHER):
            for i in tl.static_range(TOGETHER):
                part = first_tile + start + i
                slot = part.to(tl.int64) * SEGMENTS
                if SEGMENTS > 1:
                    slot += n - part * ROWS // pixels
                mask = (here & (part <= last_tile))[:, None] & (c < channels)[None, :]
                total += tl.load(pool + (slot * channels)[:, None] + c[None, :], mask=mask, other=0.0)
        p = total * share
        to = stats + (image * width + pixels)[:, None] + c[None, :]
        tl.store(to, p, mask=here[:, None] & (c < channels)[None, :] & (r_block == 0))
        z = add_product(p, w.to(tl.float32), z, GATE_PRECISION)
    store_split(z_parts, z, split, n, images, r, reduced)


@triton.jit
def add_product(a, b, acc, PRECISION: tl.constexpr):
    """acc + a . b of float32; one row of `a` is no work for tensor cores."""
    if a.shape[0] == 1:
        return acc + tl.sum(tl.trans(a) * b, 0)[None, :]
    return dot(a, b, acc, PRECISION)


@triton.jit
def split_block(images, channels, reduced, span, IMAGES: tl.constexpr, REDUCED: tl.constexpr):
    """A program's split of the channels, block of hidden units, images [IMAGES] and hidden units [REDUCED]."""
    splits = count_spans(channels, span)
    r_blocks = tl.cdiv(reduced, REDUCED)
    split = tl.program_id(0) % splits
    r_block = tl.program_id(0) // splits % r_blocks
    n = tl.program_id(0) // (splits * r_blocks) * IMAGES + tl.arange(0, IMAGES)
    return split, r_block, n, r_block * REDUCED + tl.arange(0, REDUCED)


@triton.jit
def store_split(parts, value, split, n, images, r, reduced):
    """parts [splits, images, R] at the split, the images `n` and the hidden units `r` = value."""
    row = tl.cast(split, tl.int64) * images + n
    to = parts + row[:, None] * reduced + r[None, :]
    tl.store(to, value, mask=(n < images)[:, None] & (r < reduced)[None, :])


@triton.jit
def add_hidden(parts, b_w_shrink, image, r, mask, images, reduced, BIAS: tl.constexpr, SPLITS: tl.constexpr):
    """z of these images at units `r` from its parts [SPLITS, images, R]."""
    z = add_parts(parts, image * reduced + r, mask, tl.cast(images, tl.int64) * reduced, SPLITS)
    if BIAS:
        z += load_vector(b_w_shrink, r, reduced)
    return z


@triton.jit(do_not_specialize=["images"])
def finish_hidden(
    parts,  # [SPLITS, N, R]
    b_w_shrink,  # [R], with BIAS
    stats,  # [N, width]: z is written
    images,
    sizes,
    PDL: tl.constexpr,
    BIAS: tl.constexpr,
    SPLITS: tl.constexpr,
    REDUCED: tl.constexpr,
):
    """z from its parts; one program for each image and block of hidden units."""
    follow(PDL)
    pixels, channels, reduced, width = sizes
    blocks = tl.cdiv(reduced, REDUCED)
    image = (tl.program_id(0) // blocks).to(tl.int64)
    r = tl.program_id(0) % blocks * REDUCED + tl.arange(0, REDUCED)
    z = add_hidden(parts, b_w_shrink, image, r, r < reduced, images, reduced, BIAS, SPLITS)
    tl.store(stats + image * width + pixels + channels + r, z, mask=r < reduced)


@triton.jit
def load_hidden(
    parts,
    b_w_shrink,
    saved,
    image,
    r,
    mask,
    images,
    reduced,
    first,
    BIAS: tl.constexpr,
    SPLITS: tl.constexpr,
):
    """z of the images [IMAGES, 1] at units `r`: as it was saved, or with SPLITS of its parts, saved where `first`."""
    if SPLITS == 0:
        z = tl.load(saved + r[None, :], mask=mask, other=0.0)
    else:
        z = add_hidden(parts, b_w_shrink, image, r[None, :], mask, images, reduced, BIAS, SPLITS)
        tl.store(saved + r[None, :], z, mask=mask & first)
    return z


@triton.jit
def expand_block(
    program,
    weights,  # Global
    z_parts,  # [SPLITS, N, R], with SPLITS
    stats,  # [N, width]: z is read, or with SPLITS written
    gate,  # Gate
    images,
    sizes,
    BIAS: tl.constexpr,
    SPLITS: tl.constexpr,
    GATE_PRECISION: tl.constexpr,
    IMAGES: tl.constexpr,
    DEPTH: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """alpha, beta and g; one program for each block of channels and block of images."""
    _, w_expand, a, m, b_w_shrink, b_w_expand = weights
    alpha, beta, g = gate
    pixels, channels, reduced, width = sizes
    blocks = tl.cdiv(channels, CHANNELS)
    n = program // blocks * IMAGES + tl.arange(0, IMAGES)
    c = program % blocks * CHANNELS + tl.arange(0, CHANNELS)
    here = n < images
    image = n.to(tl.int64)[:, None]
    saved = stats + image * width + pixels + channels
    acc = tl.zeros([IMAGES, CHANNELS], tl.float32)
    for k in range(0, reduced, DEPTH):
        r = k + tl.arange(0, DEPTH)
        mask = here[:, None] & (r < reduced)[None, :]
        first = program % blocks == 0
        z = load_hidden(z_parts, b_w_shrink, saved, image, r, mask, images, reduced, first, BIAS, SPLITS)
        w = load_matrix(w_expand, c, r, channels, reduced, TRANSPOSED=True)
        acc = add_product(relu(z), w.to(tl.float32), acc, GATE_PRECISION)
    if BIAS:
        acc += load_vector(b_w_expand, c, channels)[None, :]
    weight_a = load_vector(a, c, channels)[None, :]
    weight_m = load_vector(m, c, channels)[None, :]
    mask = here[:, None] & (c < channels)[None, :]
    at = image * channels + c[None, :]
    tl.store(alpha + at, weight_a * acc, mask=mask)
    tl.store(beta + at, weight_a + weight_m * acc, mask=mask)
    if g is not None:
        tl.store(g + at, acc, mask=mask)


@triton.jit(do_not_specialize=["images"])
def expand(
    weights,
    z_parts,
    stats,
    gate,
    images,
    sizes,
    PDL: tl.constexpr,
    BIAS: tl.constexpr,
    SPLITS: tl.constexpr,
    GATE_PRECISION: tl.constexpr,
    IMAGES: tl.constexpr,
    DEPTH: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """The forward pass's: as `expand_block`."""
    follow(PDL)
    expand_block(
        tl.program_id(0), weights, z_parts, stats, gate, images, sizes,
        BIAS, SPLITS, GATE_PRECISION, IMAGES, DEPTH, CHANNELS,
    )  # fmt: skip


def split_sizes(p: Problem) -> tuple[dict[str, int], int, int]:
    """How sums over the channels are split: the sizes of a block, the channels of a split, and the number of splits."""
    depth = clamp_block(p.gate.depth, p.channels)
    span, splits = spans(p.channels, depth, p.gate.splits)
    return {"DEPTH": depth, "REDUCED": clamp_block(p.gate.reduced, p.reduced), "IMAGES": p.gate.images}, span, splits


def split_programs(p: Problem, reduced: int, splits: int) -> int:
    return splits * cdiv(p.reduced, reduced) * cdiv(p.images, p.gate.images)


def shrink_launch(p: Problem, rows: Rows) -> tuple[KernelLaunch, int]:
    """The launch that makes p and the parts of z of the pooled sums of gather's tiles `rows`; the number of parts."""
    sizes, span, splits = split_sizes(p)
    most = rows.of_an_image(p.pixels)
    constants = p.constants | rows.constants | sizes | {"TOGETHER": clamp_block(p.gate.tiles, most, least=1)}
    numbers = (p.images, p.sizes, most, span)
    return KernelLaunch(shrink, split_programs(p, sizes["REDUCED"], splits), numbers, constants, GATE), splits


def finish_launch(p: Problem, splits: int) -> KernelLaunch | None:
    """The launch that makes z of its parts; None where `expand` does, each of whose programs has one image."""
    if p.gate.images == 1:
        return None
    block = clamp_block(256, p.reduced)
    constants = p.constants | {"SPLITS": splits, "REDUCED": block}
    return KernelLaunch(finish_hidden, p.images * cdiv(p.reduced, block), (p.images, p.sizes), constants, NO_TUNING)


def expand_sizes(p: Problem) -> tuple[dict[str, int], int]:
    """How sums over the hidden units are made: the sizes of a block, and the number of blocks."""
    channels = clamp_block(p.gate.channels, p.channels)
    sizes = {"IMAGES": p.gate.images, "DEPTH": clamp_block(p.gate.step, p.reduced), "CHANNELS": channels}
    return sizes, cdiv(p.images, p.gate.images) * cdiv(p.channels, channels)


def expand_launch(p: Problem, splits: int) -> KernelLaunch:
    """The launch that computes alpha and beta from z, or from its parts where there are splits."""
    sizes, programs = expand_sizes(p)
    return KernelLaunch(expand, programs, (p.images, p.sizes), p.constants | sizes | {"SPLITS": splits}, GATE)
