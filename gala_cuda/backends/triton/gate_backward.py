"""The backward of gate: d alpha, d beta -> dg -> dz -> dp, and the global weights' gradients, in float32."""

import triton
import triton.language as tl

from .gate import add_parts, add_product, split_block, store_split
from .indexing import follow, load_matrix, load_vector
from .numerics import dot, narrow, relu


@triton.jit(do_not_specialize=["images"])
def grad_hidden(
    parts,  # GateParts
    weights,  # Global
    dg,  # [N, C]
    dz_parts,  # [splits, N, R]
    images,
    sizes,
    span,
    PDL: tl.constexpr,
    PARTS: tl.constexpr,
    GATE_PRECISION: tl.constexpr,
    IMAGES: tl.constexpr,
    DEPTH: tl.constexpr,
    REDUCED: tl.constexpr,
):
    """dg = a d alpha + m d beta, and a split's part of dg . w_expand; programs as of `shrink`."""
    follow(PDL)
    alpha_parts, beta_parts = parts
    _, w_expand, a, m, _, _ = weights
    _, channels, reduced, _ = sizes
    split, r_block, n, r = split_block(images, channels, reduced, span, IMAGES, REDUCED)
    here = n < images
    image = n.to(tl.int64)[:, None]
    stride = tl.cast(images, tl.int64) * channels
    acc = tl.zeros([IMAGES, REDUCED], tl.float32)
    for k in range(split * span, tl.minimum(split * span + span, channels), DEPTH):
        c = k + tl.arange(0, DEPTH)
        mask = here[:, None] & (c < channels)[None, :]
        at = image * channels + c[None, :]
        weight_a = load_vector(a, c, channels)[None, :]
        weight_m = load_vector(m, c, channels)[None, :]
        d = tl.zeros([IMAGES, DEPTH], tl.float32)
        for part in tl.static_range(PARTS):
            d += weight_a * tl.load(alpha_parts + part * stride + at, mask=mask, other=0.0)
            d += weight_m * tl.load(beta_parts + part * stride + at, mask=mask, other=0.0)
        w = load_matrix(w_expand, c, r, channels, reduced, TRANSPOSED=False)
        acc = add_product(d, w.to(tl.float32), acc, GATE_PRECISION)
        tl.store(dg + at, d, mask=mask & (r_block == 0))
    store_split(dz_parts, acc, split, n, images, r, reduced)


@triton.jit
def finish_grad_hidden(
    program,
    parts,  # [SPLITS, N, R]
    stats,  # [N, width]: z is read
    dz,  # [N, R]
    images,
    sizes,
    SPLITS: tl.constexpr,
    IMAGES: tl.constexpr,
    REDUCED: tl.constexpr,
):
    """dz from its parts, where the unit was on; one program for each block of images and of hidden units."""
    pixels, channels, reduced, width = sizes
    blocks = tl.cdiv(reduced, REDUCED)
    n = program // blocks * IMAGES + tl.arange(0, IMAGES)
    r = program % blocks * REDUCED + tl.arange(0, REDUCED)
    image = n.to(tl.int64)[:, None]
    mask = (n < images)[:, None] & (r < reduced)[None, :]
    at = image * reduced + r[None, :]
    total = add_parts(parts, at, mask, tl.cast(images, tl.int64) * reduced, SPLITS)
    z = tl.load(stats + image * width + pixels + channels + r[None, :], mask=mask, other=0.0)
    tl.store(dz + at, tl.where(z <= 0, 0.0, total), mask=mask)


