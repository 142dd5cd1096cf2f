"""Kernels of the backward pass with several parts: what depends on nothing of each other shares a launch.

The first programs are of the first part, the last of the last. Each part is a function of its program's number.
"""

import triton
import triton.language as tl

from .gate import expand_block
from .gate_backward import finish_grad_hidden, global_grads, grad_pool, sums_of_channels
from .gather import prepare_block
from .gather_backward import local_grads, weigh_mask


@triton.jit(do_not_specialize=["images", "first"])
def expand_and_prepare(
    w_expand,
    b_w_expand,
    a,
    m,
    stats,
    g,
    alpha,
    beta,
    v_shrink,
    v_collapse,
    shrink,  # [R, C] in x's dtype, with INPUT: v_collapse times the rows of v_shrink
    images,
    pixels,
    channels,
    reduced,
    width,
    first,  # programs of the first part
    BIAS: tl.constexpr,
    INPUT: tl.constexpr,
    GATE_PRECISION: tl.constexpr,
    IMAGES: tl.constexpr,
    DEPTH: tl.constexpr,
    CHANNELS: tl.constexpr,
    COLS: tl.constexpr,
):
    """What the forward pass did not save: g, alpha, beta; and with INPUT what grad_x multiplies W by."""
    program = tl.program_id(0)
    if program < first:
        expand_block(
            program, w_expand, b_w_expand, a, m, stats, g, alpha, beta, images, pixels, channels, reduced, width,
            BIAS, True, GATE_PRECISION, IMAGES, DEPTH, CHANNELS,
        )  # fmt: skip
    elif INPUT:
        prepare_block(program - first, v_shrink, v_collapse, shrink, reduced, channels, True, COLS)


@triton.jit(do_not_specialize=["images", "first", "rows", "count"])
def finish_and_weigh(
    ds_parts,
    relu_mask,
    ds,
    weighted,
    dz_parts,
    stats,
    dz,
    images,
    pixels,
    channels,
    reduced,
    width,
    first,  # programs of the first part
    rows,
    count,
    words,
    SPLITS: tl.constexpr,
    IMAGES: tl.constexpr,
    REDUCED: tl.constexpr,
    ROWS: tl.constexpr,
    WORDS: tl.constexpr,
):
    """What the products of the backward pass take: dz from its parts, and W from those of ds."""
    program = tl.program_id(0)
    if program < first:
        finish_grad_hidden(
            program, dz_parts, stats, dz, images, pixels, channels, reduced, width, SPLITS, IMAGES, REDUCED
        )
    else:
        weigh_mask(program - first, ds_parts, relu_mask, ds, weighted, rows, count, words, ROWS, WORDS)


@triton.jit(do_not_specialize=["images", "first", "second", "third"])
def small_grads(
    alpha_parts,
    beta_parts,
    g,
    dg,
    dz,
    stats,
    grad_w_shrink,
    grad_w_expand,
    grad_a,
    grad_m,
    grad_b_w_shrink,
    grad_b_w_expand,
    w_shrink,
    dp,
    t,
    counts,
    ds_sums,
    v_shrink,
    v_collapse,
    b_v_shrink,
    grad_v_shrink,
    grad_v_collapse,
    grad_b_v_shrink,
    grad_b_v_collapse,
    images,
    pixels,
    channels,
    reduced,
    width,
    first,  # the number of the first program of the second part, and so on
    second,
    third,
    BIAS: tl.constexpr,
    INPUT: tl.constexpr,
    WEIGHTS: tl.constexpr,
    PARTS: tl.constexpr,
    GATE_PRECISION: tl.constexpr,
    GRADS_IMAGES: tl.constexpr,
    GRADS_REDUCED: tl.constexpr,
    GRADS_CHANNELS: tl.constexpr,
    IMAGES: tl.constexpr,
    DEPTH: tl.constexpr,
    CHANNELS: tl.constexpr,
    SPLITS: tl.constexpr,
    UNITS: tl.constexpr,
    COLS: tl.constexpr,
):
    """What follows from dz and T: with INPUT the gradient of the pooled mean, with WEIGHTS those of the weights."""
    program = tl.program_id(0)
    if program < first:
        if INPUT:
            grad_pool(
                program, w_shrink, dz, dp, images, pixels, channels, reduced, GATE_PRECISION, IMAGES, DEPTH, CHANNELS
            )
    elif WEIGHTS:
        if program < second:
            global_grads(
                program - first, dg, dz, stats, grad_w_shrink, grad_w_expand, grad_b_w_shrink,
                images, pixels, channels, reduced, width,
                BIAS, GATE_PRECISION, GRADS_IMAGES, GRADS_REDUCED, GRADS_CHANNELS,
            )  # fmt: skip
        elif program < third:
            sums_of_channels(
                program - second, alpha_parts, beta_parts, g, dg, grad_a, grad_m, grad_b_w_expand, images, channels,
                BIAS, PARTS, GRADS_IMAGES, GRADS_CHANNELS,
            )  # fmt: skip
        else:
            local_grads(
                program - third, t, counts, ds_sums, v_shrink, v_collapse, b_v_shrink,
                grad_v_shrink, grad_v_collapse, grad_b_v_shrink, grad_b_v_collapse, channels, reduced,
                BIAS, SPLITS, UNITS, COLS,
            )  # fmt: skip
