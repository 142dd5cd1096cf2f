"""The stages of the released code's block on the backend "triton".

Three kernels are its own. Of the paper's block's plans it launches scale, and of their backward passes scale, grad_x
and local_products, whose W is here the gradient of the hidden layer.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from ... import interface
from ...interface import Weights
from ...squash import Squash
from ...stages import BackwardCall, Gates, ScaleGrads, rows_dtype
from .. import _on_device_of, _precision, backward_plan, gate
from .. import scale as launches
from ..arguments import Gate, GateParts, Layout, Products
from ..config import Tile
from ..kept import alignment, kept_plan
from ..launch import KernelLaunch, Workspace, cdiv, clamp_block, current_stream
from ..problem import Problem, Rows
from . import kernels

_COLLAPSE = Tile((("ROWS", 32), ("REDUCED", 256)), warps=4, stages=1)
_MOST_UNITS = 128  # hidden units of a step of gather in float32, whose products take three times the registers
_ALPHA_PARTS, _BETA_PARTS, _DS_PARTS, _T = 3, 4, 5, 11  # among the arrays of a backward plan


class Gather:
    """The launches of gather: the hidden layer, and p of the pooled sums."""

    def __init__(self, x: Tensor, w: Weights, precision: str):
        p = Problem.of(x, w, Squash.SIGMOID, precision)
        tile = p.config.gather
        rows = Rows.filling(p, tile["ROWS"])
        units = min(tile["REDUCED"], _MOST_UNITS) if x.dtype == torch.float32 else tile["REDUCED"]
        sizes = {"DEPTH": clamp_block(tile["DEPTH"], p.channels), "REDUCED": clamp_block(units, p.reduced, 32)}
        whole = p.channels % sizes["DEPTH"] == 0 and p.reduced % sizes["REDUCED"] == 0
        constants = p.constants | rows.constants | sizes | {"WHOLE": whole, "DENSE": p.dense(p.x)}
        self.gather = KernelLaunch(kernels.gather_hidden, rows.tiles, (p.images, p.sizes, p.x), constants, tile)
        self.shrink, splits = gate.shrink_launch(p, rows)
        self.workspace, self.stats = Workspace(), (p.images, p.sizes.width)
        self.workspace.add(rows.tiles, rows.segments, p.channels)  # pooled sums
        self.workspace.add(splits, p.images, p.reduced)  # z in parts

    def run(self, x: Tensor, w: Weights) -> tuple[Tensor, Tensor]:
        n, _, height, width = x.shape
        stats = torch.empty(self.stats, dtype=torch.float32, device=x.device)
        hidden = x.new_empty((n, height, width, len(w.v_collapse)), dtype=rows_dtype(x))
        pool, z_parts = self.workspace.allocate(x.device)
        stream = current_stream(x.device)
        self.gather(x, w.v_shrink.to(x.dtype), w.b_v_shrink, hidden, pool, stream=stream)
        self.shrink(pool, w.w_shrink, stats, z_parts, stream=stream)
        return stats, hidden


class Scale:
    """The launches of scale: s of the rows behind the convolution, out, and perhaps the map."""

    def __init__(self, x: Tensor, residual: Tensor | None, w: Weights, return_map: bool, precision: str):
        p = Problem.of(x, w, Squash.SIGMOID, precision)
        rows, constants = _collapse_constants(p)
        self.collapse = KernelLaunch(kernels.collapse, rows, (p.images * p.pixels, p.sizes), constants, _COLLAPSE)
        layout = None if residual is None else Layout.of(residual, p.channels_last)
        self.scale, c_blocks = launches.scale_launch(p, layout, return_map, 1)  # collapse makes s whole
        self.map_parts = c_blocks if return_map else 0, p.images * p.pixels
        self.finish_map = launches.map_launch(p, c_blocks) if return_map else None

    def run(
        self, x: Tensor, residual: Tensor | None, seen: Tensor, w: Weights, gates: Gates, stats: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        out, attn_map = torch.empty_like(x), None
        map_parts = torch.empty(self.map_parts, dtype=torch.float32, device=x.device)
        stream = current_stream(x.device)
        self.collapse(seen, w.v_collapse, w.b_v_collapse, stats, stream=stream)
        self.scale(x, residual, out, stats, None, Gate(*gates), map_parts, stream=stream)
        if self.finish_map is not None:
            attn_map = torch.empty((x.shape[0], *x.shape[2:]), dtype=torch.float32, device=x.device)
            self.finish_map(map_parts, attn_map, stream=stream)
        return out, attn_map


class Backward:
    """The launches of both stages' backward."""

    def __init__(self, call: BackwardCall, precision: str):
        w = Weights(*call.w[:6])  # the biases' gradients are sums of what the stages give
        p = Problem.of(call.x, w, Squash.SIGMOID, precision)
        self.paper = backward_plan.make(
            interface.BackwardCall(
                call.grad_out, call.map_factor, call.x, w, call.out, call.stats, call.seen, Squash.SIGMOID, True, True
            ),
            precision,
        )
        self.sizes = self.paper.workspace.sizes
        self.programs, constants = _collapse_constants(p)
        parts = self.sizes[_DS_PARTS] // (p.images * p.pixels)
        numbers = (p.images * p.pixels, parts, p.reduced)
        self.collapse = KernelLaunch(kernels.collapse_backward, self.programs, numbers, constants, _COLLAPSE)

    def parts(self, which: int, *extents: int, device: torch.device) -> Tensor:
        """Parts [parts, *extents] of a sum; those that no program writes are 0."""
        flat = torch.zeros(self.sizes[which], dtype=torch.float32, device=device)
        size = torch.Size(extents).numel()
        return flat[: len(flat) // size * size].view(-1, *extents)

    def scale(self, call: BackwardCall, gates: Gates) -> ScaleGrads:
        x, w = call.x, call.w
        n, c, height, width = x.shape
        alpha_parts, beta_parts = (self.parts(i, n, c, device=x.device) for i in (_ALPHA_PARTS, _BETA_PARTS))
        ds_parts = self.parts(_DS_PARTS, n, height * width, device=x.device)
        residual = None if call.out is None else torch.empty_like(x)
        factor = None if call.map_factor is None else call.map_factor.contiguous()
        stream, sums = current_stream(x.device), GateParts(alpha_parts, beta_parts)
        self.paper.scale(
            call.grad_out, x, call.out, residual, call.stats, factor, Gate(*gates), sums, ds_parts, stream=stream
        )
        grad_seen = torch.empty_like(call.seen)
        collapse_parts = torch.empty((self.programs, len(w.v_collapse)), dtype=torch.float32, device=x.device)
        ds_sums = torch.empty(self.programs, dtype=torch.float32, device=x.device)
        self.collapse(ds_parts, call.seen, w.v_collapse, grad_seen, collapse_parts, ds_sums, stream=stream)
        grads = {}
        if call.need_weights:
            grads = {"v_collapse": collapse_parts.sum(0), "b_v_collapse": ds_sums.sum(0, keepdim=True)}
        return ScaleGrads(grad_seen, alpha_parts.sum(0), beta_parts.sum(0), residual, grads)

    def gather(
        self, call: BackwardCall, gates: Gates, grad_sum: Tensor, grad_hidden: Tensor, dp: Tensor,
        grad_x: Tensor | None,
    ) -> dict[str, Tensor]:  # fmt: skip
        x, w, stream = call.x, call.w, current_stream(call.x.device)
        through = torch.where(call.hidden <= 0, 0.0, grad_hidden).flatten(0, 2)  # [N HW, R]
        rows = F.pad(through, (0, self.paper.weighted[1] - through.shape[1])).to(x.dtype)
        if grad_x is not None:
            v_shrink, dp = w.v_shrink.to(x.dtype), dp / (x.shape[2] * x.shape[3])
            self.paper.grad_x(grad_sum, grad_x, v_shrink, call.stats, rows, Gate(*gates), dp, stream=stream)
        if not call.need_weights:
            return {}
        t = self.parts(_T, *w.v_shrink.shape, device=x.device)
        self.paper.local_products(x, rows, None, Products(t, None, None), stream=stream)
        return {"v_shrink": t.sum(0), "b_v_shrink": through.sum(0, dtype=torch.float32)}


def gather(x: Tensor, w: Weights) -> tuple[Tensor, Tensor]:
    precision = _precision(x)
    with _on_device_of(x):
        return kept_plan((gather, *_key(x, w, precision)), lambda: Gather(x, w, precision)).run(x, w)


def scale(
    x: Tensor, residual: Tensor | None, seen: Tensor, w: Weights, gates: Gates, stats: Tensor, return_map: bool
) -> tuple[Tensor, Tensor | None]:
    precision = _precision(x)
    strides = None if residual is None else residual.stride()
    key = scale, *_key(x, w, precision, residual), strides, return_map
    with _on_device_of(x):
        plan = kept_plan(key, lambda: Scale(x, residual, w, return_map, precision))
        return plan.run(x, residual, seen, w, gates, stats)


def scale_backward(call: BackwardCall, gates: Gates, grad_x: Tensor | None) -> ScaleGrads:
    """Leaves grad_x to `gather_backward`."""
    with _on_device_of(call.x):
        return _backward(call).scale(call, gates)


def gather_backward(
    call: BackwardCall, gates: Gates, grad_sum: Tensor, grad_hidden: Tensor, dp: Tensor, grad_x: Tensor | None
) -> dict[str, Tensor]:
    with _on_device_of(call.x):
        return _backward(call).gather(call, gates, grad_sum, grad_hidden, dp, grad_x)


def _backward(call: BackwardCall) -> Backward:
    precision = _precision(call.x)
    out = None if call.out is None else call.out.stride()
    given = *_key(call.x, call.w, precision, call.grad_out, call.out), call.grad_out.stride(), out
    return kept_plan((Backward, *given, call.map_factor is not None), lambda: Backward(call, precision))


def _key(x: Tensor, w: Weights, precision: str, *others: Tensor | None) -> tuple:
    """What the kernels are specialised on beside the tensors that are made here."""
    return x.shape, x.stride(), x.dtype, x.device, w.v_shrink.shape, precision, alignment(x, *w, *others)


def _collapse_constants(p: Problem) -> tuple[int, dict[str, object]]:
    """The programs of a collapse, and its constants."""
    sizes = {"ROWS": _COLLAPSE["ROWS"], "REDUCED": clamp_block(_COLLAPSE["REDUCED"], p.reduced)}
    return cdiv(p.images * p.pixels, sizes["ROWS"]), p.constants | sizes
