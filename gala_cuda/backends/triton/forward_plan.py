"""The forward pass as a plan, in two forms: launches for each stage, or one launch of tickets for all stages."""

import torch
from torch import Tensor

from ..interface import ForwardCall, Outputs, Weights, mask_words
from . import gate, gather, scale, tickets
from .config import Config, Tile, forced_form
from .launch import KernelLaunch, Layout, Workspace, cdiv, clamp_block
from .problem import (
    GATE,
    GATE_BLOCK,
    GATE_DEPTH,
    GATE_IMAGES,
    SPLITS,
    Problem,
    Rows,
    shares,
    spans,
)


class Stages:
    """How each stage's work on `images` images is cut into tiles, given the blocks of gather and of scale."""

    def __init__(self, p: Problem, images: int, tile: Tile, scale_tile: Tile):
        c, r = p.channels, p.reduced
        self.images = images
        self.rows = Rows.of(p, tile["ROWS"], images)
        self.gather = {"DEPTH": clamp_block(tile["DEPTH"], c), "REDUCED": clamp_block(tile["REDUCED"], r, 32)}
        self.shrink = {"DEPTH": clamp_block(GATE_DEPTH, c), "REDUCED": clamp_block(GATE_BLOCK, r)}
        self.gate_span, self.splits = spans(c, self.shrink["DEPTH"], SPLITS)
        self.expand = {"DEPTH": clamp_block(GATE_DEPTH, r), "CHANNELS": clamp_block(GATE_BLOCK, c)}
        self.scale = {
            "PIXELS": clamp_block(scale_tile["PIXELS"], p.pixels),
            "CHANNELS": clamp_block(scale_tile["CHANNELS"], c),
        }
        self.c_blocks = cdiv(c, self.scale["CHANNELS"])
        self.scale_span, self.shares = shares(p, self.scale["PIXELS"], self.c_blocks)
        blocks = cdiv(images, GATE_IMAGES)
        self.tiles = (
            self.rows.tiles,
            self.splits * cdiv(r, self.shrink["REDUCED"]) * blocks,
            cdiv(c, self.expand["CHANNELS"]) * blocks,
            images * self.c_blocks * self.shares,
        )


class Forward:
    """The launches and the workspace of one kind of forward pass."""

    def __init__(self, p: Problem, w: Weights, residual: Layout | None, return_map: bool, save: bool):
        n, c, hw, r = p.images, p.channels, p.pixels, p.reduced
        self.stats, self.relu_mask = (n, p.width), (n, hw, mask_words(r)) if save else (0,)
        self.constants = p.constants | {"SAVE": save, "RESIDUAL": residual is not None, "MAP": return_map}
        self.strides = (*p.x, *(residual or p.x), *p.out)
        self.workspace = Workspace()
        self.prepare = self.finish_map = None
        if w.v_shrink.dtype != p.dtype:
            self.prepare = gather.prepare_launch(p, scaled=False)
        c_blocks = self._plan(p)
        if return_map:
            self.finish_map = scale.sum_launch(n * hw, c_blocks, root=True)
        self.workspace.add(n, c)  # alpha
        self.workspace.add(n, c)  # beta
        self.workspace.add(c_blocks if return_map else 0, n, hw)  # map parts

    def _plan(self, p: Problem) -> int:
        """Makes the launches, adds pool and z parts to the workspace, and returns the number of blocks of channels."""
        n, c, hw, r = p.images, p.channels, p.pixels, p.reduced
        s, config, constants = Stages(p, n, p.config.gather, p.config.scale), p.config, self.constants
        constants = constants | s.rows.constants | {"IMAGES": GATE_IMAGES}
        numbers: tuple[int, ...] = (n, hw, c, r, p.width)
        gather_tiles, shrink_tiles, _, scale_tiles = s.tiles
        self.workspace.add(s.rows.tiles, s.rows.segments, c)
        self.workspace.add(s.splits, n, r)
        self.gather = KernelLaunch(gather.gather, gather_tiles, (*numbers, *p.x), constants | s.gather, config.gather)
        self.shrink = KernelLaunch(gate.shrink, shrink_tiles, (*numbers, s.gate_span), constants | s.shrink, GATE)
        self.expand = gate.expand_launch(p, s.splits, saved=False)
        numbers = (n * hw, hw, c, p.width, s.scale_span, *self.strides)
        self.scale = KernelLaunch(scale.scale, scale_tiles, numbers, constants | s.scale, config.scale)
        return s.c_blocks

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
        self._stages(x, w, residual, out, stats, relu_mask, pool, z_parts, alpha, beta, map_parts)
        if self.finish_map is not None:
            self.finish_map(map_parts, attn_map)
        return Outputs(out, attn_map, stats, relu_mask) if save else Outputs(out, attn_map, None, None)

    def _stages(self, x, w, residual, out, stats, relu_mask, pool, z_parts, alpha, beta, map_parts) -> None:
        self.gather(None, x, w.v_shrink, w.b_v_shrink, w.v_collapse, w.b_v_collapse, stats, relu_mask, pool)
        self.shrink(None, pool, w.w_shrink, stats, z_parts)
        self.expand(None, z_parts, w.w_expand, w.b_w_shrink, w.b_w_expand, w.a, w.m, stats, None, alpha, beta)
        self.scale(None, x, residual, out, stats, alpha, beta, map_parts)


