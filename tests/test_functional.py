"""``gala_cuda.gala``: what it takes, what it refuses and with which words, memory formats, edge shapes, NaN and Inf."""

import re

import pytest
import torch

import gala_cuda
from gala_cuda.backends.interface import Weights
from gala_cuda.testing import LAYOUTS, Case, assert_accurate, composite, draw, flat_inputs, laid_out, results


def function(backend):
    """``gala_cuda.gala`` in the form that ``testing.results`` calls."""

    def call(x, w, residual, squash, return_map):
        out = gala_cuda.gala(x, *w, residual=residual, squash=squash, return_map=return_map, backend=backend)
        return out if return_map else (out, None)

    return call


@pytest.mark.parametrize(
    "case",
    [
        Case((2, 24, 5, 3), 6),
        Case((2, 24, 5, 3), 6, torch.bfloat16, torch.float32, "channels_last", "sigmoid", bias=True, map=True),
        Case((2, 24, 5, 3), 33, torch.float64, None, "channels_last/slice_c", residual=True, map=True),
        Case((3, 9, 4, 4), 2, torch.float16, None, "contiguous/crop", bias=True, residual=True),
    ],
    ids=lambda case: f"{case.dtype}-{case.layout}",
)
def test_agrees_with_float64(backend, case):
    problem = draw(case)
    assert_accurate(results(function(backend), problem), problem, case)


def test_return_value(backend):
    problem = draw(Case((2, 6, 3, 5), 2))
    out = gala_cuda.gala(problem.x, *problem.w, backend=backend)
    assert isinstance(out, torch.Tensor)
    pair = gala_cuda.gala(problem.x, *problem.w, return_map=True, backend=backend)
    assert torch.equal(pair[0], out)
    assert pair[1].shape == (2, 3, 5)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("residual", [False, True], ids=["plain", "residual"])
def test_every_layout_gives_the_dense_result_in_the_inputs_format(backend, layout, residual):
    """Memory between the elements of x holds NaN: reading any of it shows."""
    problem = draw(Case((2, 6, 4, 3), 5, layout=layout, residual=residual, map=True))
    order = layout.partition("/")[0]
    dense = problem._replace(
        x=laid_out(problem.x, order), residual=laid_out(problem.residual, order) if residual else None
    )
    got, want = results(function(backend), problem), results(function(backend), dense)
    for name, value in got.items():
        torch.testing.assert_close(value, want[name], rtol=1e-5, atol=1e-5, msg=name)
    for name in ("out", "grad x"):
        assert got[name].stride() == dense.x.stride(), name


def test_residual_in_another_memory_format(backend):
    problem = draw(Case((2, 6, 4, 3), 5, layout="channels_last", residual=True))
    got = results(function(backend), problem._replace(residual=problem.residual.contiguous()))
    for name, want in results(function(backend), problem).items():
        torch.testing.assert_close(got[name], want, rtol=1e-5, atol=1e-5, msg=name)


@pytest.mark.parametrize(
    ("shape", "reduced"),
    [
        pytest.param((0, 8, 4, 4), 2, id="no-images"),
        pytest.param((3, 8, 1, 1), 2, id="one-pixel"),
        pytest.param((2, 1, 3, 3), 4, id="one-channel"),
        pytest.param((2, 5, 3, 3), 1, id="one-unit"),
        pytest.param((1, 1, 1, 1), 1, id="one-of-everything"),
        pytest.param((2, 37, 3, 5), 33, id="just-over-a-word"),
        pytest.param((2, 67, 1, 13), 64, id="two-full-words"),
        pytest.param((1, 3, 13, 1), 70, id="more-units-than-channels"),
        pytest.param((1, 131, 2, 2), 13, id="prime-channels"),
    ],
)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_edge_shapes(backend, shape, reduced, layout):
    case = Case(shape, reduced, layout=layout, bias=True, residual=True, map=True)
    problem = draw(case)
    got = results(function(backend), problem)
    assert got["out"].shape == shape
    assert got["map"].shape == (shape[0], *shape[2:])
    assert_accurate(got, problem, case)
    if shape[0] == 0:
        assert all(got[f"grad {name}"].eq(0).all() for name in Weights._fields)


