"""Results of an implementation and of the reference in float64, and the error of the one against the other."""

import math
from collections.abc import Callable, Collection

import torch
from torch import Tensor

from ..backends import reference
from ..backends.interface import Weights
from ..backends.squash import SQUASHES
from .cases import Case, Problem, double_weights, draw, draw_with
from .tolerances import tolerance

# (x, weights, residual, squash, whether the map is wanted) -> (out, map)
Call = Callable[[Tensor, Weights, Tensor | None, str, bool], tuple[Tensor, Tensor]]
REDIRECTED, REDRAWN = 3, 3  # other signs of the incoming gradients, and other draws, that tell a result's scale
SMALL = 110_000  # elements of x; larger results have no sums that are short enough to cancel


_SQUASH = {
    "tanh": lambda mixed: (mixed.exp() - (-mixed).exp()) / (mixed.exp() + (-mixed).exp()),
    "sigmoid": lambda mixed: 1 / (1 + (-mixed).exp()),
}


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
        attended = _SQUASH[squash](mixed)
        out = u * attended
        outs.append(out if residual is None else (out + residual[i]).clamp(min=0))
        maps.append(attended.square().sum(0).sqrt())
    return torch.stack(outs), torch.stack(maps)


def operator(backend: str) -> Call:
    """The operator on a backend of the package; unlike `gala_cuda.gala`, "reference" runs its stages."""

    def call(x: Tensor, w: Weights, residual: Tensor | None, squash: str, return_map: bool) -> tuple[Tensor, Tensor]:
        return torch.ops.gala_cuda.gala(x, *w, residual, SQUASHES[squash], return_map, False, backend)[:2]

    return call


def composite(x: Tensor, w: Weights, residual: Tensor | None, squash: str, return_map: bool) -> tuple[Tensor, Tensor]:
    """The formulas in plain PyTorch, with autograd's gradients."""
    return reference.apply(x, w, residual, SQUASHES[squash])


def flat_inputs(problem: Problem) -> list[Tensor]:
    """The tensors that are there, as leaves that require gradients."""
    return [t.detach().requires_grad_() for t in (problem.x, *problem.w, problem.residual) if t is not None]


def on_flat_inputs(call: Call, problem: Problem) -> Callable[..., tuple[Tensor, ...]]:
    """`call` as a function of the tensors of `flat_inputs`, giving out, or out and map."""
    present = [t is not None for t in (*problem.w, problem.residual)]
    with_map = problem.grad_map is not None

    def function(x: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
        given = iter(tensors)
        *w, residual = (next(given) if there else None for there in present)
        outputs = call(x, Weights(*w), residual, problem.squash, with_map)  # type: ignore[arg-type]
        return tuple(outputs[: 1 + with_map])

    return function


def results(call: Call, problem: Problem) -> dict[str, Tensor]:
    """`out`, `map` where it is asked for, and the gradient of every input as "grad x", ..., strides kept."""
    inputs = {"x": problem.x, "residual": problem.residual, **problem.w._asdict()}
    leaves = {name: t.detach().requires_grad_() for name, t in inputs.items() if t is not None}
    w = Weights(*(leaves.get(name) for name in Weights._fields))  # type: ignore[arg-type]
    out, attn_map = call(leaves["x"], w, leaves.get("residual"), problem.squash, problem.grad_map is not None)
    outputs, directions = {"out": out}, [problem.grad_out]
    if problem.grad_map is not None:
        outputs["map"] = attn_map
        directions.append(problem.grad_map)
    grads = torch.autograd.grad(list(outputs.values()), list(leaves.values()), directions)
    found = {name: output.detach() for name, output in outputs.items()}
    return found | {f"grad {name}": grad for name, grad in zip(leaves, grads, strict=True)}


def exact(problem: Problem) -> dict[str, Tensor]:
    """`results` of the reference in float64, by autograd."""
    x, w, residual, squash, grad_out, grad_map = problem
    return results(
        composite,
        Problem(
            x.double(),
            double_weights(w),
            None if residual is None else residual.double(),
            squash,
            grad_out.double(),
            None if grad_map is None else grad_map.double(),
        ),
    )


def check(call: Call, case: Case, seed: int = 0) -> None:
    """Draws a problem of `case` and raises AssertionError where a result of `call` is beyond its tolerance."""
    problem = draw(case, seed)
    assert_accurate(results(call, problem), problem, case)


def assert_accurate(got: dict[str, Tensor], problem: Problem, case: Case, rounded: Collection[str] = ()) -> None:
    """Raises AssertionError unless every result is within `tolerance` of float64.

    Those `rounded` come from a product one of whose operands was rounded to x's dtype first.
    """

    def limit(name: str) -> float:
        return tolerance(got[name].dtype, case.dtype, case.terms, int(name in rounded))

    found = errors(got, problem, case).items()
    beyond = {name: f"{error:.2e} > {limit(name):.2e}" for name, error in found if not error <= limit(name)}
    if beyond:
        raise AssertionError(f"relative to float64: {beyond}")


def errors(got: dict[str, Tensor], problem: Problem, case: Case) -> dict[str, float]:
    """The largest error of each result over its scale: its largest magnitude in float64.

    The largest over this problem, the same under other signs of the incoming gradients and, where x is small, other
    draws of its case, so that a short sum which happens to cancel is not divided by its accident.
    """
    generator = torch.Generator(problem.x.device).manual_seed(0)
    others = [_redirected(problem, generator) for _ in range(REDIRECTED)]
    if problem.x.numel() <= SMALL:
        others += [draw_with(case, generator) for _ in range(REDRAWN)]
    want = exact(problem)
    if got.keys() != want.keys():
        raise AssertionError(f"results are {', '.join(got)}; expected {', '.join(want)}")
    scales = {name: _largest(value) for name, value in want.items()}
    for other in others:
        for name, value in exact(other).items():
            scales[name] = max(scales[name], _largest(value))
    found = {}
    for name, value in got.items():
        error = _largest(value.double() - want[name])
        found[name] = math.inf if math.isnan(error) else error / (scales[name] or 1.0)
    return found


def norm_error(got: Tensor, want: Tensor) -> float:
    """The error in the L2 norm over the norm of `want`, which is in float64."""
    error, norm = torch.linalg.vector_norm(got.double() - want).item(), torch.linalg.vector_norm(want).item()
    return error / norm if norm else error


def _largest(values: Tensor) -> float:
    return values.abs().amax().item() if values.numel() else 0.0


def _redirected(problem: Problem, generator: torch.Generator) -> Problem:
    def signed(t: Tensor | None) -> Tensor | None:
        if t is None:
            return None
        return t * (2 * torch.randint(2, t.shape, generator=generator, device=t.device) - 1)

    grad_out = signed(problem.grad_out)
    assert grad_out is not None
    return problem._replace(grad_out=grad_out, grad_map=signed(problem.grad_map))
