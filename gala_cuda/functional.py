"""`gala`: the attention block as a function, and the checks of its arguments."""

import warnings

import torch
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function

from . import operator
from .backends import reference, requested
from .backends.dtypes import DTYPES, HALVES
from .backends.interface import Weights, autocast_on, weight_shapes
from .backends.squash import SQUASHES

_BIASES = Weights._fields[6:]


def gala(
    x: Tensor,
    w_shrink: Tensor,
    w_expand: Tensor,
    v_shrink: Tensor,
    v_collapse: Tensor,
    a: Tensor,
    m: Tensor,
    b_w_shrink: Tensor | None = None,
    b_w_expand: Tensor | None = None,
    b_v_shrink: Tensor | None = None,
    b_v_collapse: Tensor | None = None,
    *,
    residual: Tensor | None = None,
    squash: str = "tanh",
    return_map: bool = False,
    backend: str | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Global-and-local attention (Linsley et al., ICLR 2019, section 3) in one fused pass.

    With p = mean over H, W of x:

        g = w_expand . relu(w_shrink . p + b_w_shrink) + b_w_expand             [N, C]
        s = v_collapse . relu(v_shrink * x + b_v_shrink) + b_v_collapse         [N, H, W]
        A = squash(a (g + s) + m (g s))                                         [N, C, H, W]
        out = x A,  or with a residual  relu(x A + residual)                    [N, C, H, W]

    Args:
        x: [N, C, H, W], float32, float64, bfloat16 or float16; N may be 0, H and W are at least 1. NCHW-contiguous
            and channels_last tensors, and slices of either along N or C, are read in place; other strides (spatial
            crops) cost one copy.
        w_shrink: [R, C], global path, C to R. R is the reduced width, any R >= 1. All weights share x's dtype, or are
            float32 where x is bfloat16 or float16.
        w_expand: [C, R], global path, R to C.
        v_shrink: [R, C], local path, a 1x1 convolution C to R.
        v_collapse: [R], local path, a 1x1 convolution R to 1.
        a: [C], weight of the sum of both paths.
        m: [C], weight of their product.
        b_w_shrink, b_w_expand, b_v_shrink, b_v_collapse: [R], [C], [R] and [1], the biases of the four projections, all
            of them or none. The paper has none.
        residual: [N, C, H, W] like x, or None. Added before a final ReLU, as at the end of a ResNet block.
        squash: "tanh" (paper) or "sigmoid" (the authors' released code).
        return_map: also return the L2 norm of A over channels.
        backend: "reference", "cpu", "triton", "cuda"; None takes GALA_BACKEND from the environment, else the
            fastest that runs on x.

    Returns:
        out [N, C, H, W] in x's dtype and memory format; with `return_map` also map [N, H, W] in float32 (float64
        for float64 x). Both differentiable, twice too. Sums and statistics are float32 (float64 for float64 x).

    Raises:
        TypeError: an argument is no dense floating tensor, or its dtype does not go with x's.
        ValueError: a shape, device, stride or option is wrong; the message names the argument.
        RuntimeError: the requested backend cannot run on x; the message says why.
    """
    if stands_for_tensor(x):
        return handle_torch_function(
            gala, (x,), x, w_shrink, w_expand, v_shrink, v_collapse, a, m, b_w_shrink, b_w_expand, b_v_shrink,
            b_v_collapse, residual=residual, squash=squash, return_map=return_map, backend=backend,
        )  # fmt: skip
    w = Weights(w_shrink, w_expand, v_shrink, v_collapse, a, m, b_w_shrink, b_w_expand, b_v_shrink, b_v_collapse)
    if torch.jit.is_tracing():  # sizes are tensors there, and tracing warns of every comparison
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", torch.jit.TracerWarning)
            _check(x, w, residual, squash)
    else:
        _check(x, w, residual, squash)
    name, code = requested(backend), SQUASHES[squash]
    if name == "reference" or exporting_to_onnx():
        out, attn_map = reference.apply(x, w, residual, code)
    else:
        out, attn_map, _, _ = operator.gala(x, *w, residual, int(code), return_map, False, name)
    return (out, attn_map) if return_map else out


def exporting_to_onnx() -> bool:
    """Asked for where something follows the call: in eager mode the question would cost more than the answer helps."""
    return (torch.compiler.is_compiling() or torch.jit.is_tracing()) and torch.onnx.is_in_onnx_export()


def stands_for_tensor(x: object) -> bool:
    """Whether x is no tensor but takes its place, as the proxies of torch.fx do: for them `gala` is one operation."""
    return not isinstance(x, Tensor) and has_torch_function((x,))


def _check(x: Tensor, w: Weights, residual: Tensor | None, squash: str) -> None:
    if squash not in SQUASHES:
        raise ValueError(f"squash is {squash!r}; expected one of {', '.join(map(repr, SQUASHES))}")
    check_feature_map("x", x)
    unbiased = w.b_w_shrink is w.b_w_expand is w.b_v_shrink is w.b_v_collapse is None
    given: tuple = w[: -len(_BIASES)] if unbiased else w
    for name, t in zip(Weights._fields, given, strict=False):
        if not isinstance(t, Tensor):
            if t is None and name in _BIASES:
                raise ValueError(f"{name} is None beside another bias; expected {', '.join(_BIASES)} all or none")
            raise TypeError(f"{name} is a {type(t).__name__}; expected a tensor")
    if w.w_shrink.dim() != 2 or w.w_shrink.shape[0] == 0:
        raise ValueError(f"w_shrink has shape {tuple(w.w_shrink.shape)}; expected [R, C] with R of at least 1")
    device, dtypes = x.device, (x.dtype, torch.float32) if x.dtype in HALVES else (x.dtype,)
    for t, shape in zip(given, weight_shapes(x.shape[1], w.w_shrink.shape[0]), strict=False):
        if t.shape != shape or t.device != device or t.dtype not in dtypes or t.layout != torch.strided:
            _refuse_weight(given, x)
    if residual is not None:
        check_feature_map("residual", residual)
        if residual.shape != x.shape:
            raise ValueError(f"residual has shape {tuple(residual.shape)}; expected x's, {tuple(x.shape)}")
        if residual.device != x.device:
            raise ValueError(f"residual is on {residual.device}; expected x's device, {x.device}")
        if residual.dtype != x.dtype and not autocast_on(x):
            raise TypeError(f"residual is {residual.dtype}; expected x's dtype, {x.dtype}")


def check_feature_map(name: str, x: Tensor) -> None:
    """Raises TypeError or ValueError, calling x by `name`, unless it is [N, C, H, W] as `gala` takes it."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} is a {type(x).__name__}; expected a tensor [N, C, H, W]")
    if x.layout != torch.strided or x.is_quantized:
        kind = "quantized" if x.is_quantized else x.layout
        raise TypeError(f"{name} is {kind}; expected a dense tensor")
    if x.dtype not in DTYPES:
        raise TypeError(f"{name} is {x.dtype}; expected one of {', '.join(map(str, DTYPES))}")
    if x.dim() != 4:
        raise ValueError(f"{name} has shape {tuple(x.shape)}; expected 4 dimensions, [N, C, H, W]")
    if 0 in x.shape[1:]:
        raise ValueError(f"{name} has shape {tuple(x.shape)}; expected C, H and W of at least 1")
    if not x.is_contiguous() and _overlaps(x):
        raise ValueError(f"{name} {tuple(x.shape)} has overlapping strides {x.stride()}; pass {name}.contiguous()")