POISONED = {
    "nan-in-one-place": lambda x: x[0, 1, 1, 2].fill_(torch.nan),
    "nan-pixel": lambda x: x[1, :, 0, 1].fill_(torch.nan),
    "nan-image": lambda x: x[1].fill_(torch.nan),
    "inf-in-one-place": lambda x: x[0, 1, 1, 2].fill_(torch.inf),
    "minus-inf-image": lambda x: x[0].fill_(-torch.inf),
    "both-infs": lambda x: x[0, :, 1, 1:3].copy_(torch.tensor([torch.inf, -torch.inf])),
    "saturating": lambda x: x[0].mul_(1e6),
    "large": lambda x: x[1].mul_(1e15),
    "denormal": lambda x: x[1].mul_(1e-41),
    "zeros": lambda x: x[1].copy_(torch.tensor([0.0, -0.0]).repeat(x[1].numel() // 2).view(x[1].shape)),
}


def kinds(t: torch.Tensor) -> torch.Tensor:
    """0 finite, 1 NaN, 2 Inf, 3 -Inf."""
    return t.isnan() + 2 * t.isposinf() + 3 * t.isneginf()


@pytest.mark.parametrize("poison", POISONED)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("residual", [False, True], ids=["plain", "residual"])
@pytest.mark.parametrize("squash", ["tanh", "sigmoid"])
def test_special_values_go_where_the_composite_sends_them(backend, poison, layout, residual, squash):
    """NaN, Inf and every finite value, in out, map and all gradients, as autograd through the formulas has them."""
    problem = draw(Case((2, 10, 3, 4), 5, layout=layout, squash=squash, bias=True, residual=residual, map=True))
    POISONED[poison](problem.x)
    got, want = results(function(backend), problem), results(composite, problem)
    for name, value in got.items():
        assert torch.equal(kinds(value), kinds(want[name])), name
        finite = want[name].isfinite()
        scale = want[name][finite].abs().amax().item() if finite.any() else 0.0
        torch.testing.assert_close(value[finite], want[name][finite], rtol=1e-4, atol=1e-5 * scale, msg=name)


def test_signed_zeros_keep_their_sign(backend):
    problem = draw(Case((1, 4, 2, 2), 2, bias=True))
    problem.x[0, :, 0, 0], problem.x[0, :, 1, 1] = 0.0, -0.0
    out, want = (call(*problem[:4], False)[0] for call in (function(backend), composite))
    assert torch.equal(out.signbit(), want.signbit())
    assert out[0, :, 1, 1].eq(0).all()


@pytest.mark.parametrize("shortcut", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_autocast(backend, shortcut):
    """out keeps x's dtype and equals the result without autocast; the residual follows x, its gradient follows it."""
    problem = draw(Case((2, 9, 3, 3), 4, torch.bfloat16, torch.float32, bias=True, residual=True))
    residual = problem.residual.to(shortcut).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        out, _ = function(backend)(problem.x, problem.w, residual, "tanh", False)
    want, _ = function(backend)(problem.x, problem.w, residual.detach().bfloat16(), "tanh", False)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out, want, rtol=0, atol=0)
    (grad,) = torch.autograd.grad(out, residual, problem.grad_out)
    assert torch.equal(grad, torch.where(out > 0, problem.grad_out, 0).to(shortcut))


GOOD = Case((2, 6, 3, 4), 2, bias=True, residual=True)


def quantized(x):
    return torch.quantize_per_tensor(x, 0.1, 0, torch.quint8)


REFUSED = {
    # argument, what is given in its place, exception, words of the message
    "x-list": ("x", lambda x: x.tolist(), TypeError, "x is a list"),
    "x-rank-3": ("x", lambda x: x[0], ValueError, "x has shape (6, 3, 4); expected 4 dimensions"),
    "x-rank-5": ("x", lambda x: x[None], ValueError, "x has shape (1, 2, 6, 3, 4); expected 4 dimensions"),
    "x-no-pixels": ("x", lambda x: x[:, :, :0], ValueError, "x has shape (2, 6, 0, 4); expected C, H and W"),
    "x-no-channels": ("x", lambda x: x[:, :0], ValueError, "x has shape (2, 0, 3, 4); expected C, H and W"),
    "x-channels": ("x", lambda x: x[:, :5], ValueError, "w_shrink has shape (2, 6); expected (2, 5)"),
    "x-int": ("x", lambda x: x.int(), TypeError, "x is torch.int32"),
    "x-bool": ("x", lambda x: x > 0, TypeError, "x is torch.bool"),
    "x-complex": ("x", lambda x: x.cfloat(), TypeError, "x is torch.complex64"),
    "x-double": ("x", lambda x: x.double(), TypeError, "w_shrink is torch.float32; expected x's torch.float64"),
    "x-meta": ("x", lambda x: x.to("meta"), ValueError, "w_shrink is on cpu; expected x's device, meta"),
    "x-coo": ("x", lambda x: x.to_sparse(), TypeError, "x is torch.sparse_coo; expected a dense tensor"),
    "x-csr": ("x", lambda x: x[0, 0].to_sparse_csr(), TypeError, "x is torch.sparse_csr; expected a dense tensor"),
    "x-quantized": ("x", quantized, TypeError, "x is quantized; expected a dense tensor"),
    "x-expanded": ("x", lambda x: x[:1].expand(2, 6, 3, 4), ValueError, "x (2, 6, 3, 4) has overlapping strides"),
    "x-window": (
        "x",
        lambda x: x.as_strided((2, 6, 3, 4), (60, 10, 2, 1)),
        ValueError,
        "x (2, 6, 3, 4) has over",
    ),
    "w_shrink-rank": ("w_shrink", lambda t: t[0], ValueError, "w_shrink has shape (6,); expected [R, C]"),
    "w_shrink-empty": ("w_shrink", lambda t: t[:0], ValueError, "w_shrink has shape (0, 6); expected [R, C]"),
    "w_shrink-transposed": ("w_shrink", lambda t: t.t(), ValueError, "w_shrink has shape (6, 2); expected (6, 6)"),
    "w_expand-transposed": ("w_expand", lambda t: t.t(), ValueError, "w_expand has shape (2, 6); expected (6, 2)"),
    "v_shrink-conv": ("v_shrink", lambda t: t[..., None, None], ValueError, "v_shrink has shape (2, 6, 1, 1)"),
    "v_collapse-row": ("v_collapse", lambda t: t[None], ValueError, "v_collapse has shape (1, 2); expected (2,)"),
    "a-short": ("a", lambda t: t[:5], ValueError, "a has shape (5,); expected (6,)"),
    "m-scalar": ("m", lambda t: t[0], ValueError, "m has shape (); expected (6,)"),
    "m-number": ("m", lambda t: 1.0, TypeError, "m is a float; expected a tensor"),
    "a-half": ("a", lambda t: t.half(), TypeError, "a is torch.float16; expected x's torch.float32"),
    "a-int": ("a", lambda t: t.int(), TypeError, "a is torch.int32; expected x's torch.float32"),
    "v_shrink-meta": ("v_shrink", lambda t: t.to("meta"), ValueError, "v_shrink is on meta; expected x's device, cpu"),
    "v_shrink-coo": ("v_shrink", lambda t: t.to_sparse(), TypeError, "v_shrink is torch.sparse_coo; expected a dense"),
    "b_w_shrink-long": ("b_w_shrink", lambda b: b.repeat(3), ValueError, "b_w_shrink has shape (6,); expected (2,)"),
    "b_v_collapse-scalar": ("b_v_collapse", lambda b: b[0], ValueError, "b_v_collapse has shape (); expected (1,)"),
    "b_v_shrink-list": ("b_v_shrink", lambda b: b.tolist(), TypeError, "b_v_shrink is a list; expected a tensor"),
    **{
        f"{name}-none": (name, lambda _: None, ValueError, f"{name} is None beside another bias; expected b_w_shrink, ")
        for name in Weights._fields[6:]
    },
    "residual-list": ("residual", lambda t: [t], TypeError, "residual is a list"),
    "residual-shape": ("residual", lambda t: t[:1], ValueError, "residual has shape (1, 6, 3, 4); expected x's"),
    "residual-rank": ("residual", lambda t: t[0], ValueError, "residual has shape (6, 3, 4); expected 4 dimensions"),
    "residual-dtype": ("residual", lambda t: t.double(), TypeError, "residual is torch.float64; expected x's dtype"),
    "residual-meta": ("residual", lambda t: t.to("meta"), ValueError, "residual is on meta; expected x's device, cpu"),
    "residual-coo": ("residual", lambda t: t.to_sparse(), TypeError, "residual is torch.sparse_coo"),
    "residual-expanded": ("residual", lambda t: t[:1].expand(2, 6, 3, 4), ValueError, "residual (2, 6, 3, 4) has over"),
    "squash": ("squash", lambda _: "relu", ValueError, "squash is 'relu'; expected one of 'tanh', 'sigmoid'"),
    "backend": ("backend", lambda _: "cudnn", ValueError, "backend is 'cudnn'; expected one of"),
    "backend-cuda": ("backend", lambda _: "cuda", RuntimeError, "backend 'cuda' cannot run: "),
}


@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.filterwarnings("ignore:Sparse CSR:UserWarning", "ignore:torch.quantize_per_tensor:UserWarning")
def test_bad_input_is_named_before_anything_is_written(backend, case):
    argument, change, exception, message = REFUSED[case]
    problem = draw(GOOD)
    good = {"x": problem.x, **problem.w._asdict(), "residual": problem.residual, "squash": "tanh", "backend": backend}
    before = [t.clone() for t in flat_inputs(problem)]
    with pytest.raises(exception, match=re.escape(message)):
        gala_cuda.gala(**{**good, argument: change(good[argument])})
    for t, kept in zip(flat_inputs(problem), before, strict=True):
        assert torch.equal(t, kept)


def test_an_unknown_backend_in_the_environment_is_named(monkeypatch):
    monkeypatch.setenv("GALA_BACKEND", "cudnn")
    problem = draw(Case((1, 3, 2, 2), 1))
    with pytest.raises(ValueError, match="environment variable GALA_BACKEND is 'cudnn'; expected one of"):
        gala_cuda.gala(problem.x, *problem.w)
