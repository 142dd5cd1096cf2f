"""The oracle itself: its problems are what their cases say, without ties, and what is wrong is beyond a tolerance."""

import subprocess
import sys
from typing import Any

import pytest
import torch

from gala_cuda import testing
from gala_cuda.testing import LAYOUTS, Case

FULL: dict[str, Any] = {"bias": True, "residual": True, "map": True}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("layout", ["contiguous/crop", "channels_last"])
def test_problems_have_no_ties(dtype, layout):
    """Of 240 images with 40 hidden units each some have one when they are drawn first."""
    case = Case((240, 24, 9, 9), 40, dtype, torch.float32, layout, **FULL, representable=True)
    problem = testing.draw(case, 5)
    x, w = problem.x.double(), testing.double_weights(problem.w)
    assert w.b_v_shrink is not None
    assert w.b_w_shrink is not None
    assert problem.residual is not None
    local = torch.einsum("rc,nchw->nrhw", w.v_shrink, x) + w.b_v_shrink[:, None, None]
    pooled = x.mean((2, 3)) @ w.w_shrink.T + w.b_w_shrink
    for hidden in (local, pooled):
        assert (hidden.abs() >= 4e-6 * hidden.abs().max()).all()
    before_relu = problem.residual.double() + testing.composite(x, w, None, "tanh", False)[0]
    assert (before_relu.abs() >= torch.finfo(dtype).eps).all()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_same_arguments_give_the_same_problem(layout):
    case = Case((2, 6, 3, 5), 4, torch.bfloat16, torch.float32, layout, **FULL)
    one, two, other = (testing.draw(case, seed) for seed in (3, 3, 4))
    for name in ("x", "residual", "grad_out", "grad_map"):
        assert torch.equal(getattr(one, name), getattr(two, name)), name
        assert not torch.equal(getattr(one, name), getattr(other, name)), name
    order, _, place = layout.partition("/")
    adjacent = 1 if order == "channels_last" else 3
    assert one.x.stride(adjacent) == 1
    dense = one.x.is_contiguous(memory_format=getattr(torch, order.replace("contiguous", "contiguous_format")))
    assert dense == (place in ("", "misaligned"))
    assert (one.x.storage_offset() == 0) == (place == "")
    assert not one.x.isnan().any()


def test_representable_weights_have_values_of_the_dtype_of_x():
    case = Case((2, 6, 3, 5), 4, torch.bfloat16, torch.float32, bias=True)
    for representable in (False, True):
        for weight in testing.draw(case._replace(representable=representable)).w:
            assert weight is not None
            assert weight.dtype == torch.float32
            assert torch.equal(weight, weight.bfloat16().float()) == representable


def test_a_pixel_with_a_tie_takes_the_values_of_another():
    problem = testing.draw(Case((2, 3, 4, 4), 2))
    problem.x[1, :, 2, 3] = 0  # both hidden units are then 0
    assert not testing.clear_ties(problem.x, problem.w).any()
    assert problem.x[1, :, 2, 3].eq(problem.x[1, :, 0, 0]).all()
    problem.x[0] = 0
    assert testing.clear_ties(problem.x, problem.w).tolist() == [True, False]


def test_a_case_in_which_every_unit_is_near_zero_is_refused(monkeypatch):
    monkeypatch.setattr("gala_cuda.testing.cases.tolerance", lambda *_: 0.5)
    with pytest.raises(ValueError, match="no problem without ties in 100 draws of Case"):
        testing.draw(Case((1, 3, 4, 4), 30))


def spoiled(name, factor):
    """The formulas with one result off by a factor."""

    def call(x, w, residual, squash, return_map):
        leaves = {"grad x": x, "grad residual": residual, **{f"grad {key}": t for key, t in w._asdict().items()}}
        if name in leaves:
            leaves[name].register_hook(lambda grad: factor * grad)
        out, attn_map = testing.composite(x, w, residual, squash, return_map)
        return (factor * out if name == "out" else out), (factor * attn_map if name == "map" else attn_map)

    return call


NAMES = ("out", "map", "grad x", "grad residual", "grad w_shrink", "grad a", "grad b_v_collapse")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_a_wrong_result_is_named(name, dtype):
    case = Case((2, 6, 3, 5), 4, dtype, **FULL)
    testing.check(spoiled(name, 1.0), case)
    with pytest.raises(AssertionError, match=rf"relative to float64: .*'{name}': "):
        testing.check(spoiled(name, 1 + 1e3 * torch.finfo(dtype).eps), case)


def test_nan_is_beyond_every_tolerance():
    case = Case((2, 6, 3, 5), 4)
    with pytest.raises(AssertionError, match=r"'out': 'inf > "):
        testing.check(spoiled("out", torch.nan), case)


def test_a_result_that_is_missing_is_named():
    problem = testing.draw(case := Case((2, 6, 3, 5), 4))
    got = testing.results(testing.composite, problem)
    del got["grad a"]
    with pytest.raises(AssertionError, match=r"results are out, grad x.*; expected out, grad x.*grad a"):
        testing.assert_accurate(got, problem, case)


def test_tolerances_follow_epsilon():
    half, single, double = torch.bfloat16, torch.float32, torch.float64
    assert testing.tolerance(double, double, 256) == pytest.approx(2.9e-14, rel=0.01)
    assert testing.tolerance(single, single, 256) == pytest.approx(7.7e-6, rel=0.01)
    assert testing.tolerance(half, half, 256) == pytest.approx(3.9e-3, rel=0.01)
    assert testing.tolerance(half, half, 256, 2) - testing.tolerance(half, half, 256) == pytest.approx(2**-7)
    for dtype, most in ((double, 1e-12), (single, 1e-5), (torch.float16, 1e-3), (half, 5e-3)):
        assert most / 30 < testing.norm_tolerance(dtype) <= most


@pytest.mark.slow
def test_pytest_is_not_needed():
    program = "import sys; sys.modules['pytest'] = None; import gala_cuda.testing"
    subprocess.run([sys.executable, "-c", program], check=True)
