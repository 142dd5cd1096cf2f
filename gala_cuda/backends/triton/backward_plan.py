"""The backward pass, from the saved statistics and sign bits."""

from typing import NamedTuple

import torch
from torch import Tensor

from ..contract import Weights
from . import gate, gather, scale
from .forward_plan import expand_step, prepare_step
from .launch import Layout, Step, Workspace, alignment, cdiv, fit, plan
from .problem import (
    GATE,
    GATE_BLOCK,
    GATE_DEPTH,
    GATE_GRADS,
    GATE_IMAGES,
    NO_TUNING,
    PROGRAMS,
    SPLITS,
    Problem,
    Rows,
    shares,
    spans,
)


class Strides(NamedTuple):
    """Of the feature maps that the backward pass reads beside x; out and d_residual with a residual only."""

    grad_out: Layout
    out: Layout
    residual: bool


class Backward:
    """Steps and sizes of one kind of backward pass."""

    def __init__(self, problem: Problem, strides: Strides, with_map: bool):
        p, config = problem, problem.config
        n, c, hw, r = p.images, p.channels, p.pixels, p.reduced
        pixels = fit(config.scale_backward["PIXELS"], hw, 4)
        channels = fit(config.scale_backward["CHANNELS"], c)
        c_blocks = cdiv(c, channels)
        span, n_shares = shares(p, pixels, c_blocks)
        depth, hidden = fit(GATE_DEPTH, c), fit(GATE_BLOCK, r)
        gate_span, splits = spans(c, depth, SPLITS)
        n_blocks = cdiv(n, GATE_IMAGES)
        products = Products(p, c_blocks)

        workspace = Workspace()
        for extents in (
            (n, c), (n, c), (n, c),  # g, alpha, beta
            (n_shares, n, c), (n_shares, n, c), (c_blocks, n, hw),  # d alpha, d beta, ds, in parts
            (n, c), (splits, n, r), (n, r), (n, c),  # dg, dz in parts, dz, dp
            (products.splits, r, c), (products.splits, r), (products.splits,),  # T, counts, sums of ds
        ):  # fmt: skip
            workspace.add(*extents)
        self.workspace, self.problem, self.products = workspace, p, products
        common = p.constants | {
            "DS_PARTS": c_blocks,
            "PARTS": n_shares,
            "SPLITS": splits,
            "IMAGES": GATE_IMAGES,
            "DEPTH": depth,
            "HIDDEN": hidden,
        }
        gate_channels, gate_depth = fit(GATE_BLOCK, c), fit(GATE_DEPTH, r)
        self.expand = expand_step(p, 1, saved=True)
        self.scale = Step(
            scale.scale_backward,
            n * c_blocks * n_shares,
            (n, hw, c, p.width, span, *strides.grad_out, *p.x, *strides.out, *p.out),
            {**common, "RESIDUAL": strides.residual, "MAP": with_map, "PIXELS": pixels, "CHANNELS": channels},
            config.scale_backward,
        )
        self.grad_hidden = Step(
            gate.grad_hidden, splits * cdiv(r, hidden) * n_blocks, (n, c, r, gate_span), common, GATE
        )
        self.grad_pool = Step(
            gate.grad_pool,
            n_blocks * cdiv(c, gate_channels),
            (n, hw, c, r, p.width),
            {**common, "DEPTH": gate_depth, "CHANNELS": gate_channels},
            GATE,
        )
        self.global_grads = Step(
            gate.global_grads,
            cdiv(c, gate_channels) * cdiv(r, hidden),
            (n, hw, c, r, p.width),
            {**common, "CHANNELS": gate_channels},
            GATE_GRADS,
        )
        self.local_grads = Step(
            gather.local_grads, r, (c, r, products.splits), {**common, "CHANNELS": fit(1024, c)}, NO_TUNING
        )
        self.prepare = prepare_step(p, scaled=True)
        rows, depth = Rows.of(p, config.grad_x["ROWS"]), fit(config.grad_x["DEPTH"], r, 32)
        channels = fit(config.grad_x["CHANNELS"], c)
        self.grad_x = Step(
            gather.grad_x,
            rows.tiles * cdiv(c, channels),
            (n, hw, c, r, p.width, *(p.out if strides.residual else strides.grad_out), *p.out),
            {**common, **rows.constants, "DEPTH": depth, "CHANNELS": channels},
            config.grad_x,
        )
        self.local_products = products.step(common)

    def run(
        self,
        grad_out: Tensor,
        map_factor: Tensor | None,
        x: Tensor,
        w: Weights,
        out: Tensor | None,
        stats: Tensor,
        bits: Tensor,
        need_input: bool,
        need_weights: bool,
    ) -> tuple[Tensor | None, Weights | None, Tensor | None]:
        g, alpha, beta, alpha_parts, beta_parts, ds, dg, dz_parts, dz, dp, t, counts, ds_sums = self.workspace.allocate(
            x.device
        )
        d_residual = None if out is None else torch.empty_like(x)
        self.expand(None, w.w_expand, None, w.b_w_expand, w.a, w.m, stats, g, alpha, beta)
        self.scale(grad_out, x, out, d_residual, stats, map_factor, alpha, beta, alpha_parts, beta_parts, ds)
        self.grad_hidden(alpha_parts, beta_parts, w.a, w.m, w.w_expand, dg, dz_parts)
        self.grad_pool(dz_parts, w.w_shrink, stats, dz, dp)
        dx = dw = None
        if need_input:
            shrink = torch.empty(w.v_shrink.shape, dtype=x.dtype, device=x.device)
            self.prepare(w.v_shrink, w.v_collapse, shrink)
            dx = torch.empty_like(x)
            direct = grad_out if d_residual is None else d_residual
            self.grad_x(direct, dx, shrink, stats, bits, ds, alpha, beta, dp)
        if need_weights:
            dw = Weights._make(None if t is None else torch.empty_like(t) for t in w)
            self.global_grads(
                alpha_parts, beta_parts, g, dg, dz, stats,
                dw.w_shrink, dw.w_expand, dw.a, dw.m, dw.b_w_shrink, dw.b_w_expand,
            )  # fmt: skip
            self.local_products(x, bits, ds, t, counts, ds_sums)
            self.local_grads(
                t, counts, ds_sums, w.v_shrink, w.v_collapse, w.b_v_shrink,
                dw.v_shrink, dw.v_collapse, dw.b_v_shrink, dw.b_v_collapse,
            )  # fmt: skip
        return dx, dw, d_residual


