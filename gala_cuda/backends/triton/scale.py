"""scale: out = x * squash(alpha + beta * s), with a residual relu(out + residual), and the map; and its backward.

A program walks over a share of one image's pixels for a block of channels.
"""

import triton
import triton.language as tl

from .numerics import derivative, how_many, narrow, relu, spots, squash


@triton.jit
def scale_tile(
    tile,
    x,
    residual,  # with RESIDUAL
    out,
    stats,
    alpha,
    beta,  # [N, C]
    map_parts,  # [blocks of channels, map_rows], with MAP
    map_rows,
    pixels,
    channels,
    width,
    span,  # pixels of a program
    x_image,
    x_step,
    residual_image,
    residual_step,
    out_image,
    out_step,
    CHANNELS_LAST: tl.constexpr,
    RESIDUAL: tl.constexpr,
    MAP: tl.constexpr,
    TANH: tl.constexpr,
    PIXELS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    blocks = tl.cdiv(channels, CHANNELS)
    shares = how_many(pixels, span)
    block = tile % blocks
    begin = tile // blocks % shares * span
    image = (tile // (blocks * shares)).to(tl.int64)
    c = block * CHANNELS + tl.arange(0, CHANNELS)
    a = tl.load(alpha + image * channels + c, mask=c < channels, other=0.0)[None, :]
    b = tl.load(beta + image * channels + c, mask=c < channels, other=0.0)[None, :]
    for start in range(begin, tl.minimum(begin + span, pixels), PIXELS):
        pixel = start + tl.arange(0, PIXELS)
        s = tl.load(stats + image * width + pixel, mask=pixel < pixels, other=0.0)[:, None]
        attention = squash(a + b * s, TANH, x.dtype.element_ty)
        mask = (pixel < pixels)[:, None] & (c < channels)[None, :]
        rows = tl.load(x + spots(image * x_image, pixel, c, x_step, CHANNELS_LAST), mask=mask, other=0.0)
        value = rows.to(tl.float32) * attention
        if RESIDUAL:
            at = spots(image * residual_image, pixel, c, residual_step, CHANNELS_LAST)
            value = relu(value + tl.load(residual + at, mask=mask, other=0.0).to(tl.float32))
        at = spots(image * out_image, pixel, c, out_step, CHANNELS_LAST)
        tl.store(out + at, narrow(value, out.dtype.element_ty), mask=mask)
        if MAP:
            squares = tl.sum(tl.where((c < channels)[None, :], attention * attention, 0.0), 1)
            to = map_parts + block.to(tl.int64) * map_rows + image * pixels + pixel
            tl.store(to, squares, mask=pixel < pixels)


@triton.jit(do_not_specialize=["map_rows"])
def scale(
    x, residual, out, stats, alpha, beta, map_parts, map_rows, pixels, channels, width, span,
    x_image, x_step, residual_image, residual_step, out_image, out_step,
    CHANNELS_LAST: tl.constexpr, RESIDUAL: tl.constexpr, MAP: tl.constexpr, TANH: tl.constexpr,
    PIXELS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """One program a block of channels, a share of the pixels and an image."""
    scale_tile(
        tl.program_id(0), x, residual, out, stats, alpha, beta, map_parts, map_rows, pixels, channels, width, span,
        x_image, x_step, residual_image, residual_step, out_image, out_step, CHANNELS_LAST, RESIDUAL, MAP, TANH,
        PIXELS, CHANNELS,
    )  # fmt: skip


@triton.jit(do_not_specialize=["rows", "count"])
def sum_parts(parts, out, rows, count, ROOT: tl.constexpr, ROWS: tl.constexpr):
    """out [rows] = the sum over parts [count, rows], in order, with ROOT its square root."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    total = tl.zeros([ROWS], tl.float32)
    for part in range(count):
        total += tl.load(parts + part * tl.cast(rows, tl.int64) + row, mask=row < rows, other=0.0)
    tl.store(out + row, tl.sqrt_rn(total) if ROOT else total, mask=row < rows)


@triton.jit(do_not_specialize=["images"])
def scale_backward(
    grad_out,
    x,
    out,  # with RESIDUAL, as grad_residual
    grad_residual,
    stats,
    map_factor,  # [N HW], with MAP: dMap / map
    alpha,
    beta,  # [N, C]
    alpha_parts,
    beta_parts,  # [shares, N, C]: d alpha, d beta
    ds_parts,  # [blocks of channels, N HW]
    images,
    pixels,
    channels,
    width,
    span,
    grad_image,
    grad_step,
    x_image,
    x_step,
    out_image,
    out_step,
    d_image,
    d_step,
    CHANNELS_LAST: tl.constexpr,
    RESIDUAL: tl.constexpr,
    MAP: tl.constexpr,
    TANH: tl.constexpr,
    PIXELS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """e = (d x + map_factor A) squash'(A) and its sums; programs as ``scale``."""
    blocks = tl.cdiv(channels, CHANNELS)
    shares = how_many(pixels, span)
    block = tl.program_id(0) % blocks
    share = tl.program_id(0) // blocks % shares
    image = (tl.program_id(0) // (blocks * shares)).to(tl.int64)
    c = block * CHANNELS + tl.arange(0, CHANNELS)
    a = tl.load(alpha + image * channels + c, mask=c < channels, other=0.0)[None, :]
    b = tl.load(beta + image * channels + c, mask=c < channels, other=0.0)[None, :]
    alpha_acc = tl.zeros([PIXELS, CHANNELS], tl.float32)
    beta_acc = tl.zeros([PIXELS, CHANNELS], tl.float32)
    for start in range(share * span, tl.minimum(share * span + span, pixels), PIXELS):
        pixel = start + tl.arange(0, PIXELS)
        inside = pixel < pixels
        mask = inside[:, None] & (c < channels)[None, :]
        s = tl.load(stats + image * width + pixel, mask=inside, other=0.0)[:, None]
        attention = squash(a + b * s, TANH, x.dtype.element_ty)
        at = spots(image * grad_image, pixel, c, grad_step, CHANNELS_LAST)
        d = tl.load(grad_out + at, mask=mask, other=0.0).to(tl.float32)
        if RESIDUAL:
            at = spots(image * out_image, pixel, c, out_step, CHANNELS_LAST)
            d = tl.where(tl.load(out + at, mask=mask, other=0.0).to(tl.float32) <= 0, 0.0, d)
            at = spots(image * d_image, pixel, c, d_step, CHANNELS_LAST)
            tl.store(grad_residual + at, narrow(d, grad_residual.dtype.element_ty), mask=mask)
        rows = tl.load(x + spots(image * x_image, pixel, c, x_step, CHANNELS_LAST), mask=mask, other=0.0)
        e = d * rows.to(tl.float32)
        if MAP:
            e += tl.load(map_factor + image * pixels + pixel, mask=inside, other=0.0)[:, None] * attention
        e = tl.where(mask, e * derivative(attention, TANH), 0.0)
        alpha_acc += e
        beta_acc += e * s
        to = ds_parts + (block.to(tl.int64) * images + image) * pixels + pixel
        tl.store(to, tl.sum(e * b, 1), mask=inside)
    to = (share.to(tl.int64) * images + image) * channels + c
    tl.store(alpha_parts + to, tl.sum(alpha_acc, 0), mask=c < channels)
    tl.store(beta_parts + to, tl.sum(beta_acc, 0), mask=c < channels)
