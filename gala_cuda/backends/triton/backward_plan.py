"""The backward pass as a plan: which kernels run with which grids and sizes, and the memory between them."""

import itertools
from typing import NamedTuple

import torch

from ..interface import BackwardCall, Gradients, Weights
from ..saved import mask_words
from . import gate as gates
from . import gate_backward, gather, gather_backward, scale, together
from .arguments import Gate, GateGrads, GateParts, Global, Layout, Local, Products
from .indexing import WORD
from .launch import KernelLaunch, Workspace, cdiv, clamp_block, current_stream
from .problem import GATE, NO_TUNING, Problem, Rows, even_parts, shares, spans

FINISH_UNITS = 256  # hidden units in a program of finish_grad_hidden
GRADS_IMAGES = 32  # in a step of global_grads
SUMS_IMAGES = 8  # in one of sums_of_channels: LLVM of Triton 3.8 crashed vectorising its sums over 32
GRADS_UNITS, GRADS_CHANNELS = 32, (64, 32)  # a block of it: the more channels where that is work for all of the GPU
LOCAL_COLUMNS, LOCAL_SIZE = 1024, 512  # channels, and with fewer of them weights, in a step of local_grads
BEGINNING = 2  # a program of grad_x begins as long as it then takes for so many blocks of channels
MOST_SPLITS = 64  # at most so many parts of the sum of local_products
WEIGH_WORDS, WEIGH_SIZE = 8, 128  # words of a pixel's mask, and of all pixels' masks, in a step of weigh_mask


class Form(NamedTuple):
    """What a backward pass is given beside x, and what it makes. Without a residual, `out` has no meaning."""

    grad_out: Layout
    out: Layout
    residual: bool
    map: bool
    need_input: bool = True
    need_weights: bool = True


