"""`forward` and `backward` of the backends cpu and cuda: the private operators of the compiled extension."""

import torch
from torch import Tensor

from .. import native
from .interface import BackwardCall, ForwardCall, Gradients, Outputs, Weights, plain_weights

if native.module is not None:
    _forward = torch.ops.gala_native.forward.default
    _backward = torch.ops.gala_native.backward.default


def forward(call: ForwardCall) -> Outputs:
    """Runs on the device of x."""
    x, w, residual, squash, return_map, save = call
    return Outputs._make(_forward(x, *plain_weights(w, x.dtype), residual, int(squash), return_map, save, _tf32(x)))


def backward(call: BackwardCall) -> Gradients:
    """Runs on the device of x."""
    grad_out, map_factor, x, w, out, stats, relu_mask, squash, need_input, need_weights = call
    if map_factor is not None:
        map_factor = map_factor.contiguous()
    saved = out, stats, relu_mask, int(squash)
    grad_x, *grads, grad_residual = _backward(
        grad_out, map_factor, x, *plain_weights(w, x.dtype), *saved, need_input, need_weights, _tf32(x)
    )
    return Gradients(grad_x, Weights._make(grads) if need_weights else None, grad_residual)


def _tf32(x: Tensor) -> bool:
    """Whether products of float32 on a GPU are TF32 products: only where torch's own are."""
    return x.is_cuda and torch.backends.cuda.matmul.fp32_precision == "tf32"
