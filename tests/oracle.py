"""What the tests compare with: the paper's formulas, random problems, float64 results and one table of tolerances."""

import math
from collections.abc import Collection
from typing import NamedTuple

import torch
from torch import Tensor

from gala_cuda.backends import reference
from gala_cuda.backends.interface import Weights, accumulation_dtype, weight_shapes

SAFETY = 4
LAYOUTS = (
    "contiguous",
    "contiguous/misaligned",
    "contiguous/slice_n",
    "contiguous/slice_c",
    "contiguous/crop",
    "channels_last",
    "channels_last/misaligned",
    "channels_last/slice_n",
    "channels_last/slice_c",
    "channels_last/crop",
)


def tolerance(result: torch.dtype, dtype: torch.dtype, terms: int) -> float:
    """The largest allowed error of a ``result`` computed from x of ``dtype``, relative to the result's scale.

    eps(result) / 2 is the rounding of the result itself. A sum of ``terms`` numbers of random sign, added one after
    the other, carries a relative error of about eps sqrt(terms) / 5 of the accumulation dtype; some five such sums feed
    each gradient, and SAFETY = 4 standard deviations cover the largest of many elements. ``terms`` is the longest sum,
    max(C, N H W). For float64 x that counts twice, since the float64 it is compared with errs as much. At 256 terms:
    float64 2.9e-14, float32 7.7e-6, bfloat16 3.9e-3, float16 5.0e-4.
    """
    sources = 2 if dtype == torch.float64 else 1
    accumulated = torch.finfo(accumulation_dtype(dtype)).eps
    return torch.finfo(result).eps / 2 + SAFETY * sources * accumulated * math.sqrt(terms)


class Case(NamedTuple):
    """What a random problem looks like. ``parameters`` is the weights' dtype, x's where None."""

    shape: tuple[int, int, int, int]  # N, C, H, W
    reduced: int
    dtype: torch.dtype = torch.float32
    parameters: torch.dtype | None = None
    layout: str = "contiguous"
    squash: str = "tanh"
    bias: bool = False
    residual: bool = False
    map: bool = False

    @property
    def terms(self) -> int:
        n, c, height, width = self.shape
        return max(1, c, n * height * width)


class Problem(NamedTuple):
    """The operator's inputs and the incoming gradients; ``grad_map`` is None where no map is asked for."""

    x: Tensor
    w: Weights
    residual: Tensor | None
    squash: str
    grad_out: Tensor
    grad_map: Tensor | None


def paper(x: Tensor, w: Weights, residual: Tensor | None, squash: str) -> tuple[Tensor, Tensor]:
    """(out, map) as section 3 writes them: image by image, with G*, S*, their sum and product spelt out."""
    outs, maps = [], []
    for i, u in enumerate(x):  # u [C, H, W]
        p = u.flatten(1).sum(1) / (u.shape[1] * u.shape[2])
        hidden = torch.einsum("rc,c->r", w.w_shrink, p)
        hidden = (hidden if w.b_w_shrink is None else hidden + w.b_w_shrink).clamp(min=0)
        g = torch.einsum("cr,r->c", w.w_expand, hidden)
        g = g if w.b_w_expand is None else g + w.b_w_expand
        local = torch.einsum("rc,chw->rhw", w.v_shrink, u)
        local = (local if w.b_v_shrink is None else local + w.b_v_shrink[:, None, None]).clamp(min=0)
        s = torch.einsum("r,rhw->hw", w.v_collapse, local)
        s = s if w.b_v_collapse is None else s + w.b_v_collapse
        g_star, s_star = g[:, None, None].expand_as(u), s[None].expand_as(u)
        mixed = w.a[:, None, None] * (g_star + s_star) + w.m[:, None, None] * (g_star * s_star)
        attended = (mixed.exp() - (-mixed).exp()) / (mixed.exp() + (-mixed).exp())
        if squash == "sigmoid":
            attended = 1 / (1 + (-mixed).exp())
        out = u * attended
        outs.append(out if residual is None else (out + residual[i]).clamp(min=0))
        maps.append(attended.square().sum(0).sqrt())
    return torch.stack(outs), torch.stack(maps)


