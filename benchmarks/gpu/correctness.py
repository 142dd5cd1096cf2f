"""Part "correctness": every backend against float64 on the device, forward and all gradients, on fresh random data.

Problems, float64 results and tolerances are those of the tests (``tests/oracle.py``). Kernels for GPUs may round the
weights and the local map's gradient to x's 16-bit dtype, as operands of the tensor cores, and take an approximate tanh:
they are allowed the epsilon of x's dtype on top. Weights are drawn in x's dtype, some held as float32, and no hidden
unit is within a rounding error of 0: there one gradient or another would be right.
"""

import math
import sys
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from gala_cuda.backends import NAMES, reference
from gala_cuda.backends.interface import Weights

from .environment import ROOT
from .forms import DTYPES, FORMS, GPU_BACKENDS, Kind, running
from .launches import Use
from .records import MeasurementError, Step, UnavailableError
from .settings import Context

sys.path.append(str(ROOT / "tests"))
import oracle

LAYOUTS = {"channels_last": "channels_last", "nchw": "contiguous"}
# squash, bias, residual, map: any three of them in all combinations
OPTIONS = tuple(
    ("sigmoid" if bias ^ residual ^ attn_map else "tanh", bool(bias), bool(residual), bool(attn_map))
    for bias in (0, 1)
    for residual in (0, 1)
    for attn_map in (0, 1)
)
TIE = 1e-5  # of the largest hidden unit
DRAWS = 50
REDIRECTED, REDRAWN = 3, 8  # other incoming gradients, and draws of small problems, that tell a result's scale
SMALL = 100_000  # elements of x


def steps(context: Context) -> list[Step]:
    """One for each backend, dtype and layout; the backends for GPUs and 16-bit types first."""
    names = sorted((*NAMES, *FORMS), key=lambda name: name not in GPU_BACKENDS)
    kinds = [(name, dtype, layout) for dtype in DTYPES for layout in LAYOUTS for name in names]
    kinds.sort(key=lambda kind: kind[0] not in GPU_BACKENDS)
    return [
        Step(
            f"{name} {dtype} {layout}",
            partial(_check, context, i, name, dtype, layout),
            0.1 if name in GPU_BACKENDS and dtype == "float64" else 4,  # where no kernel takes it
            uses(context, name, dtype, layout),
        )
        for i, (name, dtype, layout) in enumerate(kinds)
    ]


def uses(context: Context, name: str, dtype: str, layout: str) -> tuple[Use, ...]:
    if FORMS.get(name, name) != "triton" or dtype == "float64":
        return ()
    return tuple(
        Use(name, _kind(case, layout), case.parameters or case.dtype, case.squash, case.bias, case.residual, case.map)
        for case in _cases(context, DTYPES[dtype], layout)
    )


def _kind(case: oracle.Case, layout: str) -> Kind:
    return Kind(case.shape, case.reduced, case.dtype, layout)


def _check(context: Context, number: int, backend: str, dtype: str, layout: str) -> dict[str, Any]:
    """All problems of one step; ``worst`` has each result's largest error and its share of the tolerance.

    A form that is not there for a problem leaves it out: ``left_out`` has the reasons.
    """
    reasons, cases = {}, []
    for case in _cases(context, DTYPES[dtype], layout):
        if reason := context.why_not(backend, _kind(case, layout)):
            reasons[_words(case)] = reason
        else:
            cases.append(case)
    if not cases:
        raise UnavailableError(next(iter(reasons.values())))
    worst: dict[str, dict[str, Any]] = {}
    failures = []
    for i, case in enumerate(cases):
        problem = draw(case, context.seed + 1000 * number + i, context.device)
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False), running(backend) as name:
            got = oracle.results(oracle.operator(name), problem)
            found = errors(got, problem, case)
        for name, error in found.items():
            limit = tolerance(backend, got[name].dtype, case)
            entry = {"error": error, "tolerance": limit, "share": error / limit, "case": _words(case)}
            if not error <= limit:
                failures.append(f"{name} is off by {error:.1e}, expected at most {limit:.1e}, in {_words(case)}")
            if name not in worst or entry["share"] > worst[name]["share"]:
                worst[name] = entry
    result = {"problems": len(cases), "worst": worst, "failures": failures, "left_out": reasons}
    if failures:
        raise MeasurementError(f"{len(failures)} results beyond tolerance, the first: {failures[0]}", result)
    return result


def _cases(context: Context, dtype: torch.dtype, layout: str) -> Iterator[oracle.Case]:
    """The same options in every step, so that steps share kernels. Half of the 16-bit problems have wide weights."""
    for i, (shape, reduced) in enumerate(context.sizes.problems):
        squash, bias, residual, attn_map = OPTIONS[i % len(OPTIONS)]
        wide = torch.float32 if dtype.itemsize == 2 and residual == attn_map else None
        yield oracle.Case(shape, reduced, dtype, wide, LAYOUTS[layout], squash, bias, residual, attn_map)


