"""The backward pass as a plan: which kernels run with which grids and sizes, and the memory between them."""

from typing import NamedTuple

import torch

from ..interface import BackwardCall, Gradients, Weights
from ..saved import mask_words
from . import gate, gate_backward, gather, gather_backward, scale
from .config import Tile
from .indexing import WORD
from .launch import KernelLaunch, Layout, Workspace, cdiv, clamp_block
from .problem import GATE, NO_TUNING, Problem, Rows, shares, spans

GRADS_IMAGES, GRADS_BLOCK = 32, 32  # images in a step of global_grads; hidden units and channels in a block of it
MOST_SPLITS = 32  # at most so many parts of the sum of local_products
GATE_GRADS = Tile((), warps=4, stages=1)
WEIGH = Tile((("ROWS", 16), ("WORDS", 8)), warps=4, stages=1)


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
        self.words = mask_words(r)
        self.weighted = n * hw, self.words * int(WORD)
        self.expand = gate.expand_launch(p, gate=True)
        self.scale = KernelLaunch(
            scale.scale_backward,
            n * c_blocks * n_shares,
            (n, hw, c, p.width, span, *strides.grad_out, *p.x, *strides.out, *p.out),
            p.constants | sizes | {"RESIDUAL": strides.residual, "MAP": with_map, "WHOLE": c % sizes["CHANNELS"] == 0},
            tile,
        )
        self.weigh = self._weigh(p, c_blocks)
        self.prepare = gather.prepare_launch(p, scaled=True)
        self.grad_x = self._grad_x(p, p.out if strides.residual else strides.grad_out)
        self._gate_launches(p, n_shares)
        self.local_products, splits = self._local_products(p)
        sizes = {"CHANNELS": clamp_block(1024, c), "SPLITS": splits}
        self.local_grads = KernelLaunch(gather_backward.local_grads, r, (c, r), p.constants | sizes, NO_TUNING)
        self.workspace = Workspace()
        for extents in (
            (n, c), (n, c), (n, c),  # g, alpha, beta
            (n_shares, n, c), (n_shares, n, c), (c_blocks, n, hw), (n, hw),  # d alpha, d beta and ds in parts, ds
            (n, c), (self.splits, n, r), (n, r), (n, c),  # dg, dz in parts, dz, dp
            (splits, r, c), (splits, r), (splits,),  # T, counts, sums of ds
        ):  # fmt: skip
            self.workspace.add(*extents)

    def _weigh(self, p: Problem, parts: int) -> KernelLaunch:
        rows = p.images * p.pixels
        sizes = {"ROWS": WEIGH["ROWS"], "WORDS": clamp_block(WEIGH["WORDS"], self.words, least=1)}
        programs = cdiv(rows, WEIGH["ROWS"])
        return KernelLaunch(gather_backward.weigh_mask, programs, (rows, parts, self.words), sizes, WEIGH)

    def _grad_x(self, p: Problem, direct: Layout) -> KernelLaunch:
        tile = p.config.grad_x
        rows = Rows.filling(p, tile["ROWS"])
        sizes = {
            "DEPTH": clamp_block(tile["DEPTH"], p.reduced, 32),
            "CHANNELS": clamp_block(tile["CHANNELS"], p.channels),
        }
        span, n_spans = spans(p.channels, sizes["CHANNELS"], cdiv(p.num_sms, rows.tiles))
        programs = rows.tiles * n_spans
        whole = p.channels % sizes["CHANNELS"] == 0 and p.reduced % sizes["DEPTH"] == 0
        flags = {"HELD": sizes["DEPTH"] >= p.reduced, "WHOLE": whole, "DENSE": p.dense(direct, p.out)}
        constants = p.constants | rows.constants | sizes | flags
        numbers = (p.images, p.pixels, p.channels, p.reduced, self.weighted[1], p.width, span, *direct, *p.out)
        return KernelLaunch(gather_backward.grad_x, programs, numbers, constants, tile)

    def _gate_launches(self, p: Problem, parts: int) -> None:
        n, c, r = p.images, p.channels, p.reduced
        numbers = (n, p.pixels, c, r, p.width)
        constants = p.constants | {"PARTS": parts}
        sizes, span, self.splits = gate.split_sizes(p)
        programs = gate.split_programs(p, sizes["REDUCED"], self.splits)
        self.grad_hidden = KernelLaunch(gate_backward.grad_hidden, programs, (n, c, r, span), constants | sizes, GATE)
        self.finish_hidden = gate.finish_launch(p, self.splits, backward=True)
        sizes, programs = gate.expand_sizes(p)
        self.grad_pool = KernelLaunch(gate_backward.grad_pool, programs, numbers[:4], constants | sizes, GATE)
        blocks = {"REDUCED": clamp_block(GRADS_BLOCK, r), "CHANNELS": clamp_block(GRADS_BLOCK, c)}
        blocks["IMAGES"] = clamp_block(GRADS_IMAGES, n)
        programs = cdiv(c, blocks["CHANNELS"]) * cdiv(r, blocks["REDUCED"])
        self.global_grads = KernelLaunch(gate_backward.global_grads, programs, numbers, constants | blocks, GATE_GRADS)

    def _local_products(self, p: Problem) -> tuple[KernelLaunch, int]:
        """The launch, and the number of programs between which the rows of one block of T are split."""
        tile = p.config.local_products
        rows = Rows.of(p, tile["ROWS"])
        sizes = {
            "REDUCED": clamp_block(tile["REDUCED"], p.reduced, 32),
            "CHANNELS": clamp_block(tile["CHANNELS"], p.channels),
        }
        blocks = cdiv(p.channels, sizes["CHANNELS"]) * cdiv(p.reduced, sizes["REDUCED"])
        splits = max(1, min(p.num_sms // blocks, rows.tiles, MOST_SPLITS))
        numbers = (p.images, p.pixels, p.channels, p.reduced, self.weighted[1], rows.tiles, splits, *p.x)
        whole = p.channels % sizes["CHANNELS"] == 0 and p.reduced % sizes["REDUCED"] == 0
        constants = p.constants | rows.constants | sizes | {"WHOLE": whole, "DENSE": p.dense(p.x)}
        return KernelLaunch(gather_backward.local_products, blocks * splits, numbers, constants, tile), splits

    def run(self, call: BackwardCall) -> Gradients:
        grad_out, map_factor, x, w, out, stats, relu_mask, _, need_input, need_weights = call
        arrays = self.workspace.allocate(x.device)
        g, alpha, beta, alpha_parts, beta_parts, ds_parts, ds, dg, dz_parts, dz, dp, t, counts, ds_sums = arrays
        grad_residual = None if out is None else torch.empty_like(x)
        weighted = torch.empty(self.weighted, dtype=x.dtype, device=x.device)
        self.expand(w.w_expand, w.b_w_expand, w.a, w.m, stats, g, alpha, beta)
        self.scale(grad_out, x, out, grad_residual, stats, map_factor, alpha, beta, alpha_parts, beta_parts, ds_parts)
        self.weigh(ds_parts, relu_mask, ds, weighted)
        self.grad_hidden(alpha_parts, beta_parts, w.a, w.m, w.w_expand, dg, dz_parts)
        self.finish_hidden(dz_parts, None, stats, dz)
        grad_x = grad_w = None
        if need_input:
            shrink = torch.empty(w.v_shrink.shape, dtype=x.dtype, device=x.device)
            self.prepare(w.v_shrink, w.v_collapse, shrink)
            self.grad_pool(w.w_shrink, dz, dp)
            grad_x = torch.empty_like(x)
            direct = grad_out if grad_residual is None else grad_residual
            self.grad_x(direct, grad_x, shrink, stats, weighted, alpha, beta, dp)
        if need_weights:
            grad_w = Weights._make(None if t is None else torch.empty_like(t) for t in w)
            self.global_grads(
                alpha_parts, beta_parts, g, dg, dz, stats,
                grad_w.w_shrink, grad_w.w_expand, grad_w.a, grad_w.m, grad_w.b_w_shrink, grad_w.b_w_expand,
            )  # fmt: skip
            self.local_products(x, weighted, ds, t, counts, ds_sums)
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
