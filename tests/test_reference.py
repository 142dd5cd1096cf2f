"""The reference against the paper's formulas, and its stages against its own autograd."""

import pytest
import torch

from gala_cuda.backends import reference
from gala_cuda.backends.interface import ForwardCall
from gala_cuda.backends.saved import mask_words, split_stats
from gala_cuda.backends.squash import Squash
from gala_cuda.testing import Case, assert_accurate, composite, draw, operator, paper, results

DOUBLE = torch.float64
SMALL = (2, 6, 3, 5)
FORMS = [
    pytest.param(Case(SMALL, 4, DOUBLE, map=True), id="tanh"),
    pytest.param(Case(SMALL, 4, DOUBLE, squash="sigmoid", map=True), id="sigmoid"),
    pytest.param(Case(SMALL, 4, DOUBLE, bias=True, map=True), id="bias"),
    pytest.param(Case(SMALL, 4, DOUBLE, residual=True, map=True), id="residual"),
    pytest.param(Case(SMALL, 4, DOUBLE, squash="sigmoid", bias=True, residual=True, map=True), id="everything"),
    pytest.param(Case((3, 1, 2, 2), 1, DOUBLE, bias=True, map=True), id="one-channel"),
    pytest.param(Case((1, 7, 1, 1), 33, DOUBLE, bias=True, map=True), id="one-pixel"),
]


@pytest.mark.parametrize("case", FORMS)
@pytest.mark.parametrize("form", [composite, operator("reference")], ids=["composite", "stages"])
def test_values_and_gradients_are_those_of_the_paper(form, case):
    problem = draw(case)
    got = results(form, problem)
    want = results(lambda x, w, residual, squash, _: paper(x, w, residual, squash), problem)
    assert got.keys() == want.keys()
    for name, value in got.items():
        torch.testing.assert_close(value, want[name], rtol=1e-11, atol=1e-13, msg=lambda m, name=name: f"{name}: {m}")


def test_attention_by_hand():
    """One image, two channels, one hidden unit: every number worked out from the formulas."""
    x = torch.tensor([[[[1.0, 3.0]], [[2.0, -4.0]]]])  # [1, 2, 1, 2], means 2 and -1
    w = reference.Weights(
        w_shrink=torch.tensor([[1.0, -1.0]]),  # 2 + 1 = 3
        w_expand=torch.tensor([[0.1], [-0.2]]),  # g = 0.3, -0.6
        v_shrink=torch.tensor([[1.0, 1.0]]),  # 3 and -1, after ReLU 3 and 0
        v_collapse=torch.tensor([0.1]),  # s = 0.3 and 0
        a=torch.tensor([1.0, 2.0]),
        m=torch.tensor([1.0, -1.0]),
    )
    mixed = torch.tensor([[[[0.6 + 0.09, 0.3]], [[2 * -0.3 + 0.18, -1.2]]]])
    torch.testing.assert_close(reference.attention(x, w, Squash.TANH), mixed.tanh())
    torch.testing.assert_close(reference.attention(x, w, Squash.SIGMOID), mixed.sigmoid())
    out, attn_map = reference.apply(x, w, None, Squash.TANH)
    torch.testing.assert_close(out, x * mixed.tanh())
    torch.testing.assert_close(attn_map, mixed.tanh().norm(dim=1))


@pytest.mark.parametrize("reduced", [1, 31, 32, 33, 70])
def test_saved_tensors_hold_what_the_interface_says(reduced):
    problem = draw(Case((2, 5, 2, 3), reduced, DOUBLE, bias=True))
    x, w = problem.x, problem.w
    _, attn_map, stats, relu_mask = reference.forward(ForwardCall(x, w, None, Squash.TANH, False, True))
    s, p, z = split_stats(stats, 5, reduced)
    torch.testing.assert_close(p, x.mean((2, 3)))
    torch.testing.assert_close(z, p @ w.w_shrink.T + w.b_w_shrink)
    hidden = torch.einsum("rc,nchw->nhwr", w.v_shrink, x).flatten(1, 2) + w.b_v_shrink  # [N, HW, R]
    torch.testing.assert_close(s, hidden.relu() @ w.v_collapse + w.b_v_collapse)
    assert relu_mask.shape == (2, 6, mask_words(reduced))
    assert relu_mask.dtype == torch.int32
    assert attn_map is None
    for r in range(reduced):
        assert torch.equal(relu_mask[..., r // 32] >> (r % 32) & 1, (hidden[..., r] > 0).int()), f"hidden unit {r}"


@pytest.mark.parametrize("form", [composite, operator("reference")], ids=["composite", "stages"])
def test_map_of_zero_attention_has_zero_gradient(form):
    """As torch.linalg.vector_norm: the norm's gradient at 0 is 0, not NaN."""
    problem = draw(Case(SMALL, 4, DOUBLE, map=True))
    problem.w.a.zero_()
    problem.w.m.zero_()
    got = results(form, problem)
    assert got["map"].eq(0).all()
    for name in ("grad x", "grad w_expand", "grad v_shrink"):
        assert got[name].eq(0).all(), name


@pytest.mark.parametrize(
    ("dtype", "parameters"),
    [
        (torch.float32, None),
        (torch.bfloat16, None),
        (torch.bfloat16, torch.float32),
        (torch.float16, None),
        (torch.float16, torch.float32),
    ],
    ids=str,
)
@pytest.mark.parametrize("form", [composite, operator("reference")], ids=["composite", "stages"])
def test_lower_precision_is_within_tolerance(form, dtype, parameters):
    case = Case((3, 17, 5, 4), 33, dtype, parameters, bias=True, residual=True, map=True)
    problem = draw(case)
    got = results(form, problem)
    assert got["out"].dtype == dtype
    assert got["map"].dtype == torch.float32
    assert_accurate(got, problem, case)
