"""How a backend is chosen, what a refusal says, and the helpers of backends."""

import ctypes
import math
import os
import warnings
from types import SimpleNamespace

import pytest
import torch

import gala_cuda
from gala_cuda import backends, native
from gala_cuda.backends import cpu, cuda, reference
from gala_cuda.backends.layout import in_place_or_copy, is_channels_last
from gala_cuda.backends.saved import mask_words, split_stats, stats_width
from gala_cuda.backends.squash import Squash
from gala_cuda.testing import LAYOUTS, Case, draw, laid_out

X = torch.empty(1, 2, 1, 1)
BUILD = {"cuda": "13.0.88", "cuda_architectures": ["80", "86", "89", "90a", "100", "100+PTX"]}


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


def on_a_gpu(shape=(2, 3, 4, 5), dtype=torch.float32):
    """As much of a CUDA tensor as ``why_not`` looks at."""
    return SimpleNamespace(
        device=torch.device("cuda:0"), dtype=dtype, shape=torch.Size(shape), numel=lambda: math.prod(shape)
    )


@pytest.fixture
def gpu(monkeypatch):
    """An H100 under a driver for CUDA 13.0, a torch for CUDA, and an extension with kernels."""
    cuda._why_not_on.cache_clear()
    monkeypatch.setattr(native, "module", SimpleNamespace(cuda_driver=lambda: 13000))
    monkeypatch.setattr(native, "build", BUILD)
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    yield
    cuda._why_not_on.cache_clear()


def lacking(monkeypatch, what):
    if what == "extension":
        monkeypatch.setattr(native, "module", None)
        monkeypatch.setattr(native, "why_not", "no compiler")
    elif what == "kernels":
        monkeypatch.setattr(native, "build", {"cuda_missing": "nvcc was not found"})
    elif what == "torch":
        monkeypatch.setattr(torch.version, "cuda", None)
    elif what == "capability":
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))


@pytest.mark.parametrize(
    ("x", "what", "reason"),
    [
        pytest.param(on_a_gpu(), None, None, id="runs"),
        pytest.param(on_a_gpu((0, 3, 4, 5)), None, None, id="empty"),
        pytest.param(on_a_gpu(), "extension", "no compiler", id="no-extension"),
        pytest.param(on_a_gpu(), "kernels", "has no CUDA kernels: nvcc was not found", id="no-kernels"),
        pytest.param(X, None, "x is on cpu, expected cuda", id="cpu"),
        pytest.param(on_a_gpu(), "torch", "torch is not built for CUDA", id="no-cuda-in-torch"),
        pytest.param(on_a_gpu(), "capability", "cuda:0 has compute capability 7.5, expected 8.0", id="old-gpu"),
        pytest.param(on_a_gpu(dtype=torch.float64), None, "x is torch.float64, expected one of", id="float64"),
        pytest.param(on_a_gpu((2**16, 1, 2**8, 2**7)), None, "x has 2147483648 pixels, expected fewer", id="pixels"),
    ],
)
def test_why_not_of_the_cuda_backend(gpu, monkeypatch, x, what, reason):
    lacking(monkeypatch, what)
    found = backends.why_not("cuda", x)
    assert found is None if reason is None else reason in found


@pytest.mark.parametrize(
    ("capability", "architectures", "runs"),
    [
        ((8, 6), "80", True),  # machine code runs on later minor versions
        ((8, 0), "86", False),
        ((9, 0), "80 86", False),  # and on no other major version
        ((9, 0), "90a", True),
        ((9, 1), "90a", False),  # a: its own version alone
        ((10, 3), "100f", True),
        ((12, 0), "100f", False),
        ((12, 1), "120", True),
        ((12, 0), "100+PTX", True),  # compiled by the driver
        ((9, 0), "100+PTX", False),
        ((8, 7), "80 86", False),  # Tegra: code of its own alone
        ((8, 7), "87", True),
        ((8, 9), "87", False),
        ((8, 7), "80 86 80+PTX", True),
        ((10, 1), "100f", False),
        ((11, 0), "100 110", True),
    ],
)
def test_architectures_run_where_cuda_says(capability, architectures, runs):
    build = BUILD | {"cuda_architectures": architectures.split()}
    reason = cuda.unfit(capability, 13000, build)
    assert reason is None if runs else f"were not built: they are for {architectures}" in reason


@pytest.mark.parametrize(
    ("capability", "driver", "runs"),
    [
        ((8, 6), 13000, True),
        ((8, 7), 13000, False),
        ((8, 7), 13010, True),
        ((12, 0), 13000, False),
        ((12, 0), 14000, True),
    ],
)
def test_the_driver_that_compiles_ptx_is_as_new_as_nvcc(capability, driver, runs):
    build = {"cuda": "13.1.48", "cuda_architectures": ["80", "80+PTX"]}
    reason = cuda.unfit(capability, driver, build)
    assert reason is None if runs else "PTX alone, which takes a driver for CUDA 13.1 or newer" in reason


