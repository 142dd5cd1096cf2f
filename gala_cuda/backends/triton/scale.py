"""scale: out = x * squash(alpha + beta * s), with a residual relu(out + residual), and the map; and its backward.

Each program takes a share of one image's pixels and a block of channels, and goes through them PIXELS at a time.
"""

import triton
import triton.language as tl

from .arguments import Layout
from .gate import add_parts
from .indexing import below, follow, multiple, multiples, offsets, part_of_image
from .launch import KernelLaunch, cdiv, clamp_block
from .numerics import derivative, narrow, relu, squash
from .problem import NO_TUNING, Problem, shares


@triton.jit(do_not_specialize=["rows"])
def scale(
    x,
    residual,  # with RESIDUAL
    out,
    stats,  # [N, width]: s is read, or with SHARES > 1 written
    s_parts,  # [SHARES, rows], with SHARES > 1
    gate,
    map_parts,  # [blocks of channels, rows], with MAP
    rows,  # N HW
    sizes,
    span,  # pixels of a program
    x_layout,
    residual_layout,
    out_layout,
    PDL: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    RESIDUAL: tl.constexpr,
    MAP: tl.constexpr,
    SQUASH: tl.constexpr,
    SHARES: tl.constexpr,
    WHOLE: tl.constexpr,  # whether CHANNELS divides C
    RUN: tl.constexpr,  # as of gather
    PIXELS: tl.constexpr,
    CHANNELS: tl.constexpr,
    STAGES: tl.constexpr,  # without a product in the loop, Triton prefetches where the loop itself says so
):
    """One program for each block of channels, share of the pixels, and image; the last first.

    gather has just read x from its first image on: the L2 cache still holds its end.
    """
    follow(PDL)
    alpha, beta, _ = gate
    pixels, channels, _, width = sizes
    pixels, span = multiple(pixels, RUN), multiple(span, RUN)
    x_layout, out_layout = multiples(x_layout, RUN), multiples(out_layout, RUN)
    residual_layout = multiples(residual_layout, RUN)
    tile = tl.num_programs(0) - 1 - tl.program_id(0)
    image, share, block, c = part_of_image(tile, pixels, channels, span, CHANNELS)
    begin = share * span
    here = below(c, channels, WHOLE)
    a = tl.load(alpha + image * channels + c, mask=here, other=0.0)[None, :]
    b = tl.load(beta + image * channels + c, mask=here, other=0.0)[None, :]
    for start in tl.range(begin, tl.minimum(begin + span, pixels), PIXELS, num_stages=STAGES):
        pixel = start + tl.arange(0, PIXELS)
        inside = pixel < pixels
        to = stats + image * width + pixel
        if SHARES == 1:
            s = tl.load(to, mask=inside, other=0.0)
        else:
            s = add_parts(s_parts, image * pixels + pixel, inside, tl.cast(rows, tl.int64), SHARES)
            tl.store(to, s, mask=inside & (block == 0))
        attention = squash(a + b * s[:, None], SQUASH, x.dtype.element_ty)
        mask = inside[:, None] & here[None, :]
        at = offsets(image, pixel, c, x_layout, CHANNELS_LAST)
        value = tl.load(x + at, mask=mask, other=0.0).to(tl.float32) * attention
        if RESIDUAL:
            at = offsets(image, pixel, c, residual_layout, CHANNELS_LAST)
            value = relu(value + tl.load(residual + at, mask=mask, other=0.0).to(tl.float32))
        at = offsets(image, pixel, c, out_layout, CHANNELS_LAST)
        tl.store(out + at, narrow(value, out.dtype.element_ty), mask=mask)
        if MAP:
            squares = tl.sum(tl.where(here[None, :], attention * attention, 0.0), 1)
            tl.store(map_parts + block.to(tl.int64) * rows + image * pixels + pixel, squares, mask=inside)


def scale_launch(p: Problem, residual: Layout | None, return_map: bool, unit_shares: int) -> tuple[KernelLaunch, int]:
    """The launch that makes out, with s in so many parts, and the number of blocks of channels: of parts of the map."""
    tile = p.config.scale
    sizes = {"PIXELS": clamp_block(tile["PIXELS"], p.pixels), "CHANNELS": clamp_block(tile["CHANNELS"], p.channels)}
    c_blocks = cdiv(p.channels, sizes["CHANNELS"])
    span, n_shares = shares(p, sizes["PIXELS"], c_blocks)
    numbers = (p.images * p.pixels, p.sizes, span, p.x, residual or p.x, p.out)
    flags = {"RESIDUAL": residual is not None, "MAP": return_map, "WHOLE": p.channels % sizes["CHANNELS"] == 0}
    constants = p.constants | sizes | flags | {"SHARES": unit_shares, "RUN": p.run(p.x, residual or p.x, p.out)}
    return KernelLaunch(scale, p.images * c_blocks * n_shares, numbers, constants, tile), c_blocks