def _refuse_weight(weights: tuple[Tensor, ...], x: Tensor) -> None:
    """Says which weight is wrong, and how."""
    shapes = weight_shapes(x.shape[1], weights[0].shape[0])
    for name, t, shape in zip(Weights._fields, weights, shapes, strict=False):
        if t.layout != torch.strided:
            raise TypeError(f"{name} is {t.layout}; expected a dense tensor")
        if t.shape != shape:
            raise ValueError(f"{name} has shape {tuple(t.shape)}; expected {shape} for x of {x.shape[1]} channels")
        if t.device != x.device:
            raise ValueError(f"{name} is on {t.device}; expected x's device, {x.device}")
        if t.dtype != x.dtype and not (t.dtype == torch.float32 and x.dtype in HALVES):
            raise TypeError(f"{name} is {t.dtype}; expected x's {x.dtype}, or float32 beside bfloat16 and float16")


def _overlaps(x: Tensor) -> bool:
    """Whether two elements may share memory: some stride does not step over all that the smaller ones reach.

    Under torch.compile sizes may be symbols, which do not sort: there only expanded dimensions count.
    """
    if torch.compiler.is_compiling():
        return any(stride == 0 and size > 1 for stride, size in zip(x.stride(), x.shape, strict=True))
    reach = 0
    for stride, size in sorted(zip(x.stride(), x.shape, strict=True)):
        if size > 1:
            if stride <= reach:
                return True
            reach += stride * (size - 1)
    return False