class TicketForward(Forward):
    """The same pass in one launch; the module `tickets` says how."""

    def _plan(self, p: Problem) -> int:
        n, c, hw, r = p.images, p.channels, p.pixels, p.reduced
        bytes_of_image = c * hw * p.dtype.itemsize
        chunk = max(1, min(n, p.config.chunk_bytes // bytes_of_image))
        firsts = range(0, n, chunk)
        tile = p.config.tickets
        assert tile is not None
        cut = [Stages(p, min(chunk, n - first), tile, tile) for first in firsts]
        s = cut[0]  # the largest; the chunks differ in their number of images alone
        self.schedule = tickets.on_device(tuple(stages.tiles for stages in cut), p.device)
        self.chunks = len(cut)
        pool_chunk, z_chunk = s.rows.tiles * s.rows.segments * c, s.splits * chunk * r
        self.workspace.add(self.chunks, pool_chunk)
        self.workspace.add(self.chunks, z_chunk)
        sizes = {
            **s.gather,
            **{f"SHRINK_{name}": size for name, size in s.shrink.items()},
            **{f"EXPAND_{name}": size for name, size in s.expand.items()},
            **{f"SCALE_{name}": size for name, size in s.scale.items()},
        }
        self.all = KernelLaunch(
            tickets.forward_tickets,
            min(len(self.schedule), p.num_sms),
            (
                len(self.schedule), n, chunk, pool_chunk, z_chunk, n * hw, hw, c, r, p.width, s.gate_span, s.scale_span,
                *self.strides,
            ),
            self.constants | s.rows.constants | sizes | {"IMAGES": GATE_IMAGES, "SPLITS": s.splits},
            tile,
        )  # fmt: skip
        return s.c_blocks

    def _stages(self, x, w, residual, out, stats, relu_mask, pool, z_parts, alpha, beta, map_parts) -> None:
        tickets.keep_for_graph(self.schedule)
        self.all(
            self.schedule, tickets.counters(self.chunks, x.device), x, w.v_shrink, residual, out, w.w_shrink,
            w.w_expand, w.v_collapse, w.a, w.m, w.b_w_shrink, w.b_w_expand, w.b_v_shrink, w.b_v_collapse, stats,
            relu_mask, pool, z_parts, alpha, beta, map_parts,
        )  # fmt: skip


def make(call: ForwardCall, precision: str) -> Forward:
    """A plan for this call and those like it, in the form that the table says."""
    problem = Problem.of(call.x, call.w, call.squash, precision)
    residual = None if call.residual is None else Layout.of(call.residual, problem.channels_last)
    form = TicketForward if _takes_tickets(problem.config, call.x) else Forward
    return form(problem, call.w, residual, call.return_map, call.save)


def _takes_tickets(config: Config, x: Tensor) -> bool:
    if config.tickets is None:
        return False
    if forced_form() is not None:
        return forced_form() == "tickets"
    return config.tickets_from is not None and x.nbytes >= config.tickets_from