@triton.jit(do_not_specialize=["rows", "count"])
def finish_map(parts, attn_map, rows, count, PDL: tl.constexpr, ROWS: tl.constexpr):
    """attn_map [rows] = the root of the sum over parts [count, rows], in order."""
    follow(PDL)
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    total = tl.zeros([ROWS], tl.float32)
    for part in range(count):
        total += tl.load(parts + part * tl.cast(rows, tl.int64) + row, mask=row < rows, other=0.0)
    tl.store(attn_map + row, tl.sqrt_rn(total), mask=row < rows)


def map_launch(p: Problem, parts: int) -> KernelLaunch:
    """The launch that makes the map of its parts [parts, N HW]."""
    rows, block = p.images * p.pixels, 256
    return KernelLaunch(finish_map, cdiv(rows, block), (rows, parts), p.constants | {"ROWS": block}, NO_TUNING)


@triton.jit(do_not_specialize=["images"])
def scale_backward(
    grad_out,
    x,
    out,  # with RESIDUAL, as grad_residual
    grad_residual,
    stats,
    map_factor,  # [N HW], with MAP: dMap / map
    gate,
    parts,  # GateParts, one for each share
    ds_parts,  # [blocks of channels, N HW]
    images,
    sizes,
    span,
    grad_layout,
    x_layout,
    out_layout,
    residual_layout,  # of grad_residual
    PDL: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    RESIDUAL: tl.constexpr,
    MAP: tl.constexpr,
    SQUASH: tl.constexpr,
    WHOLE: tl.constexpr,  # whether CHANNELS divides C
    RUN: tl.constexpr,  # as of gather
    PIXELS: tl.constexpr,
    CHANNELS: tl.constexpr,
    STAGES: tl.constexpr,
):
    """e = (d x + map_factor A) squash'(A) and its sums, d being the gradient of x A; programs as of `scale`."""
    follow(PDL)
    alpha, beta, _ = gate
    alpha_parts, beta_parts = parts
    pixels, channels, _, width = sizes
    pixels, span = multiple(pixels, RUN), multiple(span, RUN)
    grad_layout, x_layout = multiples(grad_layout, RUN), multiples(x_layout, RUN)
    out_layout, residual_layout = multiples(out_layout, RUN), multiples(residual_layout, RUN)
    image, share, block, c = part_of_image(tl.program_id(0), pixels, channels, span, CHANNELS)
    here = below(c, channels, WHOLE)
    a = tl.load(alpha + image * channels + c, mask=here, other=0.0)[None, :]
    b = tl.load(beta + image * channels + c, mask=here, other=0.0)[None, :]
    alpha_acc = tl.zeros([PIXELS, CHANNELS], tl.float32)
    beta_acc = tl.zeros([PIXELS, CHANNELS], tl.float32)
    for start in tl.range(share * span, tl.minimum(share * span + span, pixels), PIXELS, num_stages=STAGES):
        pixel = start + tl.arange(0, PIXELS)
        inside = pixel < pixels
        mask = inside[:, None] & here[None, :]
        s = tl.load(stats + image * width + pixel, mask=inside, other=0.0)[:, None]
        attention = squash(a + b * s, SQUASH, x.dtype.element_ty)
        at = offsets(image, pixel, c, grad_layout, CHANNELS_LAST)
        d = tl.load(grad_out + at, mask=mask, other=0.0).to(tl.float32)
        if RESIDUAL:
            at = offsets(image, pixel, c, out_layout, CHANNELS_LAST)
            d = tl.where(tl.load(out + at, mask=mask, other=0.0).to(tl.float32) <= 0, 0.0, d)
            at = offsets(image, pixel, c, residual_layout, CHANNELS_LAST)
            tl.store(grad_residual + at, narrow(d, grad_residual.dtype.element_ty), mask=mask)
        rows = tl.load(x + offsets(image, pixel, c, x_layout, CHANNELS_LAST), mask=mask, other=0.0)
        e = d * rows.to(tl.float32)
        if MAP:
            e += tl.load(map_factor + image * pixels + pixel, mask=inside, other=0.0)[:, None] * attention
        e = tl.where(mask, e * derivative(attention, SQUASH), 0.0)
        alpha_acc += e
        beta_acc += e * s
        to = ds_parts + (block.to(tl.int64) * images + image) * pixels + pixel
        tl.store(to, tl.sum(e * b, 1), mask=inside)
    to = (share.to(tl.int64) * images + image) * channels + c
    tl.store(alpha_parts + to, tl.sum(alpha_acc, 0), mask=here)
    tl.store(beta_parts + to, tl.sum(beta_acc, 0), mask=here)