def tolerance(backend: str, result: torch.dtype, case: oracle.Case) -> float:
    """The largest allowed error of a result, relative to its largest magnitude."""
    operands = torch.finfo(case.dtype).eps if backend in GPU_BACKENDS and case.dtype.itemsize == 2 else 0.0
    return oracle.tolerance(result, case.dtype, case.terms) + operands


def draw(case: oracle.Case, seed: int, device: torch.device) -> oracle.Problem:
    """A random problem of ``case`` on ``device`` away from kinks; the same one for the same arguments.

    Raises:
        ValueError: none was found.
    """
    for attempt in range(DRAWS):
        problem = _draw(case, seed + 10**6 * attempt, device)
        z, h = _hidden(problem)
        if not (_tied(z).any() or _tied(h).any()):
            return problem
    raise ValueError(f"no problem away from kinks in {DRAWS} draws of {case}; choose smaller sizes")


def _draw(case: oracle.Case, seed: int, device: torch.device) -> oracle.Problem:
    drawn = oracle.draw(case._replace(residual=False), seed, kinks=True)
    x, grad_out, grad_map = (None if t is None else t.to(device) for t in (drawn.x, drawn.grad_out, drawn.grad_map))
    w = Weights(*(None if t is None else t.to(case.dtype).to(t.dtype).to(device) for t in drawn.w))
    problem = oracle.Problem(x, w, None, case.squash, grad_out, grad_map)
    _leave_ties(problem)
    if not case.residual:
        return problem
    generator = torch.Generator(device).manual_seed(seed)
    residual = torch.empty_like(x).normal_(generator=generator)
    product = x.double() * reference.attention(x.double(), oracle.doubled(w), case.squash)
    near = (residual + product).abs() < 2 * torch.finfo(case.dtype).eps
    return problem._replace(residual=residual.add_(near))


def _hidden(problem: oracle.Problem) -> tuple[Tensor, Tensor]:
    """(z [N, R], h [N, R, H, W]), both before their ReLU, in float64."""
    x, w = problem.x.double(), oracle.doubled(problem.w)
    z = torch.nn.functional.linear(x.mean((2, 3)), w.w_shrink, w.b_w_shrink)
    h = torch.einsum("rc,nchw->nrhw", w.v_shrink, x)
    return z, h if w.b_v_shrink is None else h + w.b_v_shrink[:, None, None]


def _tied(hidden: Tensor) -> Tensor:
    return hidden.abs() < TIE * hidden.abs().amax()


def _leave_ties(problem: oracle.Problem) -> None:
    """Overwrites pixels of x with an almost-zero unit of h by one of the same image that has none, where there is one.

    Large problems always have such pixels.
    """
    _, h = _hidden(problem)
    for image, tied in zip(problem.x, _tied(h).any(1), strict=True):
        clear = (~tied).nonzero()
        if len(clear):
            row, column = clear[0]
            image[:, tied] = image[:, row, column, None].clone()


def errors(got: dict[str, Tensor], problem: oracle.Problem, case: oracle.Case) -> dict[str, float]:
    """The largest error of each result over its scale: its largest magnitude in float64.

    The largest over this problem, the same under other signs of the incoming gradients and, where x is small, other
    draws of its case, so that a short sum which happens to cancel is not divided by its accident.
    """
    device = problem.x.device
    generator = torch.Generator(device).manual_seed(0)
    others = [_redirected(problem, generator) for _ in range(REDIRECTED)]
    if problem.x.numel() <= SMALL:
        others += [_draw(case, seed, device) for seed in range(REDRAWN)]
    want = oracle.exact(problem)
    scales = {name: value.abs().amax().item() for name, value in want.items()}
    for other in others:
        for name, value in oracle.exact(other).items():
            scales[name] = max(scales[name], value.abs().amax().item())
    found = {}
    for name, value in got.items():
        error = (value.double() - want[name]).abs().amax().item()
        found[name] = math.inf if math.isnan(error) else error / (scales[name] or 1.0)
    return found


def _redirected(problem: oracle.Problem, generator: torch.Generator) -> oracle.Problem:
    def signed(t: Tensor | None) -> Tensor | None:
        if t is None:
            return None
        return t * (2 * torch.randint(2, t.shape, generator=generator, device=t.device) - 1)

    return problem._replace(grad_out=signed(problem.grad_out), grad_map=signed(problem.grad_map))


def _words(case: oracle.Case) -> str:
    flags = [name for name in ("bias", "residual", "map") if getattr(case, name)]
    weights = "" if case.parameters is None else f", {str(case.parameters).removeprefix('torch.')} weights"
    return " ".join(["x".join(map(str, case.shape)), f"R={case.reduced}", case.squash, *flags]) + weights