class Products:
    """The product T = (ds . bits)^T x, whose rows are split between programs."""

    def __init__(self, problem: Problem, ds_parts: int):
        p, tile = problem, problem.config.local_products
        self.problem, self.tile = p, tile
        self.rows = Rows.of(p, tile["ROWS"])
        self.hidden, self.channels = fit(tile["HIDDEN"], p.reduced, 32), fit(tile["CHANNELS"], p.channels)
        self.blocks = cdiv(p.channels, self.channels) * cdiv(p.reduced, self.hidden)
        self.splits = max(1, min(cdiv(PROGRAMS * p.multiprocessors, 2 * self.blocks), self.rows.tiles, 4 * SPLITS))

    def step(self, common: dict[str, object]) -> Step:
        p = self.problem
        return Step(
            gather.local_products,
            self.blocks * self.splits,
            (p.images, p.pixels, p.channels, p.reduced, self.rows.tiles, self.splits, *p.x),
            {**common, **self.rows.constants, "HIDDEN": self.hidden, "CHANNELS": self.channels},
            self.tile,
        )


def run(
    grad_out: Tensor,
    map_factor: Tensor | None,
    x: Tensor,
    w: Weights,
    out: Tensor | None,
    stats: Tensor,
    bits: Tensor,
    squash: str,
    need_input: bool,
    need_weights: bool,
    precision: str,
) -> tuple[Tensor | None, Weights | None, Tensor | None]:
    """(d x, d weights, d residual), as ``reference.backward``."""
    if map_factor is not None:
        map_factor = map_factor.contiguous()
    key = (
        x.shape, x.stride(), x.dtype, x.device, w.w_shrink.shape, tuple(None if t is None else t.dtype for t in w),
        grad_out.stride(), None if out is None else out.stride(), map_factor is not None, squash, precision,
        alignment(grad_out, map_factor, x, out, *w),
    )  # fmt: skip

    def make() -> Backward:
        problem = Problem.of(x, w, squash, precision)
        layout = Layout.of(grad_out, problem.channels_last)
        out_layout = layout if out is None else Layout.of(out, problem.channels_last)
        return Backward(problem, Strides(layout, out_layout, out is not None), map_factor is not None)

    made = plan(key, make)
    return made.run(grad_out, map_factor, x, w, out, stats, bits, need_input, need_weights)
