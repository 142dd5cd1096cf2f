"""How a backend is chosen, what a refusal says, and the contract's helpers."""

import warnings

import pytest
import torch
from oracle import LAYOUTS, Case, draw, laid_out

import gala_cuda
from gala_cuda import backends, native
from gala_cuda.backends import contract, cpu, reference

X = torch.empty(1, 2, 1, 1)


def test_the_names_are_the_public_ones():
    assert set(backends.NAMES) == {"reference", "cpu", "triton", "cuda"}


def test_reference_always_runs():
    assert backends.why_not("reference", X) is None
    assert backends.select(X, "reference") is reference


def test_why_not_of_the_cpu_backend(cpu_backend, monkeypatch):
    assert backends.why_not("cpu", X) is None
    assert "x is on meta, expected cpu" in backends.why_not("cpu", X.to("meta"))
    assert "x is torch.int32" in backends.why_not("cpu", X.int())
    monkeypatch.setattr(native, "module", None)
    monkeypatch.setattr(native, "why_not", "no compiler")
    assert backends.why_not("cpu", X) == "no compiler"


@pytest.mark.parametrize("name", ["cuda"])
def test_an_explicit_request_raises_with_the_reason(name):
    reason = backends.why_not(name, X)
    if reason is None:
        pytest.skip(f"backend {name!r} runs here")
    with pytest.raises(RuntimeError, match=f"backend '{name}' cannot run: ") as error:
        backends.select(X, name)
    assert reason in str(error.value)


def test_argument_comes_before_environment(monkeypatch):
    assert backends.requested(None) == ""
    monkeypatch.setenv("GALA_BACKEND", "reference")
    assert backends.requested(None) == "reference"
    assert backends.requested("cpu") == "cpu"
    monkeypatch.setenv("GALA_BACKEND", "")
    assert backends.requested(None) == ""


def test_environment_reaches_the_function(monkeypatch):
    """The environment's choice is explicit too: a backend that cannot run raises."""
    problem = draw(Case((1, 3, 2, 2), 1))
    monkeypatch.setenv("GALA_BACKEND", "cuda")
    if backends.why_not("cuda", problem.x) is None:
        pytest.skip("backend 'cuda' runs here")
    with pytest.raises(RuntimeError, match="backend 'cuda' cannot run"):
        gala_cuda.gala(problem.x, *problem.w[:6])
    assert gala_cuda.gala(problem.x, *problem.w[:6], backend="reference").shape == problem.x.shape


def test_automatic_choice_is_the_cpu_backend(cpu_backend):
    assert backends.select(X, "") is cpu


def test_automatic_choice_of_the_reference_warns_once_with_the_reason(monkeypatch):
    monkeypatch.setattr(cpu, "why_not", lambda x: "the reason of this test")
    monkeypatch.setattr(backends, "_warned", set())
    with pytest.warns(UserWarning, match="the reason of this test"):
        assert backends.select(X, "") is reference
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert backends.select(X, "") is reference


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (2, 1, 3, 2), (2, 3, 1, 4), (2, 3, 4, 1), (2, 3, 1, 1)], ids=str)
def test_only_crops_are_copied(layout, shape):
    """NCHW and channels_last, sliced along N or C or not, are read in place; a crop of several rows costs one copy."""
    x = laid_out(torch.randn(shape), layout)
    walked = contract.walkable(x)
    assert torch.equal(walked, x)
    single = shape[2] == 1 or shape[3] == 1
    if not layout.endswith("crop"):
        assert walked is x
    elif not single:
        assert walked is not x
        assert walked.stride() == torch.empty_like(x).stride()


def test_second_tensors_follow_the_first_ones_lanes():
    nchw, nhwc = torch.randn(2, 3, 4, 5), torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last)
    assert contract.channel_lanes(nhwc)
    assert not contract.channel_lanes(nchw)
    assert contract.walkable(nchw, like=nchw) is nchw
    assert contract.walkable(nhwc, like=nhwc) is nhwc
    converted = contract.walkable(nchw, like=nhwc)
    assert converted.stride() == nhwc.stride()
    assert torch.equal(converted, nchw)


@pytest.mark.parametrize(("reduced", "words"), [(1, 1), (31, 1), (32, 1), (33, 2), (64, 2), (65, 3)])
def test_bit_words(reduced, words):
    assert contract.bit_words(reduced) == words


def test_stats_are_views_of_their_row():
    stats = torch.arange(2.0 * contract.stats_width(6, 4, 3)).view(2, -1)
    s, p, z = contract.split_stats(stats, 4, 3)
    assert (s.shape, p.shape, z.shape) == ((2, 6), (2, 4), (2, 3))
    assert torch.equal(torch.cat([s, p, z], 1), stats)
    assert all(part.untyped_storage().data_ptr() == stats.untyped_storage().data_ptr() for part in (s, p, z))
