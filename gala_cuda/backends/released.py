"""The block of the authors' released code: stages that a backend fuses, and between them a convolution of torch's.

`stages.py` says what the backends cpu and triton have for it. The gate is so small that torch's operations do it.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from . import cpu_stages, reference, why_not
from .dtypes import HALVES, accumulation_dtype
from .interface import Spatial, Weights, plain_weights
from .saved import split_stats, stats_width
from .stages import BackwardCall, Gates, Stages, rows_dtype

NAMES = ("reference", "cpu", "triton")
# The backend of each type of device; elsewhere the reference: no run on a GPU shows the Triton form right and faster.
AUTOMATIC = {"cpu": "cpu"}


def choose(x: Tensor, name: str) -> str:
    """The backend for `x` by name, or where `name` is empty the fused one that is known to gain, else the reference.

    Raises RuntimeError where the backend asked for cannot run on `x`.
    """
    if not name:
        fused = AUTOMATIC.get(x.device.type, "reference")
        return "reference" if why_not(fused, x) else fused
    reason = why_not(name, x) if name in NAMES else "it has no kernels for the released code's block"
    if reason:
        raise RuntimeError(f"backend {name!r} cannot run: {reason}")
    return name


def forward(
    x: Tensor, w: Weights, spatial: Spatial, residual: Tensor | None, return_map: bool, backend: str
) -> tuple[Tensor, Tensor | None, Tensor, Tensor, Tensor]:
    """(out, map, stats, hidden, seen)."""
    if not x.numel():
        return _forward_of_none(x, len(w.v_collapse), return_map)
    stages, w = _stages(backend), plain_weights(w, x.dtype)
    stats, hidden = stages.gather(x, w)
    _, p, z = split_stats(stats, x.shape[1], len(w.v_collapse))
    hidden_z, g = reference.gate(p, w)
    z.copy_(hidden_z)
    hidden_map, weight, bias = _as_factors(x, _feature_map(hidden), *spatial)
    seen = _rows(F.conv2d(hidden_map, weight, bias, padding="same"), x)
    out, attn_map = stages.scale(x, residual, seen, w, _gates(torch.relu(g), w), stats, return_map)
    return out, attn_map, stats, hidden, seen


def backward(call: BackwardCall, backend: str) -> tuple[Tensor | None, tuple[Tensor | None, ...] | None, Tensor | None]:
    """The gradients of x, of the weights with those of the convolution, and of the residual."""
    x = call.x
    if not x.numel():
        zeros = (None if t is None else torch.zeros_like(t) for t in (*call.w, *call.spatial))
        return torch.empty_like(x), tuple(zeros), torch.empty_like(x)
    stages = _stages(backend)
    w = plain_weights(call.w, x.dtype)
    call = call._replace(w=w)
    _, p, z = split_stats(call.stats, x.shape[1], len(w.v_collapse))
    g = torch.relu(F.linear(torch.relu(z), w.w_expand, w.b_w_expand))
    gates = _gates(g, w)
    grad_x = torch.empty_like(x) if call.need_input else None
    scaled = stages.scale_backward(call, gates, grad_x)
    dg, dz = reference.gate_backward(w, z, scaled.alpha, scaled.beta, g)
    size = call.spatial.weight.shape[-1]
    grad_hidden, *of_spatial = torch.ops.aten.convolution_backward(
        *_as_factors(x, _feature_map(scaled.seen), _feature_map(call.hidden), call.spatial.weight),
        call.spatial.bias.shape, [1, 1], [size // 2] * 2, [1, 1], False, [0, 0], 1,
        [True, call.need_weights, call.need_weights],
    )  # fmt: skip
    grad_sum = call.grad_out if scaled.residual is None else scaled.residual
    local = stages.gather_backward(call, gates, grad_sum, _rows(grad_hidden, x), dz @ w.w_shrink, grad_x)
    if not call.need_weights:
        return grad_x, None, scaled.residual
    of_gate = reference.gate_weight_grads(w, p, z, g, scaled.alpha, scaled.beta, dg, dz)
    return grad_x, (*Weights(**of_gate, **scaled.w, **local), *of_spatial), scaled.residual


def _forward_of_none(x: Tensor, reduced: int, return_map: bool) -> tuple[Tensor, Tensor | None, Tensor, Tensor, Tensor]:
    n, c, height, width = x.shape
    sums = accumulation_dtype(x.dtype)
    attn_map = x.new_empty((n, height, width), dtype=sums) if return_map else None
    stats = x.new_empty((n, stats_width(height * width, c, reduced)), dtype=sums)
    hidden, seen = (x.new_empty((n, height, width, reduced), dtype=rows_dtype(x)) for _ in range(2))
    return torch.empty_like(x), attn_map, stats, hidden, seen


def _stages(backend: str) -> Stages:
    if backend == "triton":
        from .triton import released  # which imports Triton

        return released
    return cpu_stages


def _gates(g: Tensor, w: Weights) -> Gates:
    return Gates(w.a * g, w.a + w.m * g)


def _as_factors(x: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
    """What the convolution multiplies: in x's dtype, but on a CPU without instructions for that in float32.

    Without them the library's convolution in 16 bits takes several times as long, its gradient in float16 any time.
    """
    slow = x.dtype in HALVES and x.device.type == "cpu"
    if slow and not (x.dtype == torch.bfloat16 and torch.cpu._is_avx512_bf16_supported()):
        return tuple(t.float() for t in tensors)
    return tuple(t.to(x.dtype) for t in tensors)


def _rows(t: Tensor, x: Tensor) -> Tensor:
    """[N, R, H, W] as [N, H, W, R], contiguous; a view where the library gave channels_last."""
    return t.to(rows_dtype(x)).permute(0, 2, 3, 1).contiguous()


def _feature_map(rows: Tensor) -> Tensor:
    """[N, H, W, R] as [N, R, H, W], in channels_last."""
    return rows.permute(0, 3, 1, 2)
