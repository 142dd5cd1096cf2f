"""The operator pair `gala_cuda::gala` and `gala_cuda::gala_backward`: schemas, fakes, autograd, autocast, vmap.

This is the only file that speaks torch.library. The operators are defined here, in Python, so that an install without a
compiled extension has them too; the backend is chosen inside, on real tensors, so that torch.compile never sees the
choice. Autograd is an `autograd.Function` under the Autograd key: calls that need no gradient save nothing.

Tensors that were not asked for are None in the backends and empty tensors in what the operators return:
torch.jit.trace refuses operators that return `Tensor?`, ahead-of-time compilation refuses undefined tensors.
"""

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.library import Library, register_fake, register_vmap

from . import backends
from .backends import reference
from .backends.dtypes import accumulation_dtype
from .backends.interface import BackwardCall, ForwardCall, Weights
from .backends.layout import in_place_or_copy
from .backends.saved import mask_words, stats_width
from .backends.squash import Squash

_WEIGHTS = (
    "Tensor w_shrink, Tensor w_expand, Tensor v_shrink, Tensor v_collapse, Tensor a, Tensor m, "
    "Tensor? b_w_shrink, Tensor? b_w_expand, Tensor? b_v_shrink, Tensor? b_v_collapse"
)
_N_WEIGHTS = len(Weights._fields)
_N_TENSORS = _N_WEIGHTS + 2  # x, the weights, the residual: the first arguments of the forward operator
_lib = Library("gala_cuda", "DEF")
_lib.define(
    f"gala(Tensor x, {_WEIGHTS}, Tensor? residual, int squash, bool return_map, bool save, str backend)"
    " -> (Tensor out, Tensor map, Tensor stats, Tensor relu_mask)"
)
_lib.define(
    f"gala_backward(Tensor grad_out, Tensor? map_factor, Tensor x, {_WEIGHTS}, Tensor? out, Tensor stats, "
    "Tensor relu_mask, int squash, bool need_input, bool need_weights, str backend)"
    f" -> ({', '.join(['Tensor'] * _N_TENSORS)})"
)
_gala = torch.ops.gala_cuda.gala.default
_gala_backward = torch.ops.gala_cuda.gala_backward.default


def _forward_call(x, *rest) -> tuple[ForwardCall, str]:
    """(call, backend) from the arguments of `gala_cuda::gala`."""
    residual, squash, return_map, save, backend = rest[_N_WEIGHTS:]
    w = Weights._make(rest[:_N_WEIGHTS])
    return ForwardCall(x, w, residual, Squash(squash), return_map, save), backend


def _backward_call(grad_out, map_factor, x, *rest) -> tuple[BackwardCall, str]:
    """(call, backend) from the arguments of `gala_cuda::gala_backward`."""
    out, stats, relu_mask, squash, need_input, need_weights, backend = rest[_N_WEIGHTS:]
    w = Weights._make(rest[:_N_WEIGHTS])
    saved = out, stats, relu_mask, Squash(squash)
    return BackwardCall(grad_out, map_factor, x, w, *saved, need_input, need_weights), backend


def _impl(x, *rest):
    x = in_place_or_copy(x)
    call, backend = _forward_call(x, *rest)
    if call.residual is not None:
        _expect("residual", call.residual, x.dtype)
        call = call._replace(residual=in_place_or_copy(call.residual, like=x))
    outputs = backends.select(x, backend).forward(call)
    return tuple(x.new_empty(0) if t is None else t for t in outputs)


def _backward_impl(grad_out, map_factor, x, *rest):
    x = in_place_or_copy(x)
    call, backend = _backward_call(in_place_or_copy(grad_out, like=x), map_factor, x, *rest)
    sums = accumulation_dtype(x.dtype)
    _expect("grad_out", grad_out, x.dtype)
    _expect("map_factor", map_factor, sums)
    _expect("out", call.out, x.dtype)
    _expect("stats", call.stats, sums)
    _expect("relu_mask", call.relu_mask, torch.int32)
    grads = backends.select(x, backend).backward(call)
    of_weights = [None] * _N_WEIGHTS if grads.w is None else map(_as_parameter, grads.w, call.w)
    return tuple(x.new_empty(0) if t is None else t for t in (grads.x, *of_weights, grads.residual))


def _expect(name: str, t: Tensor | None, dtype: torch.dtype) -> None:
    """Kernels read memory as this dtype; a direct call of an operator has passed no other check."""
    if t is not None and t.dtype != dtype:
        raise TypeError(f"{name} is {t.dtype}; expected {dtype}")


def _as_parameter(grad, parameter):
    """The gradient with its parameter's dtype and strides, as DistributedDataParallel wants it."""
    if grad is None or (grad.dtype == parameter.dtype and grad.stride() == parameter.stride()):
        return grad
    return torch.empty_like(parameter).copy_(grad)


