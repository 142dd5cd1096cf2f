"""The forward pass as a plan: which kernels run with which grids and sizes, and the memory between them."""

from dataclasses import replace

import torch

from ..interface import ForwardCall, Outputs, Weights
from ..saved import mask_words
from . import gate as gates
from . import gather, scale
from .arguments import Gate, Global, Layout, Local
from .indexing import WORD
from .launch import KernelLaunch, Workspace, cdiv, clamp_block, current_stream
from .problem import Problem, Rows, even_parts, spans

FEWEST_UNITS = 64  # hidden units of a program of gather


class Forward:
    """The launches and the workspace of one kind of forward pass."""

    def __init__(self, p: Problem, w: Weights, residual: Layout | None, return_map: bool, save: bool):
        n, c, hw, r = p.images, p.channels, p.pixels, p.reduced
        self.stats, self.relu_mask = (n, p.sizes.width), (n, hw, mask_words(r))
        self.prepare = None if w.v_shrink.dtype == p.dtype else gather.prepare_launch(p)
        self.gather, rows, unit_shares = self._gather(p, save)
        self.shrink, splits = gates.shrink_launch(p, rows)
        self.finish_hidden = gates.finish_launch(p, splits)
        self.expand = gates.expand_launch(p, 0 if self.finish_hidden else splits)
        self.scale, c_blocks = scale.scale_launch(p, residual, return_map, unit_shares)
        self.finish_map = scale.map_launch(p, c_blocks) if return_map else None
        self.workspace = Workspace()
        self.workspace.add(rows.tiles, rows.segments, c)  # pooled sums
        self.workspace.add(splits, n, r)  # z in parts
        self.workspace.add(n, c)  # alpha
        self.workspace.add(n, c)  # beta
        self.workspace.add(c_blocks if return_map else 0, n, hw)  # map parts
        self.workspace.add(unit_shares if unit_shares > 1 else 0, n, hw)  # s in parts
        self.workspace.add(0 if save else n, p.sizes.width)  # stats, where they are not saved

    def _gather(self, p: Problem, save: bool) -> tuple[KernelLaunch, Rows, int]:
        """The launch, its tiles, and between how many programs a tile's hidden units are shared."""
        tile = p.config.gather
        rows = Rows.filling(p, tile["ROWS"])
        units, depth = clamp_block(tile["REDUCED"], p.reduced, int(WORD)), clamp_block(tile["DEPTH"], p.channels)
        while units > FEWEST_UNITS and rows.tiles * cdiv(p.reduced, units // 2) <= p.sms.number:
            units //= 2
        at_once = p.at_once(tile.stages * depth * (rows.size + units))
        span, unit_shares = spans(p.reduced, units, even_parts(rows.tiles, cdiv(p.reduced, units), at_once, 0))
        if units <= FEWEST_UNITS < p.reduced:
            tile = replace(tile, warps=min(tile.warps, 4))
        sizes = {"DEPTH": depth, "REDUCED": units}
        numbers = (p.images, p.sizes, span, p.x)
        whole = p.channels % depth == 0 and p.reduced % units == 0
        flags = {"SAVE": save, "SHARED": unit_shares > 1, "WHOLE": whole, "DENSE": p.dense(p.x), "RUN": p.run(p.x)}
        constants = p.constants | rows.constants | sizes | flags
        return KernelLaunch(gather.gather, rows.tiles * unit_shares, numbers, constants, tile), rows, unit_shares

    def run(self, call: ForwardCall) -> Outputs:
        """As `reference.forward`."""
        x, w, residual, _, return_map, save = call
        out = torch.empty_like(x)
        map_shape = x.shape[0], *x.shape[2:]
        attn_map = torch.empty(map_shape, dtype=torch.float32, device=x.device) if return_map else None
        pool, z_parts, alpha, beta, map_parts, s_parts, stats = self.workspace.allocate(x.device)
        relu_mask = None
        if save:
            stats = torch.empty(self.stats, dtype=torch.float32, device=x.device)
            relu_mask = torch.empty(self.relu_mask, dtype=torch.int32, device=x.device)
        local, gate, stream = Local.of(w), Gate(alpha, beta), current_stream(x.device)
        if self.prepare is not None:
            v_shrink = torch.empty(w.v_shrink.shape, dtype=x.dtype, device=x.device)
            self.prepare(w.v_shrink, v_shrink, stream=stream)
            local = local._replace(v_shrink=v_shrink)
        self.gather(x, local, stats, s_parts, relu_mask, pool, stream=stream)
        self.shrink(pool, w.w_shrink, stats, z_parts, stream=stream)
        if self.finish_hidden is not None:
            self.finish_hidden(z_parts, w.b_w_shrink, stats, stream=stream)
        self.expand(Global.of(w), z_parts, stats, gate, stream=stream)
        self.scale(x, residual, out, stats, s_parts, gate, map_parts, stream=stream)
        if self.finish_map is not None:
            self.finish_map(map_parts, attn_map, stream=stream)
        return Outputs(out, attn_map, stats if save else None, relu_mask)


def make(call: ForwardCall, precision: str) -> Forward:
    """A plan for this call and those like it."""
    problem = Problem.of(call.x, call.w, call.squash, precision)
    residual = None if call.residual is None else Layout.of(call.residual, problem.channels_last)
    return Forward(problem, call.w, residual, call.return_map, call.save)
