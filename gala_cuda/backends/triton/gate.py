"""gate: the tiles' pooled sums -> p -> z -> g -> alpha, beta, in float32; and its backward.

The products have few rows, one an image, and weights that are large beside them: the sums over C are split between
programs, and whoever reads the parts adds them up in order.
"""

import triton
import triton.language as tl

from .numerics import dot, narrow, relu


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
    splits = tl.cdiv(channels, span)
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
        to = stats + (n.to(tl.int64) * width)[:, None] + (pixels + c)[None, :]
        tl.store(to, p, mask=here[:, None] & (c < channels)[None, :] & (r_block == 0))
        w = tl.load(
            w_shrink + r[None, :] * channels + c[:, None],
            mask=(r < reduced)[None, :] & (c < channels)[:, None],
            other=0.0,
        )
        z = dot(p, w.to(tl.float32), z, GATE_PRECISION)
    to = z_parts + (split * images + n)[:, None] * reduced + r[None, :]
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
    saved = stats + (n.to(tl.int64) * width + pixels + channels)[:, None]
    acc = tl.zeros([IMAGES, CHANNELS], tl.float32)
    for k in range(0, reduced, DEPTH):
        r = k + tl.arange(0, DEPTH)
        mask = here[:, None] & (r < reduced)[None, :]
        if SAVED:
            z = tl.load(saved + r[None, :], mask=mask, other=0.0)
        else:
            z = add_parts(z_parts, n[:, None] * reduced + r[None, :], mask, images * reduced, SPLITS)
            if BIAS:
                z += tl.load(b_w_shrink + r, mask=r < reduced, other=0.0).to(tl.float32)[None, :]
            tl.store(saved + r[None, :], z, mask=mask & (tile % blocks == 0))
        w = tl.load(
            w_expand + c[None, :] * reduced + r[:, None],
            mask=(c < channels)[None, :] & (r < reduced)[:, None],
            other=0.0,
        )
        acc = dot(relu(z), w.to(tl.float32), acc, GATE_PRECISION)
    if BIAS:
        acc += tl.load(b_w_expand + c, mask=c < channels, other=0.0).to(tl.float32)[None, :]
    weight_a = tl.load(a + c, mask=c < channels, other=0.0).to(tl.float32)[None, :]
    weight_m = tl.load(m + c, mask=c < channels, other=0.0).to(tl.float32)[None, :]
    mask = here[:, None] & (c < channels)[None, :]
    at = n.to(tl.int64)[:, None] * channels + c[None, :]
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


@triton.jit(do_not_specialize=["images"])
def grad_hidden(
    alpha_parts,
    beta_parts,  # [PARTS, N, C]: d alpha and d beta
    a,
    m,
    w_expand,  # [C, R]
    dg,  # [N, C]
    dz_parts,  # [splits, N, R]
    images,
    channels,
    reduced,
    span,
    PARTS: tl.constexpr,
    GATE_PRECISION: tl.constexpr,
    IMAGES: tl.constexpr,
    DEPTH: tl.constexpr,
    HIDDEN: tl.constexpr,
):
    """dg = a d alpha + m d beta, and a split's part of dg . w_expand; programs as ``shrink``."""
    splits = tl.cdiv(channels, span)
    r_blocks = tl.cdiv(reduced, HIDDEN)
    split = tl.program_id(0) % splits
    r_block = tl.program_id(0) // splits % r_blocks
    n = tl.program_id(0) // (splits * r_blocks) * IMAGES + tl.arange(0, IMAGES)
    r = r_block * HIDDEN + tl.arange(0, HIDDEN)
    here = n < images
    acc = tl.zeros([IMAGES, HIDDEN], tl.float32)
    for k in range(split * span, tl.minimum(split * span + span, channels), DEPTH):
        c = k + tl.arange(0, DEPTH)
        mask = here[:, None] & (c < channels)[None, :]
        at = n.to(tl.int64)[:, None] * channels + c[None, :]
        stride = tl.cast(images, tl.int64) * channels
        d_alpha = add_parts(alpha_parts, at, mask, stride, PARTS)
        d_beta = add_parts(beta_parts, at, mask, stride, PARTS)
        weight_a = tl.load(a + c, mask=c < channels, other=0.0).to(tl.float32)[None, :]
        weight_m = tl.load(m + c, mask=c < channels, other=0.0).to(tl.float32)[None, :]
        d = weight_a * d_alpha + weight_m * d_beta
        tl.store(dg + at, d, mask=mask & (r_block == 0))
        w = tl.load(
            w_expand + c[:, None] * reduced + r[None, :],
            mask=(c < channels)[:, None] & (r < reduced)[None, :],
            other=0.0,
        )
        acc = dot(d, w.to(tl.float32), acc, GATE_PRECISION)
    to = dz_parts + (split * images + n)[:, None] * reduced + r[None, :]
    tl.store(to, acc, mask=here[:, None] & (r < reduced)[None, :])


