"""Floating-point operations of the operator pair, for torch.utils.flop_counter.FlopCounterMode."""

import torch
from torch.utils.flop_counter import register_flop_formula

from . import operator  # noqa: F401 - defines them


def _parts(x: torch.Size, w_shrink: torch.Size) -> tuple[int, int]:
    """Of the projections to R (their input is made of x) and of those from R; a product and a sum are two."""
    n, c, height, width = x
    pixels, reduced = height * width, w_shrink[0]
    return 2 * n * reduced * (pixels * c + c), 2 * n * reduced * (pixels + c)


@register_flop_formula(torch.ops.gala_cuda.gala)
def _gala(x: torch.Size, w_shrink: torch.Size, *_, **__) -> int:
    return sum(_parts(x, w_shrink))


@register_flop_formula(torch.ops.gala_cuda.gala_backward)
def _gala_backward(grad_out: torch.Size, map_factor: torch.Size | None, x: torch.Size, *rest, **_) -> int:
    """As autograd's for the formulas: a product for each gradient that is asked for, and nothing is computed again."""
    need_input, need_weights = rest[-3:-1]
    shrink, expand = _parts(x, rest[0])
    return shrink * (need_input + need_weights) + expand * (1 + need_weights)


def _spatial(x: torch.Size, v_spatial: torch.Size) -> int:
    """Of the released code's convolution."""
    n, _, height, width = x
    return 2 * n * height * width * v_spatial.numel()


@register_flop_formula(torch.ops.gala_cuda.released)
def _released(x: torch.Size, *rest, **_) -> int:
    return sum(_parts(x, rest[0])) + _spatial(x, rest[10])


@register_flop_formula(torch.ops.gala_cuda.released_backward)
def _released_backward(grad_out: torch.Size, map_factor: torch.Size | None, x: torch.Size, *rest, **_) -> int:
    need_input, need_weights = rest[-3:-1]
    shrink, expand = _parts(x, rest[0])
    return shrink * (need_input + need_weights) + (expand + _spatial(x, rest[10])) * (1 + need_weights)
