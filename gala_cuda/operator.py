"""The operator pair ``gala_cuda::gala`` and ``gala_cuda::gala_backward``: schemas, fakes, autograd, autocast, vmap.

This is the only file that speaks torch.library. The operators are defined here, in Python, so that an install without a
compiled extension has them too; the backend is chosen inside, on real tensors, so that torch.compile never sees the
choice. Autograd is an ``autograd.Function`` under the Autograd key: calls that need no gradient save nothing. On a tiny
input and one core of an AMD EPYC (Zen 4, torch 2.14) a call of the layer takes 45 us without gradients (10 the private
C++ operator, 15 the way to it, 9 the checks, 11 the module), 61 us with, and 219 us with backward; the layer on the
reference 129 us without gradients and 434 us with backward (one run, not among the recorded results).
"""

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.library import Library, register_fake, register_vmap

from . import backends
from .backends import reference
from .backends.interface import BackwardCall, Weights, accumulation_dtype, in_place_or_copy, mask_words, stats_width

_WEIGHTS = (
    "Tensor w_shrink, Tensor w_expand, Tensor v_shrink, Tensor v_collapse, Tensor a, Tensor m, "
    "Tensor? b_w_shrink, Tensor? b_w_expand, Tensor? b_v_shrink, Tensor? b_v_collapse"
)
_N_WEIGHTS = len(Weights._fields)
_lib = Library("gala_cuda", "DEF")
_lib.define(
    f"gala(Tensor x, {_WEIGHTS}, Tensor? residual, str squash, bool return_map, bool save, str backend)"
    " -> (Tensor out, Tensor map, Tensor stats, Tensor relu_mask)"
)
_lib.define(
    f"gala_backward(Tensor grad_out, Tensor? map_factor, Tensor x, {_WEIGHTS}, Tensor? out, Tensor stats, "
    "Tensor relu_mask, str squash, bool need_input, bool need_weights, str backend)"
    f" -> ({', '.join(['Tensor'] * (_N_WEIGHTS + 2))})"
)
_gala = torch.ops.gala_cuda.gala.default
_gala_backward = torch.ops.gala_cuda.gala_backward.default


def _impl(x, *rest):
    w, (residual, squash, return_map, save, backend) = Weights(*rest[:_N_WEIGHTS]), rest[_N_WEIGHTS:]
    x = in_place_or_copy(x)
    if residual is not None:
        _expect("residual", residual, x.dtype)
        residual = in_place_or_copy(residual, like=x)
    return backends.select(x, backend).forward(x, w, residual, squash, return_map, save)


def _backward_impl(grad_out, map_factor, x, *rest):
    w, (out, stats, relu_mask, squash, need_input, need_weights, backend) = (
        Weights(*rest[:_N_WEIGHTS]),
        rest[_N_WEIGHTS:],
    )
    sums = accumulation_dtype(x.dtype)
    _expect("grad_out", grad_out, x.dtype)
    _expect("map_factor", map_factor, sums)
    _expect("out", out, x.dtype)
    _expect("stats", stats, sums)
    _expect("relu_mask", relu_mask, torch.int32)
    x = in_place_or_copy(x)
    grad_out = in_place_or_copy(grad_out, like=x)
    call = BackwardCall(grad_out, map_factor, x, w, out, stats, relu_mask, squash, need_input, need_weights)
    grad_x, dw, grad_residual = backends.select(x, backend).backward(call)
    grads = [None] * _N_WEIGHTS if dw is None else map(_as_parameter, dw, w)
    return tuple(x.new_empty(0) if t is None else t for t in (grad_x, *grads, grad_residual))


def _expect(name: str, t: Tensor | None, dtype: torch.dtype) -> None:
    """Kernels read memory as this dtype; a direct call of an operator has passed no other check."""
    if t is not None and t.dtype != dtype:
        raise TypeError(f"{name} is {t.dtype}; expected {dtype}")


def _as_parameter(grad: Tensor | None, parameter: Tensor | None) -> Tensor | None:
    """The gradient with its parameter's dtype and strides, as DistributedDataParallel wants it."""
    if grad is None or parameter is None:
        return None
    if grad.dtype == parameter.dtype and grad.stride() == parameter.stride():
        return grad
    return torch.empty_like(parameter).copy_(grad)


