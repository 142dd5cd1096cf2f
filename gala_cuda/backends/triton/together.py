"""Kernels of the backward pass with several parts: what depends on nothing of each other shares a launch.

The first programs are of the first part, the last of the last. Each part is a function of its program's number.
"""

import triton
import triton.language as tl

from .gate import expand_block
from .gate_backward import finish_grad_hidden, global_grads, grad_pool, sums_of_channels
from .gather import prepare_block
from .gather_backward import local_grads, weigh_mask
from .indexing import follow


@triton.jit(do_not_specialize=["images", "first"])
def expand_and_prepare(
    weights,  # Global
    stats,
    gate,  # Gate, g with it
    local,  # Local
    shrink,  # [R, C] in x's dtype, with INPUT: v_collapse times the rows of v_shrink
    images,
    sizes,
    first,  # programs of the first part
    PDL: tl.constexpr,
    BIAS: tl.constexpr,
    INPUT: tl.constexpr,
    GATE_PRECISION: tl.constexpr,
    IMAGES: tl.constexpr,
    DEPTH: tl.constexpr,
    CHANNELS: tl.constexpr,
    COLS: tl.constexpr,
):
    """What the forward pass did not save: alpha, beta, g; and with INPUT what grad_x multiplies W by."""
    follow(PDL)
    program = tl.program_id(0)
    if program < first:
        expand_block(
            program, weights, None, stats, gate, images, sizes, BIAS, 0, GATE_PRECISION, IMAGES, DEPTH, CHANNELS
        )
    elif INPUT:
        v_shrink, v_collapse, _, _ = local
        _, channels, reduced, _ = sizes
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
    sizes,
    first,  # programs of the first part
    rows,
    count,
    words,
    PDL: tl.constexpr,
    SPLITS: tl.constexpr,
    IMAGES: tl.constexpr,
    REDUCED: tl.constexpr,
    ROWS: tl.constexpr,
    WORDS: tl.constexpr,
):
    """What the products of the backward pass take: dz from its parts, and W from those of ds."""
    follow(PDL)
    program = tl.program_id(0)
    if program < first:
        finish_grad_hidden(program, dz_parts, stats, dz, images, sizes, SPLITS, IMAGES, REDUCED)
    else:
        weigh_mask(program - first, ds_parts, relu_mask, ds, weighted, rows, count, words, ROWS, WORDS)


@triton.jit(do_not_specialize=["images", "first", "second", "third"])
def small_grads(
    parts,  # GateParts
    gate,  # Gate
    grads,  # GateGrads
    stats,
    weights,  # Global
    weight_grads,  # Global
    products,  # Products
    local,  # Local
    local_weight_grads,  # Local
    images,
    sizes,
    first,  # the number of the first program of the second part, and so on
    second,
    third,
    PDL: tl.constexpr,
    BIAS: tl.constexpr,
    INPUT: tl.constexpr,
    WEIGHTS: tl.constexpr,
    PARTS: tl.constexpr,
    GATE_PRECISION: tl.constexpr,
    GRADS_IMAGES: tl.constexpr,
    SUMS_IMAGES: tl.constexpr,
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
    follow(PDL)
    program = tl.program_id(0)
    if program < first:
        if INPUT:
            grad_pool(program, weights, grads, images, sizes, GATE_PRECISION, IMAGES, DEPTH, CHANNELS)
    elif WEIGHTS:
        if program < second:
            global_grads(
                program - first, grads, stats, weight_grads, images, sizes,
                BIAS, GATE_PRECISION, GRADS_IMAGES, GRADS_REDUCED, GRADS_CHANNELS,
            )  # fmt: skip
        elif program < third:
            sums_of_channels(
                program - second, parts, gate, grads, weight_grads, images, sizes,
                BIAS, PARTS, SUMS_IMAGES, GRADS_CHANNELS,
            )  # fmt: skip
        else:
            local_grads(program - third, products, local, local_weight_grads, sizes, BIAS, SPLITS, UNITS, COLS)
