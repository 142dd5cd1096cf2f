"""The fused Triton stages. The kernels are compiled on first use; `table.json` says with which tiles."""

import contextlib
import functools
import importlib.util
import os
from types import ModuleType

import torch
from torch import Tensor

from .. import reference
from ..interface import BackwardCall, ForwardCall, Gradients, Outputs, Weights
from . import assembler
from .config import MOST

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_OLDEST = (8, 0)


def why_not(x: Tensor) -> str | None:
    """None where the Triton kernels can run on `x`, else the reason."""
    if importlib.util.find_spec("triton") is None:
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
    if x.dtype not in DTYPES:
        return f"x is {x.dtype}, expected one of {', '.join(map(str, DTYPES))}"
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
    with _on_device_of(call.x):
        return _plans()[0].run(call._replace(w=_contiguous(call.w)), _precision(call.x))


def backward(call: BackwardCall) -> Gradients:
    """As `reference.backward`."""
    if not call.x.numel():
        return reference.backward(call)
    with _on_device_of(call.x):
        return _plans()[1].run(call._replace(w=_contiguous(call.w)), _precision(call.x))


@functools.cache
def _plans() -> tuple[ModuleType, ModuleType]:
    """The modules with the kernels, which import Triton."""
    from . import backward_plan, forward_plan

    return forward_plan, backward_plan


def _contiguous(w: Weights) -> Weights:
    if all(t is None or t.is_contiguous() for t in w):
        return w
    return Weights._make(None if t is None else t.contiguous() for t in w)


def _precision(x: Tensor) -> str:
    """Of products of float32: TF32 only where torch's own products use it."""
    if x.dtype == torch.float32 and torch.backends.cuda.matmul.fp32_precision != "tf32":
        return "tf32x3"
    return "tf32"


def _on_device_of(x: Tensor) -> contextlib.AbstractContextManager:
    return torch.cuda.device(x.device) if x.device.type == "cuda" else contextlib.nullcontext()