def _fake(x, *rest):
    w, (_, _, return_map, save, _) = Weights(*rest[:_N_WEIGHTS]), rest[_N_WEIGHTS:]
    n, c, height, width = x.shape
    reduced, pixels = w.w_shrink.shape[0], height * width
    dtype = accumulation_dtype(x.dtype)
    return (
        torch.empty_like(x),
        x.new_empty((n, height, width) if return_map else 0, dtype=dtype),
        x.new_empty((n, stats_width(pixels, c, reduced)) if save else 0, dtype=dtype),
        x.new_empty((n, pixels, mask_words(reduced)) if save else 0, dtype=torch.int32),
    )


def _fake_backward(grad_out, map_factor, x, *rest):
    w, (out, _, _, _, need_input, need_weights, _) = Weights(*rest[:_N_WEIGHTS]), rest[_N_WEIGHTS:]
    grads = ((x, need_input), *((t, need_weights) for t in w), (x, out is not None))
    return tuple(x.new_empty(0) if t is None or not needed else torch.empty_like(t) for t, needed in grads)


class _Gala(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, *rest):
        with torch._C._AutoDispatchBelowAutograd():
            residual, squash, return_map, _, backend = rest[_N_WEIGHTS:]
            out, attn_map, stats, relu_mask = _gala(x, *rest[:_N_WEIGHTS], residual, squash, return_map, True, backend)
        saved_out, saved_map = None if residual is None else out, attn_map if return_map else None
        ctx.save_for_backward(x, *rest[:_N_WEIGHTS], saved_out, saved_map, stats, relu_mask)
        ctx.mark_non_differentiable(stats, relu_mask)
        ctx.set_materialize_grads(False)
        ctx.options = squash, backend
        return out, attn_map, stats, relu_mask

    @staticmethod
    def backward(ctx, grad_out, grad_map, *_):
        x, *weights, out, attn_map, stats, relu_mask = ctx.saved_tensors
        squash, backend = ctx.options
        needs = ctx.needs_input_grad
        if attn_map is None:
            grad_map = None
        if grad_out is None and grad_map is None:
            return (None,) * len(needs)
        if grad_out is None:
            grad_out = torch.zeros_like(x)
        if torch.is_grad_enabled():  # a graph of the backward was asked for
            grads = _differentiable_backward(grad_out, grad_map, x, weights, out, squash, needs)
        else:
            factor = None if grad_map is None else torch.where(attn_map == 0, 0.0, grad_map / attn_map)
            need_weights = any(needs[1 : 1 + _N_WEIGHTS])
            grads = _gala_backward(
                grad_out, factor, x, *weights, out, stats, relu_mask, squash, needs[0], need_weights, backend
            )
        grads = (grad if needed else None for grad, needed in zip(grads, needs, strict=False))
        return (*grads, None, None, None, None)


def _differentiable_backward(grad_out, grad_map, x, weights, out, squash, needs):
    """The gradient through the reference, itself differentiable: double backward, to any order."""
    if out is not None:
        grad_out = torch.where(out <= 0, 0.0, grad_out)
    inputs = [x, *weights]
    wanted = [i for i, needed in enumerate(needs[: len(inputs)]) if needed]
    grads: list[Tensor | None] = [None] * len(inputs)
    if wanted:
        out_and_map = reference.apply(x, Weights(*weights), None, squash)
        count = 1 if grad_map is None else 2
        with torch._C._ExcludeDispatchKeyGuard(_AUTOCAST_KEYS):
            found = torch.autograd.grad(
                out_and_map[:count], [inputs[i] for i in wanted], (grad_out, grad_map)[:count], create_graph=True
            )
        for i, grad in zip(wanted, found, strict=True):
            grads[i] = grad
    return (*grads, grad_out if out is not None else None)


def call(x, *rest):
    """``gala_cuda::gala``, in eager mode without the dispatcher's first turn, which would only call ``_autograd``.

    Compilers and torch.jit.trace have to see the operator itself.
    """
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active() or torch.jit.is_tracing():
        return _gala(x, *rest)
    return _autograd(x, *rest)


def _autograd(x, *rest):
    tensors = (x, *rest[: _N_WEIGHTS + 1])
    forward_mode = forward_ad._current_level >= 0 and _has_tangent(tensors)
    if forward_mode or (torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)):
        # torch.func.grad always asks for a differentiable gradient: with forward mode, the reference's part
        if forward_mode or torch._C._are_functorch_transforms_active():
            return _composite(x, *rest)
        return _Gala.apply(x, *rest)
    with torch._C._AutoDispatchBelowAutograd():
        return _gala(x, *rest)


