"""A pair of operators, forward and backward, of one kind of block: schemas, fakes, autograd, autocast, vmap.

This is the only file that speaks torch.library. The operators are defined here, in Python, so that an install without a
compiled extension has them too. Autograd is an `autograd.Function` under the Autograd key: calls that need no gradient
save nothing.

Tensors that were not asked for are None in the backends and empty tensors in what the operators return:
torch.jit.trace refuses operators that return `Tensor?`, ahead-of-time compilation refuses undefined tensors.
"""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.library import Library, register_fake, register_vmap

from .backends.dtypes import accumulation_dtype
from .backends.layout import in_place_or_copy

_lib = Library("gala_cuda", "DEF")
_AUTOCAST_KEYS = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastCPU) | torch._C.DispatchKeySet(
    torch._C.DispatchKey.AutocastCUDA
)


class OperatorPair:
    """`gala_cuda::name` and `gala_cuda::name_backward`; what tells the kinds of block apart is a subclass's.

    ``options`` are whole numbers, between the tensors and the flags of every pair.
    """

    name: str
    weights: tuple[str, ...]  # each with its type in the schema
    options: tuple[str, ...] = ()
    saved: tuple[str, ...]  # what forward saves for backward

    def forward(
        self, x, w: Sequence[Tensor | None], residual, options, return_map: bool, save: bool, backend: str
    ) -> tuple[Tensor | None, ...]:
        """(out, map, *saved)."""
        raise NotImplementedError

    def backward(
        self, grad_out, map_factor, x, w: Sequence[Tensor | None], out, saved: Sequence[Tensor], options,
        need_input: bool, need_weights: bool, backend: str,
    ) -> tuple[Tensor | None, Sequence[Tensor | None] | None, Tensor | None]:  # fmt: skip
        """The gradients of x, of the weights and of the residual."""
        raise NotImplementedError

    def saved_like(self, x: Tensor, w: Sequence[Tensor]) -> tuple[tuple[Iterable[int], torch.dtype], ...]:
        """Shape and dtype of each tensor that forward saves."""
        raise NotImplementedError

    def reference(self, x, w: Sequence[Tensor | None], residual, options) -> tuple[Tensor, Tensor]:
        """(out, map), differentiable to any order."""
        raise NotImplementedError

    def __init__(self) -> None:
        w, saved = ", ".join(self.weights), ", ".join(f"Tensor {name}" for name in self.saved)
        options = "".join(f"int {name}, " for name in self.options)
        self._n_weights, self._n_tensors = len(self.weights), len(self.weights) + 2
        _lib.define(
            f"{self.name}(Tensor x, {w}, Tensor? residual, {options}bool return_map, bool save, str backend)"
            f" -> (Tensor out, Tensor map, {saved})"
        )
        _lib.define(
            f"{self.name}_backward(Tensor grad_out, Tensor? map_factor, Tensor x, {w}, Tensor? out, {saved}, {options}"
            f"bool need_input, bool need_weights, str backend) -> ({', '.join(['Tensor'] * self._n_tensors)})"
        )
        self.op = getattr(torch.ops.gala_cuda, self.name).default
        self.backward_op = getattr(torch.ops.gala_cuda, f"{self.name}_backward").default
        for name, implementation, on_autograd, on_autocast, fake, vmap in (
            (self.name, self._impl, self._autograd, self._autocast, self._fake, self._vmap),
            (
                f"{self.name}_backward", self._backward_impl, self._autograd_backward, self._autocast_backward,
                self._fake_backward, self._vmap_backward,
            ),
        ):  # fmt: skip
            _lib.impl(name, implementation, "CompositeExplicitAutograd")
            _lib.impl(name, on_autograd, "Autograd")
            for key in ("AutocastCPU", "AutocastCUDA"):
                _lib.impl(name, on_autocast, key)
            register_fake(f"gala_cuda::{name}", fake, lib=_lib)
            register_vmap(f"gala_cuda::{name}", vmap, lib=_lib)

    def __call__(self, *args):
        """The forward operator, in eager mode without the dispatcher's first turn, which would only call `_autograd`.

        Compilers and torch.jit.trace have to see the operator itself.
        """
        if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active() or torch.jit.is_tracing():
            return self.op(*args)
        return self._autograd(*args)

    def _split(self, args):
        """(x, weights, residual, options, flags and backend) from the arguments of the forward operator."""
        x, *w = args[: 1 + self._n_weights]
        at = self._n_tensors + len(self.options)
        return x, w, args[self._n_tensors - 1], args[self._n_tensors : at], args[at:]

    def _split_backward(self, args):
        """(grad_out, map_factor, x, weights, out, saved, options, flags and backend) of the backward operator."""
        (grad_out, map_factor, x, *w), rest = args[: 3 + self._n_weights], args[3 + self._n_weights :]
        n, at = 1 + len(self.saved), 1 + len(self.saved) + len(self.options)
        return grad_out, map_factor, x, w, rest[0], rest[1:n], rest[n:at], rest[at:]

    def _impl(self, x, *rest):
        x = in_place_or_copy(x)
        _, w, residual, options, flags = self._split((x, *rest))
        if residual is not None:
            _expect("residual", residual, x.dtype)
            residual = in_place_or_copy(residual, like=x)
        outputs = self.forward(x, w, residual, options, *flags)
        return tuple(x.new_empty(0) if t is None else t for t in outputs)

    def _backward_impl(self, *args):
        grad_out, map_factor, x, w, out, saved, options, flags = self._split_backward(args)
        x = in_place_or_copy(x)
        _expect("grad_out", grad_out, x.dtype)
        _expect("map_factor", map_factor, accumulation_dtype(x.dtype))
        _expect("out", out, x.dtype)
        for name, t, (_, dtype) in zip(self.saved, saved, self.saved_like(x, w), strict=True):
            _expect(name, t, dtype)
        grad_out = in_place_or_copy(grad_out, like=x)
        grad_x, grads, grad_residual = self.backward(grad_out, map_factor, x, w, out, saved, options, *flags)
        of_weights = [None] * len(w) if grads is None else map(_as_parameter, grads, w)
        return tuple(x.new_empty(0) if t is None else t for t in (grad_x, *of_weights, grad_residual))

    def _fake(self, *args):
        x, w, _, _, (return_map, save, _) = self._split(args)
        n, _, height, width = x.shape
        attn_map = x.new_empty((n, height, width), dtype=accumulation_dtype(x.dtype)) if return_map else x.new_empty(0)
        saved = (x.new_empty(shape, dtype=dtype) if save else x.new_empty(0) for shape, dtype in self.saved_like(x, w))
        return torch.empty_like(x), attn_map, *saved

    def _fake_backward(self, *args):
        _, _, x, w, out, _, _, (need_input, need_weights, _) = self._split_backward(args)
        grads = ((x, need_input), *((t, need_weights) for t in w), (x, out is not None))
        return tuple(x.new_empty(0) if t is None or not needed else torch.empty_like(t) for t, needed in grads)

    def _autograd(self, *args):
        tensors = args[: self._n_tensors]
        forward_mode = forward_ad._current_level >= 0 and _has_tangent(tensors)
        if forward_mode or (torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)):
            # torch.func.grad always asks for a differentiable gradient: with forward mode, the reference's part
            if forward_mode or torch._C._are_functorch_transforms_active():
                x, w, residual, options, (return_map, _, _) = self._split(args)
                out, attn_map = self.reference(x, w, residual, options)
                empty = (out.new_empty(0) for _ in self.saved)
                return out, attn_map if return_map else out.new_empty(0), *empty
            return _Block.apply(self, *args)
        with torch._C._AutoDispatchBelowAutograd():
            return self.op(*args)

    def _autograd_backward(self, *args):
        if torch.is_grad_enabled() and any(isinstance(t, Tensor) and t.requires_grad for t in args):
            raise RuntimeError(
                f"gala_cuda::{self.name}_backward is not differentiable; differentiate gala_cuda::{self.name} with "
                "create_graph=True"
            )
        with torch._C._AutoDispatchBelowAutograd():
            return self.backward_op(*args)

    def differentiable_backward(self, grad_out, grad_map, x, w, out, options, needs):
        """The gradient through the reference, itself differentiable: double backward, to any order."""
        if out is not None:
            grad_out = torch.where(out <= 0, 0.0, grad_out)
        inputs = [x, *w]
        wanted = [i for i, needed in enumerate(needs[: len(inputs)]) if needed]
        grads: list[Tensor | None] = [None] * len(inputs)
        if wanted:
            out_and_map = self.reference(x, w, None, options)
            count = 1 if grad_map is None else 2
            with torch._C._ExcludeDispatchKeyGuard(_AUTOCAST_KEYS):
                found = torch.autograd.grad(
                    out_and_map[:count], [inputs[i] for i in wanted], (grad_out, grad_map)[:count], create_graph=True
                )
            for i, grad in zip(wanted, found, strict=True):
                grads[i] = grad
        return (*grads, grad_out if out is not None else None)

    def _autocast(self, *args):
        """Autocast leaves x and the weights as they are, out has x's dtype; the shortcut follows x."""
        x, w, residual, options, flags = self._split(args)
        if residual is not None:
            residual = residual.to(x.dtype)
        with torch._C._ExcludeDispatchKeyGuard(_AUTOCAST_KEYS):
            return self.op(x, *w, residual, *options, *flags)

    def _autocast_backward(self, *args):
        """A backward called inside the autocast region: products stay as they are there too."""
        with torch._C._ExcludeDispatchKeyGuard(_AUTOCAST_KEYS):
            return self.backward_op(*args)

    def _vmap(self, info, in_dims, *args):
        """Images of a batch are independent: where only x (and the shortcut) are batched, their batch joins N."""
        x_dim, *weights_dims, residual_dim = in_dims[: self._n_tensors]
        if x_dim is None or any(d is not None for d in weights_dims):
            return _vmap_loop(self.op, info, in_dims, *args)
        x, w, residual, options, flags = self._split(args)
        size = info.batch_size
        x = x.movedim(x_dim, 0).flatten(0, 1)
        if residual is not None:
            shared = residual_dim is None
            residual = residual.expand(size, *residual.shape) if shared else residual.movedim(residual_dim, 0)
            residual = residual.flatten(0, 1)
        results = self.op(x, *w, residual, *options, *flags)
        split = tuple(t.unflatten(0, (size, -1)) if t.dim() > 1 else t.expand(size, 0) for t in results)
        return split, (0,) * len(split)

    def _vmap_backward(self, info, in_dims, *args):
        return _vmap_loop(self.backward_op, info, in_dims, *args)


