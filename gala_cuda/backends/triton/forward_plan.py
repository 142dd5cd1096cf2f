"""The forward pass as a plan: which kernels run with which grids and sizes, and the memory between them."""

import torch

from ..interface import ForwardCall, Outputs, Weights, mask_words
from . import gate, gather, scale
from .launch import KernelLaunch, Layout, Workspace, cdiv, clamp_block
from .problem import GATE, GATE_BLOCK, GATE_DEPTH, GATE_IMAGES, SPLITS, Problem, Rows, shares, spans


class Forward:
    """The launches and the workspace of one kind of forward pass."""

    def __init__(self, p: Problem, w: Weights, residual: Layout | None, return_map: bool, save: bool):
        n, c, hw, r = p.images, p.channels, p.pixels, p.reduced
        self.stats, self.relu_mask = (n, p.width), (n, hw, mask_words(r)) if save else (0,)
        constants = p.constants | {"SAVE": save, "RESIDUAL": residual is not None, "MAP": return_map}
        rows = Rows.of(p, p.config.gather["ROWS"])
        self.prepare = gather.prepare_launch(p, scaled=False) if w.v_shrink.dtype != p.dtype else None
        self.gather = self._gather(p, rows, constants)
        self.shrink, splits = self._shrink(p, rows, constants)
        self.expand = gate.expand_launch(p, splits, saved=False)
        self.scale, c_blocks = self._scale(p, residual, constants)
        self.finish_map = scale.sum_launch(n * hw, c_blocks, root=True) if return_map else None
        self.workspace = Workspace()
        for extents in (
            (rows.tiles, rows.segments, c), (splits, n, r), (n, c), (n, c),  # pool, z in parts, alpha, beta
            (c_blocks if return_map else 0, n, hw),  # the map in parts
        ):  # fmt: skip
            self.workspace.add(*extents)

    def _gather(self, p: Problem, rows: Rows, constants: dict[str, object]) -> KernelLaunch:
        tile = p.config.gather
        sizes = {
            "DEPTH": clamp_block(tile["DEPTH"], p.channels),
            "REDUCED": clamp_block(tile["REDUCED"], p.reduced, 32),
        }
        numbers = (p.images, p.pixels, p.channels, p.reduced, p.width, *p.x)
        return KernelLaunch(gather.gather, rows.tiles, numbers, constants | rows.constants | sizes, tile)

    def _shrink(self, p: Problem, rows: Rows, constants: dict[str, object]) -> tuple[KernelLaunch, int]:
        """The launch, and between how many programs it splits a sum over the channels."""
        depth, block = clamp_block(GATE_DEPTH, p.channels), clamp_block(GATE_BLOCK, p.reduced)
        sizes = {"IMAGES": GATE_IMAGES, "DEPTH": depth, "REDUCED": block}
        span, splits = spans(p.channels, depth, SPLITS)
        programs = splits * cdiv(p.reduced, block) * cdiv(p.images, GATE_IMAGES)
        numbers = (p.images, p.pixels, p.channels, p.reduced, p.width, span)
        return KernelLaunch(gate.shrink, programs, numbers, constants | rows.constants | sizes, GATE), splits

    def _scale(self, p: Problem, residual: Layout | None, constants: dict[str, object]) -> tuple[KernelLaunch, int]:
        """The launch, and how many blocks of channels it has."""
        tile = p.config.scale
        pixels, channels = clamp_block(tile["PIXELS"], p.pixels), clamp_block(tile["CHANNELS"], p.channels)
        c_blocks = cdiv(p.channels, channels)
        span, n_shares = shares(p, pixels, c_blocks)
        numbers = (
            p.images * p.pixels, p.pixels, p.channels, p.width, span, *p.x, *(residual or p.x), *p.out
        )  # fmt: skip
        sizes = {"PIXELS": pixels, "CHANNELS": channels}
        return KernelLaunch(scale.scale, p.images * c_blocks * n_shares, numbers, constants | sizes, tile), c_blocks

    def run(self, call: ForwardCall) -> Outputs:
        """As `reference.forward`."""
        x, w, residual, _, return_map, save = call
        out = torch.empty_like(x)
        map_shape = x.shape[0], *x.shape[2:]
        attn_map = torch.empty(map_shape, dtype=torch.float32, device=x.device) if return_map else None
        stats = torch.empty(self.stats, dtype=torch.float32, device=x.device)
        relu_mask = torch.empty(self.relu_mask, dtype=torch.int32, device=x.device)
        pool, z_parts, alpha, beta, map_parts = self.workspace.allocate(x.device)
        if self.prepare is not None:
            v_shrink = torch.empty(w.v_shrink.shape, dtype=x.dtype, device=x.device)
            self.prepare(w.v_shrink, None, v_shrink)
            w = w._replace(v_shrink=v_shrink)
        self.gather(x, w.v_shrink, w.b_v_shrink, w.v_collapse, w.b_v_collapse, stats, relu_mask, pool)
        self.shrink(pool, w.w_shrink, stats, z_parts)
        self.expand(z_parts, w.w_expand, w.b_w_shrink, w.b_w_expand, w.a, w.m, stats, None, alpha, beta)
        self.scale(x, residual, out, stats, alpha, beta, map_parts)
        if self.finish_map is not None:
            self.finish_map(map_parts, attn_map)
        return Outputs(out, attn_map, stats, relu_mask) if save else Outputs(out, attn_map, None, None)


def make(call: ForwardCall, precision: str) -> Forward:
    """A plan for this call and those like it."""
    problem = Problem.of(call.x, call.w, call.squash, precision)
    residual = None if call.residual is None else Layout.of(call.residual, problem.channels_last)
    return Forward(problem, call.w, residual, call.return_map, call.save)