def _fake(*args):
    call, _ = _forward_call(*args)
    x, (n, c, height, width) = call.x, call.x.shape
    reduced, pixels = call.w.w_shrink.shape[0], height * width
    sums = accumulation_dtype(x.dtype)
    return (
        torch.empty_like(x),
        x.new_empty((n, height, width), dtype=sums) if call.return_map else x.new_empty(0),
        x.new_empty((n, stats_width(pixels, c, reduced)), dtype=sums) if call.save else x.new_empty(0),
        x.new_empty((n, pixels, mask_words(reduced)), dtype=torch.int32) if call.save else x.new_empty(0),
    )


def _fake_backward(*args):
    call, _ = _backward_call(*args)
    x = call.x
    grads = ((x, call.need_input), *((t, call.need_weights) for t in call.w), (x, call.out is not None))
    return tuple(x.new_empty(0) if t is None or not needed else torch.empty_like(t) for t, needed in grads)


class _Gala(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, *rest):
        *weights, residual, squash, return_map, backend = rest
        with torch._C._AutoDispatchBelowAutograd():
            out, attn_map, stats, relu_mask = _gala(x, *weights, residual, squash, return_map, True, backend)
        saved_out, saved_map = None if residual is None else out, attn_map if return_map else None
        ctx.save_for_backward(x, *weights, saved_out, saved_map, stats, relu_mask)
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
            grads = _differentiable_backward(grad_out, grad_map, x, weights, out, Squash(squash), needs)
        else:
            factor = None if grad_map is None else torch.where(attn_map == 0, 0.0, grad_map / attn_map)
            need_weights = any(needs[1 : 1 + _N_WEIGHTS])
            grads = _gala_backward(
                grad_out, factor, x, *weights, out, stats, relu_mask, squash, needs[0], need_weights, backend
            )
        grads = (grad if needed else None for grad, needed in zip(grads, needs, strict=False))
        return (*grads, None, None, None)


def _differentiable_backward(grad_out, grad_map, x, weights, out, squash, needs):
    """The gradient through the reference, itself differentiable: double backward, to any order."""
    if out is not None:
        grad_out = torch.where(out <= 0, 0.0, grad_out)
    inputs = [x, *weights]
    wanted = [i for i, needed in enumerate(needs[: len(inputs)]) if needed]
    grads: list[Tensor | None] = [None] * len(inputs)
    if wanted:
        out_and_map = reference.apply(x, Weights._make(weights), None, squash)
        count = 1 if grad_map is None else 2
        with torch._C._ExcludeDispatchKeyGuard(_AUTOCAST_KEYS):
            found = torch.autograd.grad(
                out_and_map[:count], [inputs[i] for i in wanted], (grad_out, grad_map)[:count], create_graph=True
            )
        for i, grad in zip(wanted, found, strict=True):
            grads[i] = grad
    return (*grads, grad_out if out is not None else None)


def gala(*args):
    """`gala_cuda::gala`, in eager mode without the dispatcher's first turn, which would only call `_autograd`.

    Compilers and torch.jit.trace have to see the operator itself.
    """
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active() or torch.jit.is_tracing():
        return _gala(*args)
    return _autograd(*args)


def _autograd(*args):
    tensors, (squash, return_map, _, backend) = args[:_N_TENSORS], args[_N_TENSORS:]
    forward_mode = forward_ad._current_level >= 0 and _has_tangent(tensors)
    if forward_mode or (torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)):
        # torch.func.grad always asks for a differentiable gradient: with forward mode, the reference's part
        if forward_mode or torch._C._are_functorch_transforms_active():
            return _composite(*args)
        return _Gala.apply(*tensors, squash, return_map, backend)
    with torch._C._AutoDispatchBelowAutograd():
        return _gala(*args)


def _has_tangent(tensors) -> bool:
    return any(t is not None and forward_ad.unpack_dual(t).tangent is not None for t in tensors)


def _composite(*args):
    call, _ = _forward_call(*args)
    out, attn_map = reference.apply(call.x, call.w, call.residual, call.squash)
    return out, attn_map if call.return_map else out.new_empty(0), out.new_empty(0), out.new_empty(0)


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


def _vmap(info, in_dims, *args):
    """Images of a batch are independent: where only x (and the shortcut) are batched, their batch joins N."""
    x_dim, *weights_dims, residual_dim = in_dims[:_N_TENSORS]
    if x_dim is None or any(d is not None for d in weights_dims):
        return _vmap_loop(_gala, info, in_dims, *args)
    (x, *weights, residual), options = args[:_N_TENSORS], args[_N_TENSORS:]
    size = info.batch_size
    x = x.movedim(x_dim, 0).flatten(0, 1)
    if residual is not None:
        shared = residual_dim is None
        residual = residual.expand(size, *residual.shape) if shared else residual.movedim(residual_dim, 0)
        residual = residual.flatten(0, 1)
    results = _gala(x, *weights, residual, *options)
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
