"""Checks an implementation of the attention block: random problems, their float64 results and the allowed errors.

For a backend of your own, or any function with the signature of `answers.Call`::

    from gala_cuda import testing

    def mine(x, w, residual, squash, return_map):
        ...  # out [N, C, H, W] and the map [N, H, W], both differentiable

    for case in testing.random_cases(100):
        testing.check(mine, case)

`check` raises AssertionError with every result that is beyond its tolerance: the output, the map, and the gradients
of x, of the residual and of every weight. `testing.operator("cpu")` is such a function for a backend of the package.
Pytest is not needed.
"""

from .answers import (
    assert_accurate,
    check,
    composite,
    double_weights,
    errors,
    exact,
    flat_inputs,
    norm_error,
    on_flat_inputs,
    operator,
    paper,
    results,
)
from .cases import LAYOUTS, Case, Problem, clear_ties, draw, laid_out, random_cases
from .tolerances import norm_tolerance, tolerance

__all__ = [
    "LAYOUTS",
    "Case",
    "Problem",
    "assert_accurate",
    "check",
    "clear_ties",
    "composite",
    "double_weights",
    "draw",
    "errors",
    "exact",
    "flat_inputs",
    "laid_out",
    "norm_error",
    "norm_tolerance",
    "on_flat_inputs",
    "operator",
    "paper",
    "random_cases",
    "results",
    "tolerance",
]
