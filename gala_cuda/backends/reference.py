"""The paper's formulas in plain PyTorch: the specification of every other backend.

Linsley, Shiebler, Eberhardt, Serre, "Learning what and where to attend", ICLR 2019, section 3::

    p = mean over H, W of x                       g = W_expand . relu(W_shrink . p)
    S = V_collapse * relu(V_shrink * x)           (* is a 1x1 convolution)
    A = squash(a (g + S) + m (g . S))             out = x . A

`attention` and `apply` are differentiable to any order, export and decompose, and are the oracle of the tests.
`forward` and `backward` are the same maths cut into the stages of the fused kernels (gather, gate, scale), with the
closed-form gradient and its saved set (s, ReLU mask, p, z), so that each kernel has a readable twin. Conditions are
written as `<= 0` because autograd's ReLU lets the gradient of a NaN through.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from .dtypes import accumulation_dtype
from .interface import BackwardCall, ForwardCall, Gradients, Outputs, Spatial, Weights, autocast_on
from .saved import BITS_PER_WORD, mask_words, split_stats
from .squash import Squash


def why_not(x: Tensor) -> str | None:
    """The reference runs everywhere."""
    return None


def attention(x: Tensor, w: Weights, squash: Squash) -> Tensor:
    """A [N, C, H, W] in the accumulation dtype, also under autocast, from x [N, C, H, W]."""
    if autocast_on(x):
        with torch.autocast(x.device.type, enabled=False):
            return attention(x, w, squash)
    u, w = _accumulate(x, w)
    _, g = gate(u.mean((2, 3)), w)
    _, s = _local(u, w)
    return _attend(g, s, w, squash)


def apply(x: Tensor, w: Weights, residual: Tensor | None, squash: Squash) -> tuple[Tensor, Tensor]:
    """(out [N, C, H, W] in x's dtype, map [N, H, W] = L2 norm of A over channels); autograd follows."""
    u = x.to(accumulation_dtype(x.dtype))  # once, so that the gradient's two parts meet before they are rounded
    return attend(u, attention(u, w, squash), residual, x.dtype)


def attend(
    x: Tensor, attended: Tensor, residual: Tensor | None, dtype: torch.dtype | None = None
) -> tuple[Tensor, Tensor]:
    """As `apply`, with the attention A [N, C, H, W] in the accumulation dtype; out in `dtype`, else in that of x."""
    out = x.to(attended.dtype) * attended
    if residual is not None:
        out = torch.relu(out + residual)
    return out.to(dtype or x.dtype), _norm(attended)


def released_attention(x: Tensor, w: Weights, spatial: Spatial) -> Tensor:
    """A [N, C, H, W] as the authors' released code has it, in the accumulation dtype, from x [N, C, H, W].

    Beside the sigmoid there is a ReLU on g, and in the local path a further convolution with its ReLU.
    """
    if autocast_on(x):
        with torch.autocast(x.device.type, enabled=False):
            return released_attention(x, w, spatial)
    u, w = _accumulate(x, w)
    _, g = gate(u.mean((2, 3)), w)
    hidden = torch.relu(F.conv2d(u, w.v_shrink[:, :, None, None], w.b_v_shrink))  # [N, R, H, W]
    weight, bias = (t.to(u.dtype) for t in spatial)
    hidden = torch.relu(F.conv2d(hidden, weight, bias, padding="same"))
    s = F.conv2d(hidden, w.v_collapse[None, :, None, None], w.b_v_collapse).squeeze(1)  # [N, H, W]
    return _attend(torch.relu(g), s, w, Squash.SIGMOID)


def released_apply(x: Tensor, w: Weights, spatial: Spatial, residual: Tensor | None) -> tuple[Tensor, Tensor]:
    """As `apply`, with the attention of the authors' released code."""
    u = x.to(accumulation_dtype(x.dtype))
    return attend(u, released_attention(u, w, spatial), residual, x.dtype)


def forward(call: ForwardCall) -> Outputs:
    """The stages gather, gate and scale in turn."""
    x, w, residual, squash, return_map, save = call
    u, w = _accumulate(x, w)
    p = u.mean((2, 3))
    z, g = gate(p, w)
    h, s = _local(u, w)
    attended = _attend(g, s, w, squash)
    out = torch.empty_like(x)
    if residual is None:
        out.copy_(u * attended)
    else:
        out.copy_(torch.relu(u * attended + residual))
    attn_map = _norm(attended) if return_map else None
    if not save:
        return Outputs(out, attn_map, None, None)
    return Outputs(out, attn_map, torch.cat([s.flatten(1), p, z], dim=1), _pack_mask(~(h <= 0)))


def backward(call: BackwardCall) -> Gradients:
    """The gradients in closed form, from the saved tensors: the stages scale, gate and gather in turn."""
    grad_out, map_factor, x, w, out, stats, relu_mask, squash, need_input, need_weights = call
    u, v = _accumulate(x, w)
    n, c = x.shape[:2]
    pixels = x.shape[2] * x.shape[3]
    s, p, z = split_stats(stats, c, v.w_shrink.shape[0])
    g = F.linear(torch.relu(z), v.w_expand, v.b_w_expand)
    hidden_on = _unpack_mask(relu_mask, v.w_shrink.shape[0])  # [N, HW, R]

    grad = grad_out.to(u.dtype)
    if out is not None:
        grad = torch.where(out <= 0, 0.0, grad)
    rows, grad_rows = u.flatten(2).transpose(1, 2), grad.flatten(2).transpose(1, 2)  # [N, HW, C]
    alpha, beta = v.a * g, v.a + v.m * g  # [N, C]
    attended = _squash(alpha[:, None] + beta[:, None] * s[..., None], squash)  # [N, HW, C]

    e = grad_rows * rows
    if map_factor is not None:
        e = e + map_factor.reshape(n, pixels, 1) * attended
    e = e * _squash_derivative(attended, squash)
    d_alpha, d_beta = e.sum(1), (e * s[..., None]).sum(1)  # [N, C]
    ds = (e * beta[:, None]).sum(2)  # [N, HW]
    dg, dz = gate_backward(v, z, d_alpha, d_beta)
    dsb = torch.where(hidden_on, ds[..., None], 0.0)  # [N, HW, R]

    grad_x = grad_w = None
    if need_input:
        shrink = v.v_collapse[:, None] * v.v_shrink
        d_rows = grad_rows * attended + (dz @ v.w_shrink)[:, None] / pixels + dsb @ shrink
        grad_x = torch.empty_like(x).copy_(d_rows.transpose(1, 2).reshape(x.shape))
    if need_weights:
        local = _local_weight_grads(v, rows, ds, dsb)
        grad_w = Weights(**gate_weight_grads(v, p, z, g, d_alpha, d_beta, dg, dz), **local)
    grad_residual = None if out is None else torch.empty_like(x).copy_(grad)
    return Gradients(grad_x, grad_w, grad_residual)


def gate_backward(
    v: Weights, z: Tensor, d_alpha: Tensor, d_beta: Tensor, g: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """dg [N, C] and dz [N, R], before the ReLUs, from d alpha and d beta [N, C]; with g where that has a ReLU."""
    dg = v.a * d_alpha + v.m * d_beta
    if g is not None:
        dg = torch.where(g <= 0, 0.0, dg)
    return dg, torch.where(z <= 0, 0.0, dg @ v.w_expand)


def gate_weight_grads(
    v: Weights, p: Tensor, z: Tensor, g: Tensor, d_alpha: Tensor, d_beta: Tensor, dg: Tensor, dz: Tensor
) -> dict[str, Tensor]:
    """By name."""
    grads = {
        "w_shrink": dz.T @ p,
        "w_expand": dg.T @ torch.relu(z),
        "a": (g * d_alpha + d_beta).sum(0),
        "m": (g * d_beta).sum(0),
    }
    if v.b_w_shrink is not None:
        grads |= {"b_w_shrink": dz.sum(0), "b_w_expand": dg.sum(0)}
    return grads


def _local_weight_grads(v: Weights, rows: Tensor, ds: Tensor, dsb: Tensor) -> dict[str, Tensor]:
    """By name, from rows [N, HW, C], ds [N, HW] and ds where a hidden unit was on, dsb [N, HW, R]."""
    t = torch.einsum("npr,npc->rc", dsb, rows)
    grads = {"v_shrink": v.v_collapse[:, None] * t, "v_collapse": (v.v_shrink * t).sum(1)}
    if v.b_v_shrink is not None:
        counts = dsb.sum((0, 1))  # [R]
        grads["v_collapse"] = grads["v_collapse"] + v.b_v_shrink * counts
        grads["b_v_shrink"] = v.v_collapse * counts
    if v.b_v_collapse is not None:
        grads["b_v_collapse"] = ds.sum().reshape(1)
    return grads


def _accumulate(x: Tensor, w: Weights) -> tuple[Tensor, Weights]:
    dtype = accumulation_dtype(x.dtype)
    return x.to(dtype), Weights._make(None if t is None else t.to(dtype) for t in w)


def gate(p: Tensor, w: Weights) -> tuple[Tensor, Tensor]:
    """z [N, R] and g [N, C] from p [N, C]."""
    z = F.linear(p, w.w_shrink, w.b_w_shrink)  # [N, R]
    return z, F.linear(torch.relu(z), w.w_expand, w.b_w_expand)  # [N, C]


def _local(u: Tensor, w: Weights) -> tuple[Tensor, Tensor]:
    h = F.conv2d(u, w.v_shrink[:, :, None, None], w.b_v_shrink)  # [N, R, H, W]
    s = F.conv2d(torch.relu(h), w.v_collapse[None, :, None, None], w.b_v_collapse)
    return h, s.squeeze(1)  # [N, H, W]


def _norm(attended: Tensor) -> Tensor:
    """L2 norm over channels whose derivatives of every order are 0, not NaN, where the attention is 0."""
    squares = (attended * attended).sum(1)
    return torch.where(squares == 0, 0.0, torch.where(squares == 0, 1.0, squares).sqrt())


def _attend(g: Tensor, s: Tensor, w: Weights, squash: Squash) -> Tensor:
    """A [N, C, H, W] from g [N, C] and s [N, H, W]."""
    g, s = g[:, :, None, None], s[:, None]
    a, m = w.a[:, None, None], w.m[:, None, None]
    return _squash(a * (g + s) + m * (g * s), squash)


def _squash(total: Tensor, squash: Squash) -> Tensor:
    match squash:
        case Squash.TANH:
            return torch.tanh(total)
        case Squash.SIGMOID:
            return torch.sigmoid(total)
    raise NotImplementedError(f"the reference has no {squash!r}")


def _squash_derivative(attended: Tensor, squash: Squash) -> Tensor:
    """Of the squash by its argument, from its value."""
    match squash:
        case Squash.TANH:
            return 1 - attended**2
        case Squash.SIGMOID:
            return attended * (1 - attended)
    raise NotImplementedError(f"the reference has no derivative of {squash!r}")


def _pack_mask(on: Tensor) -> Tensor:
    """[N, R, H, W] of booleans to [N, HW, words] of int32, bit r % 32 of word r // 32 for hidden unit r."""
    reduced = on.shape[1]
    rows = F.pad(on.flatten(2).transpose(1, 2), (0, mask_words(reduced) * BITS_PER_WORD - reduced))
    powers = 2 ** torch.arange(BITS_PER_WORD, device=on.device, dtype=torch.int64)
    words = (rows.unflatten(2, (-1, BITS_PER_WORD)) * powers).sum(3)
    return torch.where(words >= 2**31, words - 2**32, words).to(torch.int32)


def _unpack_mask(relu_mask: Tensor, reduced: int) -> Tensor:
    """The inverse: [N, HW, words] of int32 to [N, HW, R] of booleans."""
    shifts = torch.arange(BITS_PER_WORD, device=relu_mask.device, dtype=torch.int32)
    return ((relu_mask[..., None] >> shifts) & 1).flatten(2)[..., :reduced].bool()