class Backward:
    """The launches and the workspace of one kind of backward pass."""

    def __init__(self, p: Problem, form: Form):
        n, c, hw, r = p.images, p.channels, p.pixels, p.reduced
        self.words = mask_words(r)
        self.weighted = n * hw, self.words * int(WORD)
        self.expand = self._expand(p, form)
        self.scale, c_blocks, n_shares = self._scale(p, form)
        self.grad_hidden, splits = self._grad_hidden(p, n_shares)
        self.finish = self._finish(p, splits, c_blocks)
        self.local_products, t_splits = self._local_products(p)
        self.small_grads = self._small_grads(p, form, n_shares, t_splits)
        self.grad_x = self._grad_x(p, p.out if form.residual else form.grad_out)
        self.workspace = Workspace()
        for extents in (
            (n, c), (n, c), (n, c),  # g, alpha, beta
            (n_shares, n, c), (n_shares, n, c), (c_blocks, n, hw), (n, hw),  # d alpha, d beta and ds in parts, ds
            (n, c), (splits, n, r), (n, r), (n, c),  # dg, dz in parts, dz, dp
            (t_splits, r, c), (t_splits, r), (t_splits,),  # T, counts, sums of ds
        ):  # fmt: skip
            self.workspace.add(*extents)

    def _expand(self, p: Problem, form: Form) -> KernelLaunch:
        sizes, first = gates.expand_sizes(p)
        columns, second = gather.prepare_sizes(p)
        numbers = (p.images, p.sizes, first)
        constants = p.constants | sizes | columns | {"INPUT": form.need_input}
        programs = first, second if form.need_input else 0
        return KernelLaunch(together.expand_and_prepare, programs, numbers, constants, GATE)

    def _scale(self, p: Problem, form: Form) -> tuple[KernelLaunch, int, int]:
        """The launch, the number of blocks of channels, and that of shares of an image's pixels."""
        n, c, tile = p.images, p.channels, p.config.scale_backward
        sizes = {"PIXELS": clamp_block(tile["PIXELS"], p.pixels), "CHANNELS": clamp_block(tile["CHANNELS"], c)}
        c_blocks = cdiv(c, sizes["CHANNELS"])
        span, n_shares = shares(p, sizes["PIXELS"], c_blocks)
        numbers = (n, p.sizes, span, form.grad_out, p.x, form.out, p.out)
        flags: dict[str, object] = {"RESIDUAL": form.residual, "MAP": form.map, "WHOLE": c % sizes["CHANNELS"] == 0}
        flags["RUN"] = p.run(form.grad_out, p.x, p.out, *((form.out,) if form.residual else ()))
        launch = KernelLaunch(scale.scale_backward, n * c_blocks * n_shares, numbers, p.constants | sizes | flags, tile)
        return launch, c_blocks, n_shares

    def _grad_hidden(self, p: Problem, parts: int) -> tuple[KernelLaunch, int]:
        """The launch, given the number of parts of d alpha and d beta, and the number of those of dz."""
        sizes, span, splits = gates.split_sizes(p)
        programs = gates.split_programs(p, sizes["REDUCED"], splits)
        constants = p.constants | sizes | {"PARTS": parts}
        numbers = (p.images, p.sizes, span)
        return KernelLaunch(gate_backward.grad_hidden, programs, numbers, constants, GATE), splits

    def _finish(self, p: Problem, splits: int, ds_parts: int) -> KernelLaunch:
        """The launch that makes dz and ds of so many parts."""
        rows, words = p.images * p.pixels, clamp_block(WEIGH_WORDS, self.words, least=1)
        reduced = clamp_block(FINISH_UNITS, p.reduced)
        sizes = {"SPLITS": splits, "IMAGES": FINISH_UNITS // reduced, "REDUCED": reduced}
        sizes |= {"ROWS": WEIGH_SIZE // words, "WORDS": words}
        programs = cdiv(p.images, sizes["IMAGES"]) * cdiv(p.reduced, reduced), cdiv(rows, sizes["ROWS"])
        numbers = (p.images, p.sizes, programs[0], rows, ds_parts, self.words)
        return KernelLaunch(together.finish_and_weigh, programs, numbers, p.constants | sizes, NO_TUNING)

    def _small_grads(self, p: Problem, form: Form, parts: int, splits: int) -> KernelLaunch:
        """The launch, given in how many parts d alpha, d beta, and T are."""
        n, c, r = p.images, p.channels, p.reduced
        sizes, pool = gates.expand_sizes(p)
        units, (more, fewer) = clamp_block(GRADS_UNITS, r), GRADS_CHANNELS
        block = clamp_block(more if cdiv(c, more) * cdiv(r, units) > p.sms.number else fewer, c)
        columns = clamp_block(LOCAL_COLUMNS, c)
        blocks = {
            "GRADS_REDUCED": units,
            "GRADS_CHANNELS": block,
            "GRADS_IMAGES": clamp_block(GRADS_IMAGES, n),
            "SUMS_IMAGES": clamp_block(SUMS_IMAGES, n, least=1),
            "COLS": columns,
            "UNITS": max(1, LOCAL_SIZE // columns),
        }
        weights = cdiv(c, block) * cdiv(r, blocks["GRADS_REDUCED"]), cdiv(c, block), cdiv(r, blocks["UNITS"])
        programs = pool * form.need_input, *(each * form.need_weights for each in weights)
        ends = tuple(itertools.accumulate(programs[:3]))
        flags = {"INPUT": form.need_input, "WEIGHTS": form.need_weights, "PARTS": parts, "SPLITS": splits}
        constants = p.constants | sizes | blocks | flags
        return KernelLaunch(together.small_grads, programs, (n, p.sizes, *ends), constants, GATE)

    def _grad_x(self, p: Problem, direct: Layout) -> KernelLaunch:
        tile = p.config.grad_x
        rows = Rows.filling(p, tile["ROWS"])
        depth, channels = clamp_block(tile["DEPTH"], p.reduced, 32), clamp_block(tile["CHANNELS"], p.channels)
        held, stages = depth >= p.reduced, tile.stages
        kept = rows.size * depth * (1 if held else stages) + channels * (rows.size + depth) * stages
        parts = even_parts(rows.tiles, cdiv(p.channels, channels), p.at_once(kept), BEGINNING)
        span, n_spans = spans(p.channels, channels, parts)
        programs = rows.tiles * n_spans
        flags = {
            "HELD": held,
            "WHOLE": p.channels % channels == 0 and p.reduced % depth == 0,
            "DENSE": p.dense(direct, p.out),
            "RUN": p.run(direct, p.out),
        }
        constants = p.constants | rows.constants | flags | {"DEPTH": depth, "CHANNELS": channels}
        numbers = (p.images, p.sizes, self.weighted[1], span, direct, p.out)
        return KernelLaunch(gather_backward.grad_x, programs, numbers, constants, tile)

    def _local_products(self, p: Problem) -> tuple[KernelLaunch, int]:
        """The launch, and the number of programs between which the rows of one block of T are split."""
        tile = p.config.local_products
        rows = Rows.of(p, tile["ROWS"])
        sizes = {
            "REDUCED": clamp_block(tile["REDUCED"], p.reduced, 32),
            "CHANNELS": clamp_block(tile["CHANNELS"], p.channels),
        }
        blocks = cdiv(p.channels, sizes["CHANNELS"]) * cdiv(p.reduced, sizes["REDUCED"])
        splits = max(1, min(p.sms.number // blocks, rows.tiles, MOST_SPLITS))
        numbers = (p.images, p.sizes, self.weighted[1], rows.tiles, splits, p.x)
        whole = p.channels % sizes["CHANNELS"] == 0 and p.reduced % sizes["REDUCED"] == 0
        constants = p.constants | rows.constants | sizes | {"WHOLE": whole, "DENSE": p.dense(p.x), "RUN": p.run(p.x)}
        return KernelLaunch(gather_backward.local_products, blocks * splits, numbers, constants, tile), splits

    def run(self, call: BackwardCall) -> Gradients:
        grad_out, map_factor, x, w, out, stats, relu_mask, _, need_input, need_weights = call
        g, alpha, beta, alpha_parts, beta_parts, ds_parts, ds, dg, dz_parts, dz, dp, *products = (
            self.workspace.allocate(x.device)
        )
        gate, parts, gate_grads = Gate(alpha, beta, g), GateParts(alpha_parts, beta_parts), GateGrads(dg, dz, dp)
        weights, local, sums, stream = Global.of(w), Local.of(w), Products(*products), current_stream(x.device)
        grad_residual = None if out is None else torch.empty_like(x)
        weighted = torch.empty(self.weighted, dtype=x.dtype, device=x.device)
        shrink = torch.empty(w.v_shrink.shape, dtype=x.dtype, device=x.device)
        self.expand(weights, stats, gate, local, shrink, stream=stream)
        self.scale(grad_out, x, out, grad_residual, stats, map_factor, gate, parts, ds_parts, stream=stream)
        self.grad_hidden(parts, weights, dg, dz_parts, stream=stream)
        self.finish(ds_parts, relu_mask, ds, weighted, dz_parts, stats, dz, stream=stream)
        grads = Weights._make(None if t is None or not need_weights else torch.empty_like(t) for t in w)
        if need_weights:
            self.local_products(x, weighted, ds, sums, stream=stream)
        if need_input or need_weights:
            self.small_grads(
                parts, gate, gate_grads, stats, weights, Global.of(grads), sums, local, Local.of(grads), stream=stream
            )
        grad_x = torch.empty_like(x) if need_input else None
        if need_input:
            direct = grad_out if grad_residual is None else grad_residual
            self.grad_x(direct, grad_x, shrink, stats, weighted, gate, dp, stream=stream)
        return Gradients(grad_x, grads if need_weights else None, grad_residual)


def make(call: BackwardCall, precision: str) -> Backward:
    """A plan for this call and those like it."""
    problem = Problem.of(call.x, call.w, call.squash, precision)
    layout = Layout.of(call.grad_out, problem.channels_last)
    out = layout if call.out is None else Layout.of(call.out, problem.channels_last)
    given = call.out is not None, call.map_factor is not None
    return Backward(problem, Form(layout, out, *given, call.need_input, call.need_weights))
