"""Part "correctness": checks every backend against float64, forward and all gradients, on fresh random data.

Problems, float64 results and tolerances are those of `gala_cuda.testing`. Kernels for GPUs may round two operands of
a product to x's 16-bit dtype, the weights and the local map's gradient, and take an approximate tanh. Weights are drawn
in x's dtype, some held as float32.
"""

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch

from gala_cuda.backends import NAMES
from gala_cuda.diagnostics import dtype_name
from gala_cuda.testing import Case, draw, errors, operator, results, tolerance

from .forms import DTYPES, FORMS, GPU_BACKENDS, Kind, running
from .records import MeasurementError, Step, UnavailableError
from .settings import Context
from .uses import Use

LAYOUTS = {"channels_last": "channels_last", "nchw": "contiguous"}
# squash, bias, residual, map: any three of them in all combinations
OPTIONS = tuple(
    ("sigmoid" if bias ^ residual ^ attn_map else "tanh", bool(bias), bool(residual), bool(attn_map))
    for bias in (0, 1)
    for residual in (0, 1)
    for attn_map in (0, 1)
)


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
    if name != "triton" or dtype == "float64":
        return ()
    return tuple(
        Use(_kind(case, layout), case.parameters or case.dtype, case.squash, case.bias, case.residual, case.map)
        for case in cases(context, DTYPES[dtype], layout)
    )


def cases(context: Context, dtype: torch.dtype, layout: str) -> Iterator[Case]:
    """The same options in every step, so that steps share kernels. Half of the 16-bit problems have wide weights."""
    for i, (shape, reduced) in enumerate(context.sizes.problems):
        squash, bias, residual, attn_map = OPTIONS[i % len(OPTIONS)]
        wide = torch.float32 if dtype.itemsize == 2 and residual == attn_map else None
        yield Case(shape, reduced, dtype, wide, LAYOUTS[layout], squash, bias, residual, attn_map, representable=True)


def _kind(case: Case, layout: str) -> Kind:
    return Kind(case.shape, case.reduced, case.dtype, layout)


def _check(context: Context, number: int, backend: str, dtype: str, layout: str) -> dict[str, Any]:
    """Checks all problems of one step; `worst` has each result's largest error and its share of the tolerance.

    Problems that do not have the form are left out; `left_out` has the reasons.
    """
    reasons, there = {}, []
    for case in cases(context, DTYPES[dtype], layout):
        if reason := context.why_not(backend, _kind(case, layout)):
            reasons[_words(case)] = reason
        else:
            there.append(case)
    if not there:
        raise UnavailableError(next(iter(reasons.values())))
    worst: dict[str, dict[str, Any]] = {}
    failures = []
    for i, case in enumerate(there):
        problem = draw(case, context.seed + 1000 * number + i, context.device)
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False), running(backend) as name:
            got = results(operator(name), problem)
            found = errors(got, problem, case)
        rounded = 2 if backend in GPU_BACKENDS and case.dtype.itemsize == 2 else 0
        for name, error in found.items():
            limit = tolerance(got[name].dtype, case.dtype, case.terms, rounded)
            entry = {"error": error, "tolerance": limit, "share": error / limit, "case": _words(case)}
            if not error <= limit:
                failures.append(f"{name} is off by {error:.1e}, expected at most {limit:.1e}, in {_words(case)}")
            if name not in worst or entry["share"] > worst[name]["share"]:
                worst[name] = entry
    result = {"problems": len(there), "worst": worst, "failures": failures, "left_out": reasons}
    if failures:
        raise MeasurementError(f"{len(failures)} results beyond tolerance, the first: {failures[0]}", result)
    return result


def _words(case: Case) -> str:
    flags = [name for name in ("bias", "residual", "map") if getattr(case, name)]
    weights = "" if case.parameters is None else f", {dtype_name(case.parameters)} weights"
    return " ".join(["x".join(map(str, case.shape)), f"R={case.reduced}", case.squash, *flags]) + weights
