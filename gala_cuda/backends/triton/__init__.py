"""The backend whose stages are fused Triton kernels, compiled on first use with the tiles that `table.json` says."""

import contextlib
import importlib.util
import os
from typing import Any, TypeVar

import torch
from torch import Tensor

from .. import reference
from ..dtypes import GPU_DTYPES
from ..interface import BackwardCall, ForwardCall, Gradients, Outputs, Weights
from . import assembler
from .config import MOST
from .kept import alignment, kept_plan

_OLDEST = (8, 0)
_INSTALLED = importlib.util.find_spec("triton") is not None
Call = TypeVar("Call", ForwardCall, BackwardCall)


def why_not(x: Tensor) -> str | None:
    """None where the Triton kernels can run on `x`, else the reason."""
    if not _INSTALLED:
        return "Triton is not installed"
    if x.device.type == "cuda":
        if torch.version.cuda is None:
            return "torch is not built for CUDA"
        if (capability := torch.cuda.get_device_capability(x.device)) < _OLDEST:
            return f"{x.device} has compute capability {capability[0]}.{capability[1]}, expected 8.0 or newer"
        if (reason := assembler.why_not(capability)) is not None:
            return reason
    elif not interpreted():
        return f"x is on {x.device}, expected cuda (or TRITON_INTERPRET=1 in the environment, for tests)"
    elif x.device.type != "cpu":
        return f"x is on {x.device}, expected cpu with TRITON_INTERPRET=1"
    if x.dtype not in GPU_DTYPES:
        return f"x is {x.dtype}, expected one of {', '.join(map(str, GPU_DTYPES))}"
    if x.numel():
        n, channels, height, width = x.shape
        for count, name in ((n * height * width, "pixels"), (channels, "channels")):
            if count > MOST:
                return f"x has {count} {name}, expected at most {MOST} (2^31 - 2^20)"
    return None


def interpreted() -> bool:
    """Whether Triton runs kernels in its interpreter, which takes tensors on the CPU."""
    return os.environ.get("TRITON_INTERPRET", "0") in ("1", "true", "on", "y", "yes")


def forward(call: ForwardCall) -> Outputs:
    """As `reference.forward`."""
    if not call.x.numel():
        return reference.forward(call)
    call = _with_contiguous_weights(call)
    x, w, residual, squash, return_map, save = call
    precision = _precision(x)
    key = (
        x.shape, x.stride(), x.dtype, x.device, w.w_shrink.shape, tuple(None if t is None else t.dtype for t in w),
        None if residual is None else residual.stride(), squash, return_map, save, precision,
        alignment(x, residual, *w),
    )  # fmt: skip

    def make() -> Any:
        from . import forward_plan  # which imports Triton

        return forward_plan.make(call, precision)

    with _on_device_of(x):
        return kept_plan(key, make).run(call)


def backward(call: BackwardCall) -> Gradients:
    """As `reference.backward`."""
    if not call.x.numel():
        return reference.backward(call)
    call = _with_contiguous_weights(call)
    if call.map_factor is not None:
        call = call._replace(map_factor=call.map_factor.contiguous())
    grad_out, map_factor, x, w, out, stats, relu_mask, squash, need_input, need_weights = call
    precision = _precision(x)
    key = (
        x.shape, x.stride(), x.dtype, x.device, w.w_shrink.shape, tuple(None if t is None else t.dtype for t in w),
        grad_out.stride(), None if out is None else out.stride(), map_factor is not None, need_input, need_weights,
        squash, precision,
        alignment(grad_out, map_factor, x, out, stats, relu_mask, *w),
    )  # fmt: skip

    def make() -> Any:
        from . import backward_plan  # which imports Triton

        return backward_plan.make(call, precision)

    with _on_device_of(x):
        return kept_plan(key, make).run(call)


def _with_contiguous_weights(call: Call) -> Call:
    if all(t is None or t.is_contiguous() for t in call.w):
        return call
    return call._replace(w=Weights._make(None if t is None else t.contiguous() for t in call.w))


def _precision(x: Tensor) -> str:
    """How products of float32 are computed: as one product of TF32 numbers only where torch's own products are."""
    if x.dtype == torch.float32 and torch.backends.cuda.matmul.fp32_precision != "tf32":
        return "tf32x3"
    return "tf32"


def _on_device_of(x: Tensor) -> contextlib.AbstractContextManager:
    return torch.cuda.device(x.device) if x.device.type == "cuda" else contextlib.nullcontext()