def laid_out(values: Tensor, layout: str) -> Tensor:
    """A copy of values [N, C, H, W] in the named layout, inside memory that otherwise holds NaN."""
    order, _, place = layout.partition("/")
    n, c, height, width = values.shape
    whole = slice(None)
    padded, index = {
        "slice_n": ((2 * n + 1, c, height, width), (slice(1, 2 * n, 2),)),
        "slice_c": ((n, c + 3, height, width), (whole, slice(1, c + 1))),
        "crop": ((n, c, height + 2, width + 3), (whole, whole, slice(1, height + 1), slice(2, width + 2))),
    }.get(place, (tuple(values.shape), (whole,)))
    flank = 1 if place == "misaligned" else 0
    memory = values.new_full((math.prod(padded) + 2 * flank,), torch.nan)
    body = memory[flank : memory.numel() - flank]
    if order == "channels_last":
        full = body.view(padded[0], padded[2], padded[3], padded[1]).permute(0, 3, 1, 2)
    else:
        full = body.view(padded)
    return full[index].copy_(values)


def draw(case: Case, seed: int = 0, *, kinks: bool = False) -> Problem:
    """A random problem away from kinks: float64 and the tested precision agree on the sign before every ReLU.

    Without that, one hidden unit within a rounding error of 0 makes a gradient differ by a whole term. Large problems
    always have such units: with ``kinks`` they are taken as they come.
    """
    generator = torch.Generator().manual_seed(seed)
    if kinks:
        return _draw(case, generator)
    for _ in range(100):
        problem = _draw(case, generator)
        if _away_from_kinks(problem, tolerance(accumulation_dtype(case.dtype), case.dtype, case.terms)):
            return problem
    raise ValueError(f"no problem away from kinks in 100 draws of {case}; choose smaller sizes")


def _draw(case: Case, generator: torch.Generator) -> Problem:
    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    n, c, height, width = case.shape
    w = Weights(
        *(
            (normal(*shape) / math.sqrt(shape[-1] if len(shape) == 2 or name == "v_collapse" else 1)).to(
                case.parameters or case.dtype
            )
            if case.bias or not name.startswith("b_")
            else None
            for name, shape in weight_shapes(c, case.reduced)._asdict().items()
        )
    )
    x = laid_out((normal(*case.shape) + normal(n, c, 1, 1)).to(case.dtype), case.layout)
    residual = None
    if case.residual:
        values = normal(*case.shape)
        product = x.double() * reference.attention(x.double(), doubled(w), case.squash)
        near = (values + product).abs() < 2 * torch.finfo(case.dtype).eps
        residual = laid_out(torch.where(near, values + 1, values).to(case.dtype), case.layout)
    order = case.layout.partition("/")[0]
    grad_out = laid_out(normal(*case.shape).to(case.dtype), order)
    grad_map = normal(n, height, width).to(accumulation_dtype(case.dtype)) if case.map else None
    return Problem(x, w, residual, case.squash, grad_out, grad_map)


def _away_from_kinks(problem: Problem, margin: float) -> bool:
    x, w = problem.x.double(), doubled(problem.w)
    z = torch.nn.functional.linear(x.mean((2, 3)), w.w_shrink, w.b_w_shrink)
    h = torch.nn.functional.conv2d(x, w.v_shrink[:, :, None, None], w.b_v_shrink)
    return all((t.abs() > margin * t.abs().amax()).all() for t in (z, h) if t.numel())


def doubled(w: Weights) -> Weights:
    return Weights(*(None if t is None else t.double() for t in w))


def operator(backend: str):
    """The operator itself: unlike ``gala_cuda.gala``, "reference" runs the reference's stages and saved tensors."""

    def call(x: Tensor, w: Weights, residual: Tensor | None, squash: str, return_map: bool) -> tuple[Tensor, Tensor]:
        return torch.ops.gala_cuda.gala(x, *w, residual, squash, return_map, False, backend)[:2]

    return call


def composite(x: Tensor, w: Weights, residual: Tensor | None, squash: str, return_map: bool) -> tuple[Tensor, Tensor]:
    return reference.apply(x, w, residual, squash)


