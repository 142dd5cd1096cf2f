"""The stages of the released code's block on the backend "cpu": `csrc/cpu/released.cpp`."""

import torch
from torch import Tensor

from .interface import Weights
from .squash import Squash
from .stages import BackwardCall, Gates, ScaleGrads

_ops = torch.ops.gala_native
_SQUASH = int(Squash.SIGMOID)


def gather(x: Tensor, w: Weights) -> tuple[Tensor, Tensor]:
    return _ops.released_gather(x, w.v_shrink, w.b_v_shrink)


def scale(
    x: Tensor, residual: Tensor | None, seen: Tensor, w: Weights, gates: Gates, stats: Tensor, return_map: bool
) -> tuple[Tensor, Tensor | None]:
    return _ops.released_scale(x, residual, seen, w.v_collapse, w.b_v_collapse, *gates, stats, _SQUASH, return_map)


def scale_backward(call: BackwardCall, gates: Gates, grad_x: Tensor | None) -> ScaleGrads:
    """grad_x has the gradient of x A times A then, where it is of the accumulation dtype."""
    factor = None if call.map_factor is None else call.map_factor.contiguous()
    seen, alpha, beta, residual, v_collapse, b_v_collapse = _ops.released_scale_backward(
        call.grad_out, factor, call.x, call.out, call.seen, call.w.v_collapse, *gates, call.stats, grad_x, _SQUASH,
        call.need_weights,
    )  # fmt: skip
    w = {"v_collapse": v_collapse, "b_v_collapse": b_v_collapse} if call.need_weights else {}
    return ScaleGrads(seen, alpha, beta, residual, w)


def gather_backward(
    call: BackwardCall, gates: Gates, grad_sum: Tensor, grad_hidden: Tensor, dp: Tensor, grad_x: Tensor | None
) -> dict[str, Tensor]:
    v_shrink, b_v_shrink = _ops.released_gather_backward(
        grad_sum, call.x, call.hidden, grad_hidden, call.w.v_shrink, *gates, dp, call.stats, grad_x, _SQUASH,
        call.need_weights,
    )  # fmt: skip
    return {"v_shrink": v_shrink, "b_v_shrink": b_v_shrink} if call.need_weights else {}
