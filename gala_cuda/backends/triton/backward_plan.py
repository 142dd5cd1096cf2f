"""The backward pass as a plan: which kernels run with which grids and sizes, and the memory between them."""

from typing import NamedTuple

import torch

from ..interface import BackwardCall, Gradients, Weights
from . import gate, gate_backward, gather, gather_backward, scale
from .launch import KernelLaunch, Layout, Workspace, cdiv, clamp_block
from .problem import (
    GATE,
    GATE_BLOCK,
    GATE_DEPTH,
    GATE_GRADS,
    GATE_IMAGES,
    NO_TUNING,
    SPLITS,
    Problem,
    Rows,
    shares,
    spans,
)

GRADS_BLOCK = 32  # hidden units and channels in a block of global_grads
PRODUCTS, MOST_SPLITS = 2, 32  # programs of local_products for each multiprocessor; at most so many parts of its sum


class Strides(NamedTuple):
    """The strides of the feature maps beside x. Without a residual, out is not read and `out` has no meaning."""

    grad_out: Layout
    out: Layout
    residual: bool


class Backward:
    """The launches and the workspace of one kind of backward pass."""

    def __init__(self, p: Problem, strides: Strides, with_map: bool):
        n, c, hw, r = p.images, p.channels, p.pixels, p.reduced
        tile = p.config.scale_backward
        sizes = {"PIXELS": clamp_block(tile["PIXELS"], hw), "CHANNELS": clamp_block(tile["CHANNELS"], c)}
        c_blocks = cdiv(c, sizes["CHANNELS"])
        span, n_shares = shares(p, sizes["PIXELS"], c_blocks)
        gate_span, gate_splits = spans(c, clamp_block(GATE_DEPTH, c), SPLITS)
        self.numbers = (n, hw, c, r, p.width)
        self.expand = gate.expand_launch(p, 1, saved=True)
        self.scale = KernelLaunch(
            scale.scale_backward,
            n * c_blocks * n_shares,
            (n, hw, c, p.width, span, *strides.grad_out, *p.x, *strides.out, *p.out),
            p.constants | sizes | {"RESIDUAL": strides.residual, "MAP": with_map},
            tile,
        )
        self.sum_ds = scale.sum_launch(n * hw, c_blocks, root=False)
        self.prepare = gather.prepare_launch(p, scaled=True)
        self.grad_x = self._grad_x(p, p.out if strides.residual else strides.grad_out)
        self._gate_launches(p, gate_span, gate_splits, n_shares)
        self.local_products, splits = self._local_products(p)
        sizes = {"CHANNELS": clamp_block(1024, c)}
        self.local_grads = KernelLaunch(gather_backward.local_grads, r, (c, r, splits), p.constants | sizes, NO_TUNING)
        self.workspace = Workspace()
        for extents in (
            (n, c), (n, c), (n, c),  # g, alpha, beta
            (n_shares, n, c), (n_shares, n, c), (c_blocks, n, hw), (n, hw),  # d alpha, d beta and ds in parts, ds
            (n, c), (gate_splits, n, r), (n, r), (n, c),  # dg, dz in parts, dz, dp
            (splits, r, c), (splits, r), (splits,),  # T, counts, sums of ds
        ):  # fmt: skip
            self.workspace.add(*extents)

    def _grad_x(self, p: Problem, direct: Layout) -> KernelLaunch:
        tile = p.config.grad_x
        rows = Rows.of(p, tile["ROWS"])
        sizes = {
            "DEPTH": clamp_block(tile["DEPTH"], p.reduced, 32),
            "CHANNELS": clamp_block(tile["CHANNELS"], p.channels),
        }
        programs = rows.tiles * cdiv(p.channels, sizes["CHANNELS"])
        constants = p.constants | rows.constants | sizes
        return KernelLaunch(gather_backward.grad_x, programs, (*self.numbers, *direct, *p.out), constants, tile)

    def _gate_launches(self, p: Problem, span: int, splits: int, parts: int) -> None:
        n, c, r = p.images, p.channels, p.reduced
        reduced, channels, n_blocks = clamp_block(GATE_BLOCK, r), clamp_block(GATE_BLOCK, c), cdiv(n, GATE_IMAGES)
        constants = p.constants | {"PARTS": parts, "SPLITS": splits, "IMAGES": GATE_IMAGES}
        over_c = constants | {"DEPTH": clamp_block(GATE_DEPTH // 2, c), "REDUCED": reduced}
        over_r = constants | {"DEPTH": clamp_block(GATE_DEPTH, r), "CHANNELS": channels}
        programs = splits * cdiv(r, reduced) * n_blocks
        self.grad_hidden = KernelLaunch(gate_backward.grad_hidden, programs, (n, c, r, span), over_c, GATE_GRADS)
        self.grad_pool = KernelLaunch(gate_backward.grad_pool, n_blocks * cdiv(c, channels), self.numbers, over_r, GATE)
        blocks = {"REDUCED": clamp_block(GRADS_BLOCK, r), "CHANNELS": clamp_block(GRADS_BLOCK, c)}
        programs = cdiv(c, blocks["CHANNELS"]) * cdiv(r, blocks["REDUCED"])
        self.global_grads = KernelLaunch(
            gate_backward.global_grads, programs, self.numbers, constants | blocks, GATE_GRADS
        )

    def _local_products(self, p: Problem) -> tuple[KernelLaunch, int]:
        """The launch, and the number of programs between which the rows of one block of T are split."""
        tile = p.config.local_products
        rows = Rows.of(p, tile["ROWS"])
        sizes = {
            "REDUCED": clamp_block(tile["REDUCED"], p.reduced, 32),
            "CHANNELS": clamp_block(tile["CHANNELS"], p.channels),
        }
        blocks = cdiv(p.channels, sizes["CHANNELS"]) * cdiv(p.reduced, sizes["REDUCED"])
        splits = min(cdiv(PRODUCTS * p.num_sms, blocks), rows.tiles, MOST_SPLITS)
        numbers = (*self.numbers[:4], rows.tiles, splits, *p.x)
        constants = p.constants | rows.constants | sizes
        return KernelLaunch(gather_backward.local_products, blocks * splits, numbers, constants, tile), splits

    def run(self, call: BackwardCall) -> Gradients:
        grad_out, map_factor, x, w, out, stats, relu_mask, _, need_input, need_weights = call
        arrays = self.workspace.allocate(x.device)
        g, alpha, beta, alpha_parts, beta_parts, ds_parts, ds, dg, dz_parts, dz, dp, t, counts, ds_sums = arrays
        grad_residual = None if out is None else torch.empty_like(x)
        self.expand(None, w.w_expand, None, w.b_w_expand, w.a, w.m, stats, g, alpha, beta)
        self.scale(grad_out, x, out, grad_residual, stats, map_factor, alpha, beta, alpha_parts, beta_parts, ds_parts)
        self.sum_ds(ds_parts, ds)
        self.grad_hidden(alpha_parts, beta_parts, w.a, w.m, w.w_expand, dg, dz_parts)
        self.grad_pool(dz_parts, w.w_shrink, stats, dz, dp)
        grad_x = grad_w = None
        if need_input:
            shrink = torch.empty(w.v_shrink.shape, dtype=x.dtype, device=x.device)
            self.prepare(w.v_shrink, w.v_collapse, shrink)
            grad_x = torch.empty_like(x)
            direct = grad_out if grad_residual is None else grad_residual
            self.grad_x(direct, grad_x, shrink, stats, relu_mask, ds, alpha, beta, dp)
        if need_weights:
            grad_w = Weights._make(None if t is None else torch.empty_like(t) for t in w)
            self.global_grads(
                alpha_parts, beta_parts, g, dg, dz, stats,
                grad_w.w_shrink, grad_w.w_expand, grad_w.a, grad_w.m, grad_w.b_w_shrink, grad_w.b_w_expand,
            )  # fmt: skip
            self.local_products(x, relu_mask, ds, t, counts, ds_sums)
            self.local_grads(
                t, counts, ds_sums, w.v_shrink, w.v_collapse, w.b_v_shrink,
                grad_w.v_shrink, grad_w.v_collapse, grad_w.b_v_shrink, grad_w.b_v_collapse,
            )  # fmt: skip
        return Gradients(grad_x, grad_w, grad_residual)


def make(call: BackwardCall, precision: str) -> Backward:
    """A plan for this call and those like it."""
    problem = Problem.of(call.x, call.w, call.squash, precision)
    layout = Layout.of(call.grad_out, problem.channels_last)
    out = layout if call.out is None else Layout.of(call.out, problem.channels_last)
    return Backward(problem, Strides(layout, out, call.out is not None), call.map_factor is not None)
