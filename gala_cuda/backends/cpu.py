"""The fused CPU stages of ``csrc/cpu``, called through the private operators ``gala_native::*``."""

import torch
from torch import Tensor

from .. import native
from .contract import DTYPES, Weights, accumulation_dtype

if native.module is not None:
    _forward = torch.ops.gala_native.forward_cpu.default
    _backward = torch.ops.gala_native.backward_cpu.default


def why_not(x: Tensor) -> str | None:
    """None where the compiled CPU kernels can run on ``x``, else the reason."""
    if native.module is None:
        return native.why_not
    if x.device.type != "cpu":
        return f"x is on {x.device}, expected cpu"
    if x.dtype not in DTYPES:
        return f"x is {x.dtype}, expected one of {', '.join(map(str, DTYPES))}"
    return None


def forward(
    x: Tensor, w: Weights, residual: Tensor | None, squash: str, return_map: bool, save: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(out, map or empty, stats or empty, bits or empty), as laid out in ``contract``."""
    return _forward(x, *_plain(w, x.dtype), residual, squash == "tanh", return_map, save)


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