@pytest.mark.parametrize(("driver", "runs"), [(12080, False), (13000, True), (13020, True), (14010, True)])
def test_the_driver_is_as_new_as_the_kernels(driver, runs):
    reason = cuda.unfit((8, 0), driver, BUILD)
    assert reason is None if runs else "has a driver for CUDA 12.8, and the kernels were built with CUDA 13" in reason


@pytest.mark.skipif(native.module is None, reason=str(native.why_not))
def test_wrong_tensors_are_named_before_anything_is_computed():
    """By the operator that both compiled backends call; the errors of ``gala_cuda.gala`` come before."""
    problem = draw(Case((2, 3, 4, 5), 2))
    x, w = problem.x, problem.w
    good = [x, *w, None, Squash.TANH, False, True, False]
    call = torch.ops.gala_native.forward.default
    assert call(*good)[0].shape == x.shape
    for position, wrong, message in [
        (0, x[0], "x or w_shrink has a wrong rank"),
        (0, x[..., ::2], "x cannot be read in place"),
        (1, w.w_shrink.double(), "w_shrink has a wrong size, type, device or strides"),
        (3, w.v_shrink[:, :2], "v_shrink has a wrong size"),
        (7, w.a, "b_w_shrink has a wrong size"),
        (11, x[:1], "residual has not the shape of x"),
        (11, x.double(), "residual does not go with x"),
        (12, 2, "squash is 2, expected 0 for tanh or 1 for sigmoid"),
    ]:
        with pytest.raises(RuntimeError, match=message):
            call(*good[:position], wrong, *good[position + 1 :])


@pytest.mark.skipif(torch.version.cuda is None, reason="torch is not built for CUDA")
def test_torch_tells_its_current_stream():
    """The extension looks for this function at run time, in this library, which torch has loaded."""
    library = ctypes.CDLL("libtorch_cuda.so", mode=os.RTLD_NOLOAD | os.RTLD_LAZY)
    assert library.aoti_torch_get_current_cuda_stream


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
        gala_cuda.gala(problem.x, *problem.w)
    assert gala_cuda.gala(problem.x, *problem.w, backend="reference").shape == problem.x.shape


def test_automatic_choice_is_the_cpu_backend(cpu_backend):
    assert backends.select(X, "") is cpu


def test_automatic_choice_is_never_the_cuda_backend(gpu, monkeypatch):
    """Until recorded runs show it to be right and fast."""
    assert backends.choose(on_a_gpu(), "cuda") == ("cuda", None)
    monkeypatch.setattr(backends.triton, "why_not", lambda x: None)
    assert backends.choose(on_a_gpu(), "") == ("triton", None)
    monkeypatch.setattr(backends.triton, "why_not", lambda x: "Triton is not installed")
    assert backends.choose(on_a_gpu(), "") == ("reference", "triton backend: Triton is not installed")


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
    walked = in_place_or_copy(x)
    assert torch.equal(walked, x)
    single = shape[2] == 1 or shape[3] == 1
    if not layout.endswith("crop"):
        assert walked is x
    elif not single:
        assert walked is not x
        assert walked.stride() == torch.empty_like(x).stride()


def test_second_tensors_follow_the_first_ones_lanes():
    nchw, nhwc = torch.randn(2, 3, 4, 5), torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last)
    assert is_channels_last(nhwc)
    assert not is_channels_last(nchw)
    assert in_place_or_copy(nchw, like=nchw) is nchw
    assert in_place_or_copy(nhwc, like=nhwc) is nhwc
    converted = in_place_or_copy(nchw, like=nhwc)
    assert converted.stride() == nhwc.stride()
    assert torch.equal(converted, nchw)


@pytest.mark.parametrize(("reduced", "words"), [(1, 1), (31, 1), (32, 1), (33, 2), (64, 2), (65, 3)])
def test_mask_words(reduced, words):
    assert mask_words(reduced) == words


def test_stats_are_views_of_their_row():
    stats = torch.arange(2.0 * stats_width(6, 4, 3)).view(2, -1)
    s, p, z = split_stats(stats, 4, 3)
    assert (s.shape, p.shape, z.shape) == ((2, 6), (2, 4), (2, 3))
    assert torch.equal(torch.cat([s, p, z], 1), stats)
    assert all(part.untyped_storage().data_ptr() == stats.untyped_storage().data_ptr() for part in (s, p, z))