def _has_tangent(tensors) -> bool:
    return any(t is not None and forward_ad.unpack_dual(t).tangent is not None for t in tensors)


def _composite(x, *rest):
    w, (residual, squash, return_map, *_) = Weights(*rest[:_N_WEIGHTS]), rest[_N_WEIGHTS:]
    out, attn_map = reference.apply(x, w, residual, squash)
    return (
        out,
        attn_map if return_map else attn_map.new_empty(0),
        attn_map.new_empty(0),
        x.new_empty(0, dtype=torch.int32),
    )


def _autograd_backward(*args):
    if torch.is_grad_enabled() and any(isinstance(t, Tensor) and t.requires_grad for t in args):
        raise RuntimeError(
            "gala_cuda::gala_backward is not differentiable; differentiate gala_cuda::gala with create_graph=True"
        )
    with torch._C._AutoDispatchBelowAutograd():
        return _gala_backward(*args)


def _autocast(x, *rest):
    """Autocast leaves x and the weights as they are, out has x's dtype; the shortcut follows x."""
    *weights, residual, squash, return_map, save, backend = rest
    if residual is not None:
        residual = residual.to(x.dtype)
    with torch._C._ExcludeDispatchKeyGuard(_AUTOCAST_KEYS):
        return _gala(x, *weights, residual, squash, return_map, save, backend)


def _autocast_backward(*args):
    """A backward called inside the autocast region: the reference's products stay in full precision there too."""
    with torch._C._ExcludeDispatchKeyGuard(_AUTOCAST_KEYS):
        return _gala_backward(*args)


def _vmap(info, in_dims, x, *rest):
    """Images of a batch are independent: where only x (and the shortcut) are batched, their batch joins N."""
    tensors, options = (x, *rest[: _N_WEIGHTS + 1]), rest[_N_WEIGHTS + 1 :]
    weights_batched = any(d is not None for d in in_dims[1 : 1 + _N_WEIGHTS])
    if weights_batched or in_dims[0] is None:
        return _vmap_loop(_gala, info, in_dims, x, *rest)
    size = info.batch_size
    x = x.movedim(in_dims[0], 0)
    residual = tensors[-1]
    if residual is not None:
        dim = in_dims[1 + _N_WEIGHTS]
        residual = residual.expand(size, *residual.shape) if dim is None else residual.movedim(dim, 0)
        residual = residual.flatten(0, 1)
    results = _gala(x.flatten(0, 1), *rest[:_N_WEIGHTS], residual, *options)
    split = tuple(t.unflatten(0, (size, -1)) if t.dim() > 1 else t.expand(size, 0) for t in results)
    return split, (0, 0, 0, 0)


def _vmap_loop(op, info, in_dims, *args):
    def pick(i):
        return (a if d is None else a.select(d, i) for a, d in zip(args, in_dims, strict=True))

    results = [op(*pick(i)) for i in range(info.batch_size)]
    return tuple(torch.stack(parts) for parts in zip(*results, strict=True)), (0,) * len(results[0])


def _vmap_backward(info, in_dims, *args):
    return _vmap_loop(_gala_backward, info, in_dims, *args)


_AUTOCAST_KEYS = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastCPU) | torch._C.DispatchKeySet(
    torch._C.DispatchKey.AutocastCUDA
)
_lib.impl("gala", _impl, "CompositeExplicitAutograd")
_lib.impl("gala_backward", _backward_impl, "CompositeExplicitAutograd")
_lib.impl("gala", _autograd, "Autograd")
_lib.impl("gala_backward", _autograd_backward, "Autograd")
for _key in ("AutocastCPU", "AutocastCUDA"):
    _lib.impl("gala", _autocast, _key)
    _lib.impl("gala_backward", _autocast_backward, _key)
register_fake("gala_cuda::gala", _fake, lib=_lib)
register_fake("gala_cuda::gala_backward", _fake_backward, lib=_lib)
register_vmap("gala_cuda::gala", _vmap, lib=_lib)
register_vmap("gala_cuda::gala_backward", _vmap_backward, lib=_lib)
