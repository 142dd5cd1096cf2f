"""The private operators ``gala_native::*`` of the compiled extension, which the backends cpu and cuda call."""

import torch
from torch import Tensor

from .. import native
from .contract import Weights, accumulation_dtype

BUILD: dict = {}  # what the extension was built with
if native.module is not None:
    BUILD = native.module.build_info()
    _forward = torch.ops.gala_native.forward.default
    _backward = torch.ops.gala_native.backward.default


def forward(
    x: Tensor, w: Weights, residual: Tensor | None, squash: str, return_map: bool, save: bool, tf32: bool = False
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(out, map or empty, stats or empty, bits or empty), on x's device; ``tf32`` is for products of float32 there."""
    return _forward(x, *_plain(w, x.dtype), residual, squash == "tanh", return_map, save, tf32)


def backward(
    grad_out: Tensor,
    map_factor: Tensor | None,
    x: Tensor,
    w: Weights,
    out: Tensor | None,
    stats: Tensor,
    bits: Tensor,
    squash: str,
    need_input: bool,
    need_weights: bool,
    tf32: bool = False,
) -> tuple[Tensor | None, Weights | None, Tensor | None]:
    """(d x, d weights, d residual) from the saved tensors, as ``reference.backward``."""
    if map_factor is not None:
        map_factor = map_factor.contiguous()
    dx, *grads, d_residual = _backward(
        grad_out,
        map_factor,
        x,
        *_plain(w, x.dtype),
        out,
        stats,
        bits,
        squash == "tanh",
        need_input,
        need_weights,
        tf32,
    )
    return (
        dx if need_input else None,
        Weights(*grads) if need_weights else None,
        None if out is None else d_residual,
    )


def _plain(w: Weights, dtype: torch.dtype) -> list[Tensor | None]:
    """The weights contiguous and in the accumulation dtype; they are small beside x."""
    dtype = accumulation_dtype(dtype)
    return [t if t is None or (t.dtype == dtype and t.is_contiguous()) else t.to(dtype).contiguous() for t in w]