@triton.jit
def grad_pool(
    program,
    weights,  # Global
    grads,  # GateGrads: dz is read, dp written
    images,
    sizes,
    GATE_PRECISION: tl.constexpr,
    IMAGES: tl.constexpr,
    DEPTH: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """dp = dz . w_shrink over HW; programs as of `expand`."""
    w_shrink, _, _, _, _, _ = weights
    _, dz, dp = grads
    pixels, channels, reduced, _ = sizes
    blocks = tl.cdiv(channels, CHANNELS)
    n = program // blocks * IMAGES + tl.arange(0, IMAGES)
    c = program % blocks * CHANNELS + tl.arange(0, CHANNELS)
    here = n < images
    image = n.to(tl.int64)[:, None]
    acc = tl.zeros([IMAGES, CHANNELS], tl.float32)
    for k in range(0, reduced, DEPTH):
        r = k + tl.arange(0, DEPTH)
        d = tl.load(dz + image * reduced + r[None, :], mask=here[:, None] & (r < reduced)[None, :], other=0.0)
        w = load_matrix(w_shrink, r, c, reduced, channels, TRANSPOSED=False)
        acc = add_product(d, w.to(tl.float32), acc, GATE_PRECISION)
    to = dp + image * channels + c[None, :]
    tl.store(to, acc * (1.0 / tl.cast(pixels, tl.float32)), mask=here[:, None] & (c < channels)[None, :])


@triton.jit
def global_grads(
    program,
    grads,  # GateGrads
    stats,
    weight_grads,  # Global
    images,
    sizes,
    BIAS: tl.constexpr,
    GATE_PRECISION: tl.constexpr,
    IMAGES: tl.constexpr,
    REDUCED: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """The gradients of the global path's weights; one program for each block of hidden units and of channels."""
    dg, dz, _ = grads
    grad_w_shrink, grad_w_expand, _, _, grad_b_w_shrink, _ = weight_grads
    pixels, channels, reduced, width = sizes
    r_blocks = tl.cdiv(reduced, REDUCED)
    c_block = program // r_blocks
    r_block = program % r_blocks
    c = c_block * CHANNELS + tl.arange(0, CHANNELS)
    r = r_block * REDUCED + tl.arange(0, REDUCED)
    expand_acc = tl.zeros([CHANNELS, REDUCED], tl.float32)
    shrink_acc = tl.zeros([CHANNELS, REDUCED], tl.float32)
    dz_acc = tl.zeros([IMAGES, REDUCED], tl.float32)
    d, p = of_channels(dg, stats, 0, images, pixels, c, channels, width, IMAGES)
    d_hidden, z = of_units(dz, stats, 0, images, pixels, channels, r, reduced, width, IMAGES)
    for first in range(IMAGES, images + IMAGES, IMAGES):
        next_d, next_p = of_channels(dg, stats, first, images, pixels, c, channels, width, IMAGES)
        next_d_hidden, next_z = of_units(dz, stats, first, images, pixels, channels, r, reduced, width, IMAGES)
        expand_acc = dot(d, relu(z), expand_acc, GATE_PRECISION)
        shrink_acc = dot(p, d_hidden, shrink_acc, GATE_PRECISION)
        dz_acc += d_hidden
        d, p, d_hidden, z = next_d, next_p, next_d_hidden, next_z
    mask = (c < channels)[:, None] & (r < reduced)[None, :]
    to = grad_w_expand + c.to(tl.int64)[:, None] * reduced + r[None, :]
    tl.store(to, narrow(expand_acc, grad_w_expand.dtype.element_ty), mask=mask)
    to = grad_w_shrink + r.to(tl.int64)[None, :] * channels + c[:, None]
    tl.store(to, narrow(shrink_acc, grad_w_shrink.dtype.element_ty), mask=mask)
    if BIAS:
        mask = (r < reduced) & (c_block == 0)
        tl.store(grad_b_w_shrink + r, narrow(tl.sum(dz_acc, 0), grad_b_w_shrink.dtype.element_ty), mask=mask)


@triton.jit
def of_channels(dg, stats, first, images, pixels, c, channels, width, IMAGES: tl.constexpr):
    """dg and p at channels `c`, [C, IMAGES] each, of the images from `first` on; 0 outside."""
    n = first + tl.arange(0, IMAGES)
    image = n.to(tl.int64)[None, :]
    mask = (n < images)[None, :] & (c < channels)[:, None]
    d = tl.load(dg + image * channels + c[:, None], mask=mask, other=0.0)
    return d, tl.load(stats + image * width + pixels + c[:, None], mask=mask, other=0.0)


@triton.jit
def of_units(dz, stats, first, images, pixels, channels, r, reduced, width, IMAGES: tl.constexpr):
    """dz and z at hidden units `r`, [IMAGES, R] each, of the images from `first` on; 0 outside."""
    n = first + tl.arange(0, IMAGES)
    image = n.to(tl.int64)[:, None]
    mask = (n < images)[:, None] & (r < reduced)[None, :]
    d = tl.load(dz + image * reduced + r[None, :], mask=mask, other=0.0)
    return d, tl.load(stats + image * width + pixels + channels + r[None, :], mask=mask, other=0.0)


@triton.jit
def sums_of_channels(
    program,
    parts,  # GateParts
    gate,  # Gate
    grads,  # GateGrads
    weight_grads,  # Global
    images,
    sizes,
    BIAS: tl.constexpr,
    PARTS: tl.constexpr,
    IMAGES: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """da, dm and with BIAS the gradient of expand's bias; one program for each block of channels."""
    alpha_parts, beta_parts = parts
    _, _, g = gate
    dg, _, _ = grads
    _, _, grad_a, grad_m, _, grad_b_w_expand = weight_grads
    _, channels, _, _ = sizes
    c = program * CHANNELS + tl.arange(0, CHANNELS)
    a_acc = tl.zeros([IMAGES, CHANNELS], tl.float32)
    m_acc = tl.zeros([IMAGES, CHANNELS], tl.float32)
    dg_acc = tl.zeros([IMAGES, CHANNELS], tl.float32)
    stride = tl.cast(images, tl.int64) * channels
    for first in range(0, images, IMAGES):
        n = first + tl.arange(0, IMAGES)
        mask = (n < images)[:, None] & (c < channels)[None, :]
        at = n.to(tl.int64)[:, None] * channels + c[None, :]
        d_alpha = add_parts(alpha_parts, at, mask, stride, PARTS)
        d_beta = add_parts(beta_parts, at, mask, stride, PARTS)
        was = tl.load(g + at, mask=mask, other=0.0)
        a_acc += was * d_alpha + d_beta
        m_acc += was * d_beta
        if BIAS:
            dg_acc += tl.load(dg + at, mask=mask, other=0.0)
    mask = c < channels
    tl.store(grad_a + c, narrow(tl.sum(a_acc, 0), grad_a.dtype.element_ty), mask=mask)
    tl.store(grad_m + c, narrow(tl.sum(m_acc, 0), grad_m.dtype.element_ty), mask=mask)
    if BIAS:
        tl.store(grad_b_w_expand + c, narrow(tl.sum(dg_acc, 0), grad_b_w_expand.dtype.element_ty), mask=mask)
