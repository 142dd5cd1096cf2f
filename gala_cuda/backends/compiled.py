"""The private operators ``gala_native::*`` of the compiled extension, which the backends cpu and cuda call."""

import torch
from torch import Tensor

from .. import native
from .interface import BackwardCall, Gradients, Weights, accumulation_dtype

BUILD: dict = {}  # what the extension was built with
if native.module is not None:
    BUILD = native.module.build_info()
    _forward = torch.ops.gala_native.forward.default
    _backward = torch.ops.gala_native.backward.default


def forward(
    x: Tensor, w: Weights, residual: Tensor | None, squash: str, return_map: bool, save: bool, tf32: bool = False
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(out, map or empty, stats or empty, relu_mask or empty); ``tf32`` is for products of float32 on a GPU."""
    return _forward(x, *_plain(w, x.dtype), residual, squash == "tanh", return_map, save, tf32)


def backward(call: BackwardCall, tf32: bool = False) -> Gradients:
    """(d x, d weights, d residual) from the saved tensors, as ``reference.backward``."""
    factor = None if call.map_factor is None else call.map_factor.contiguous()
    grad_x, *grads, grad_residual = _backward(
        call.grad_out,
        factor,
        call.x,
        *_plain(call.w, call.x.dtype),
        call.out,
        call.stats,
        call.relu_mask,
        call.squash == "tanh",
        call.need_input,
        call.need_weights,
        tf32,
    )
    return (
        grad_x if call.need_input else None,
        Weights(*grads) if call.need_weights else None,
        None if call.out is None else grad_residual,
    )


def _plain(w: Weights, dtype: torch.dtype) -> list[Tensor | None]:
    """The weights contiguous and in the accumulation dtype; they are small beside x."""
    dtype = accumulation_dtype(dtype)
    return [t if t is None or (t.dtype == dtype and t.is_contiguous()) else t.to(dtype).contiguous() for t in w]