def flat_inputs(problem: Problem) -> list[Tensor]:
    """The tensors that are there, as leaves that require gradients."""
    return [t.detach().requires_grad_() for t in (problem.x, *problem.w, problem.residual) if t is not None]


def on_flat_inputs(call, problem: Problem):
    """``call`` as a function of the tensors of ``flat_inputs``, giving out, or out and map."""
    present = [t is not None for t in (*problem.w, problem.residual)]
    with_map = problem.grad_map is not None

    def function(x, *tensors):
        given = iter(tensors)
        *w, residual = (next(given) if there else None for there in present)
        outputs = call(x, Weights(*w), residual, problem.squash, with_map)
        return tuple(outputs[: 1 + with_map])

    return function


def results(call, problem: Problem) -> dict[str, Tensor]:
    """``out``, ``map`` and the gradient of every input, by name, strides of the inputs kept."""

    def leaf(t: Tensor | None) -> Tensor | None:
        return None if t is None else t.detach().requires_grad_()

    x, residual, w = leaf(problem.x), leaf(problem.residual), Weights(*map(leaf, problem.w))
    out, attn_map = call(x, w, residual, problem.squash, problem.grad_map is not None)
    named = {"out": out, "map": attn_map}
    directions = {"out": problem.grad_out, "map": problem.grad_map}
    wanted = [name for name in named if directions[name] is not None]
    leaves = {name: t for name, t in {"x": x, "residual": residual, **w._asdict()}.items() if t is not None}
    grads = torch.autograd.grad(
        [named[name] for name in wanted], list(leaves.values()), [directions[name] for name in wanted]
    )
    return {
        **{name: named[name].detach() for name in wanted},
        **{f"grad {name}": grad for name, grad in zip(leaves, grads, strict=True)},
    }


def exact(problem: Problem) -> dict[str, Tensor]:
    """``results`` of the reference in float64, by autograd."""
    x, w, residual, squash, grad_out, grad_map = problem
    x, residual, grad_out, grad_map = (None if t is None else t.double() for t in (x, residual, grad_out, grad_map))
    return results(composite, Problem(x, doubled(w), residual, squash, grad_out, grad_map))


def errors(got: dict[str, Tensor], problem: Problem, case: Case) -> dict[str, float]:
    """The largest error of each result over its scale: its largest magnitude in float64.

    The largest over this problem, the problem under three more incoming gradients and three more draws of its case, so
    that a short sum which happens to cancel is not divided by its accident.
    """
    generator = torch.Generator().manual_seed(0)
    redirected = (_redirected(problem, generator) for _ in range(3))
    redrawn = (_draw(case, generator) for _ in range(3))
    want, *others = [exact(p) for p in (problem, *redirected, *redrawn)]
    assert got.keys() == want.keys()
    found = {}
    for name, value in got.items():
        if value.numel():
            scale = max(result[name].abs().amax().item() for result in (want, *others)) or 1.0
            found[name] = (value.double() - want[name]).abs().amax().item() / scale
    return found


def _redirected(problem: Problem, generator: torch.Generator) -> Problem:
    def signed(t: Tensor | None) -> Tensor | None:
        return None if t is None else t * (2 * torch.randint(2, t.shape, generator=generator) - 1)

    return problem._replace(grad_out=signed(problem.grad_out), grad_map=signed(problem.grad_map))


def assert_accurate(got: dict[str, Tensor], problem: Problem, case: Case, rounded: Collection[str] = ()) -> None:
    """Every result within ``tolerance`` of float64; those ``rounded`` come from a product one of whose operands was
    rounded to x's dtype first, which adds eps / 2 of that."""

    def limit(name: str) -> float:
        operand = torch.finfo(case.dtype).eps / 2 if name in rounded else 0.0
        return tolerance(got[name].dtype, case.dtype, case.terms) + operand

    found = errors(got, problem, case).items()
    beyond = {name: f"{error:.2e} > {limit(name):.2e}" for name, error in found if not error <= limit(name)}
    assert not beyond, f"relative to float64: {beyond}"