@triton.jit(do_not_specialize=["images"])
def grad_pool(
    dz_parts,  # [SPLITS, N, R]
    w_shrink,  # [R, C]
    stats,
    dz,  # [N, R]
    dp,  # [N, C], over HW
    images,
    pixels,
    channels,
    reduced,
    width,
    SPLITS: tl.constexpr,
    GATE_PRECISION: tl.constexpr,
    IMAGES: tl.constexpr,
    DEPTH: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """dz where the hidden unit was on, and dp = dz . w_shrink over HW; programs as ``expand``."""
    blocks = tl.cdiv(channels, CHANNELS)
    block = tl.program_id(0) % blocks
    n = tl.program_id(0) // blocks * IMAGES + tl.arange(0, IMAGES)
    c = block * CHANNELS + tl.arange(0, CHANNELS)
    here = n < images
    acc = tl.zeros([IMAGES, CHANNELS], tl.float32)
    for k in range(0, reduced, DEPTH):
        r = k + tl.arange(0, DEPTH)
        mask = here[:, None] & (r < reduced)[None, :]
        at = n[:, None] * reduced + r[None, :]
        z = tl.load(stats + (n.to(tl.int64) * width + pixels + channels)[:, None] + r[None, :], mask=mask, other=0.0)
        d = tl.where(z <= 0, 0.0, add_parts(dz_parts, at, mask, images * reduced, SPLITS))
        tl.store(dz + at, d, mask=mask & (block == 0))
        w = tl.load(
            w_shrink + r[:, None] * channels + c[None, :],
            mask=(r < reduced)[:, None] & (c < channels)[None, :],
            other=0.0,
        )
        acc = dot(d, w.to(tl.float32), acc, GATE_PRECISION)
    to = dp + n.to(tl.int64)[:, None] * channels + c[None, :]
    tl.store(to, acc * (1.0 / tl.cast(pixels, tl.float32)), mask=here[:, None] & (c < channels)[None, :])


@triton.jit(do_not_specialize=["images"])
def global_grads(
    alpha_parts,
    beta_parts,  # [PARTS, N, C]
    g,
    dg,  # [N, C]
    dz,  # [N, R]
    stats,
    d_w_shrink,
    d_w_expand,
    d_a,
    d_m,
    d_b_w_shrink,
    d_b_w_expand,  # with BIAS
    images,
    pixels,
    channels,
    reduced,
    width,
    BIAS: tl.constexpr,
    PARTS: tl.constexpr,
    GATE_PRECISION: tl.constexpr,
    IMAGES: tl.constexpr,
    HIDDEN: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """The gradients of the global path's weights; one program a block of hidden units and a block of channels."""
    r_blocks = tl.cdiv(reduced, HIDDEN)
    c_block = tl.program_id(0) // r_blocks
    r_block = tl.program_id(0) % r_blocks
    c = c_block * CHANNELS + tl.arange(0, CHANNELS)
    r = r_block * HIDDEN + tl.arange(0, HIDDEN)
    expand_acc = tl.zeros([CHANNELS, HIDDEN], tl.float32)
    shrink_acc = tl.zeros([CHANNELS, HIDDEN], tl.float32)
    a_acc = tl.zeros([CHANNELS, IMAGES], tl.float32)
    m_acc = tl.zeros([CHANNELS, IMAGES], tl.float32)
    dg_acc = tl.zeros([CHANNELS, IMAGES], tl.float32)
    dz_acc = tl.zeros([IMAGES, HIDDEN], tl.float32)
    for first in range(0, images, IMAGES):
        n = first + tl.arange(0, IMAGES)
        across = (n < images)[None, :] & (c < channels)[:, None]  # [CHANNELS, IMAGES]
        along = (n < images)[:, None] & (r < reduced)[None, :]  # [IMAGES, HIDDEN]
        at = n.to(tl.int64)[None, :] * channels + c[:, None]
        row = stats + n.to(tl.int64) * width + pixels
        d = tl.load(dg + at, mask=across, other=0.0)
        p = tl.load(row[None, :] + c[:, None], mask=across, other=0.0)
        z = tl.load((row + channels)[:, None] + r[None, :], mask=along, other=0.0)
        d_hidden = tl.load(dz + n[:, None] * reduced + r[None, :], mask=along, other=0.0)
        expand_acc = dot(d, relu(z), expand_acc, GATE_PRECISION)
        shrink_acc = dot(p, d_hidden, shrink_acc, GATE_PRECISION)
        stride = tl.cast(images, tl.int64) * channels
        d_alpha = add_parts(alpha_parts, at, across, stride, PARTS)
        d_beta = add_parts(beta_parts, at, across, stride, PARTS)
        gate = tl.load(g + at, mask=across, other=0.0)
        a_acc += gate * d_alpha + d_beta
        m_acc += gate * d_beta
        dg_acc += d
        dz_acc += d_hidden
    mask = (c < channels)[:, None] & (r < reduced)[None, :]
    to = d_w_expand + c[:, None] * reduced + r[None, :]
    tl.store(to, narrow(expand_acc, d_w_expand.dtype.element_ty), mask=mask)
    to = d_w_shrink + r[None, :] * channels + c[:, None]
    tl.store(to, narrow(shrink_acc, d_w_shrink.dtype.element_ty), mask=mask)
    mask = (c < channels) & (r_block == 0)
    tl.store(d_a + c, narrow(tl.sum(a_acc, 1), d_a.dtype.element_ty), mask=mask)
    tl.store(d_m + c, narrow(tl.sum(m_acc, 1), d_m.dtype.element_ty), mask=mask)
    if BIAS:
        tl.store(d_b_w_expand + c, narrow(tl.sum(dg_acc, 1), d_b_w_expand.dtype.element_ty), mask=mask)
        mask = (r < reduced) & (c_block == 0)
        tl.store(d_b_w_shrink + r, narrow(tl.sum(dz_acc, 0), d_b_w_shrink.dtype.element_ty), mask=mask)