class _Block(torch.autograd.Function):
    @staticmethod
    def forward(ctx, pair, *args):
        x, weights, residual, options, (return_map, _, backend) = pair._split(args)
        with torch._C._AutoDispatchBelowAutograd():
            out, attn_map, *saved = pair.op(x, *weights, residual, *options, return_map, True, backend)
        saved_out, saved_map = None if residual is None else out, attn_map if return_map else None
        ctx.save_for_backward(x, *weights, saved_out, saved_map, *saved)
        ctx.mark_non_differentiable(*saved)
        ctx.set_materialize_grads(False)
        ctx.pair, ctx.options, ctx.backend, ctx.inputs = pair, options, backend, len(args)
        return out, attn_map, *saved

    @staticmethod
    def backward(ctx, grad_out, grad_map, *_):
        pair, n = ctx.pair, len(ctx.pair.weights)
        tensors = ctx.saved_tensors  # once: activation checkpointing computes them again where they are asked for
        (x, *weights), (out, attn_map, *saved) = tensors[: 1 + n], tensors[1 + n :]
        _, *needs = ctx.needs_input_grad
        if attn_map is None:
            grad_map = None
        if grad_out is None and grad_map is None:
            return (None,) * (1 + ctx.inputs)
        if grad_out is None:
            grad_out = torch.zeros_like(x)
        if torch.is_grad_enabled():  # a graph of the backward was asked for
            grads = pair.differentiable_backward(grad_out, grad_map, x, weights, out, ctx.options, needs)
        else:
            factor = None if grad_map is None else torch.where(attn_map == 0, 0.0, grad_map / attn_map)
            need_weights = any(needs[1 : 1 + n])
            grads = pair.backward_op(
                grad_out, factor, x, *weights, out, *saved, *ctx.options, needs[0], need_weights, ctx.backend
            )
        grads = [grad if needed else None for grad, needed in zip(grads, needs, strict=False)]
        return (None, *grads, *(None,) * (ctx.inputs - len(grads)))


def _expect(name: str, t: Tensor | None, dtype: torch.dtype) -> None:
    """Kernels read memory as this dtype; a direct call of an operator has passed no other check."""
    if t is not None and t.dtype != dtype:
        raise TypeError(f"{name} is {t.dtype}; expected {dtype}")


def _as_parameter(grad, parameter):
    """The gradient with its parameter's dtype and strides, as DistributedDataParallel wants it."""
    if grad is None or (grad.dtype == parameter.dtype and grad.stride() == parameter.stride()):
        return grad
    return torch.empty_like(parameter).copy_(grad)


def _has_tangent(tensors) -> bool:
    return any(t is not None and forward_ad.unpack_dual(t).tangent is not None for t in tensors)


def _vmap_loop(op, info, in_dims, *args):
    def pick(i):
        return (a if d is None else a.select(d, i) for a, d in zip(args, in_dims, strict=True))

    results = [op(*pick(i)) for i in range(info.batch_size)]
    return tuple(torch.stack(parts) for parts in zip(*results, strict=True)), (0,) * len(results[0])
