"""The fused CPU kernels: random problems against float64, the squash in ulps, repeatability, threads."""

import pytest
import torch

from gala_cuda.backends.dtypes import DTYPES
from gala_cuda.backends.interface import Weights
from gala_cuda.backends.squash import Squash
from gala_cuda.testing import (
    Case,
    assert_accurate,
    check,
    composite,
    draw,
    exact,
    operator,
    random_cases,
    results,
    tolerance,
)


@pytest.fixture(autouse=True)
def _needs_the_extension(cpu_backend):
    return cpu_backend


@pytest.fixture
def threads_restored():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.slow
def test_random_problems():
    """The first 60 of the 1,000 of `tools/accuracy.py`."""
    for seed, case in enumerate(random_cases(60)):
        check(operator("cpu"), case, seed)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_gradients_where_finite_x_overflows_the_attention(dtype, layout):
    """g s is infinite and its attention saturated, with derivative 0: d m is finite, as the reference backend has it;
    autograd of the formulas in float32 multiplies 0 by infinity."""
    problem = draw(Case((2, 8, 3, 3), 4, dtype, layout=layout, bias=True, residual=True, map=True))
    problem.x[0, 1] = problem.x[0, 1].sign() * torch.finfo(dtype).max / 16
    got, want = (results(operator(backend), problem) for backend in ("cpu", "reference"))
    assert results(composite, problem)["grad m"].isnan().any()
    torch.testing.assert_close(got["grad m"].double(), exact(problem)["grad m"], rtol=2e-2, atol=2e-2)
    for name, value in got.items():
        assert torch.equal(value.isfinite(), want[name].isfinite()), name


def test_random_problems_are_varied():
    """What the claim about 1,000 cases rests on: every dtype, layout and option is among them."""
    cases = list(random_cases(1000))
    for field, least in {"dtype": 4, "layout": 10, "squash": 2, "bias": 2, "residual": 2, "map": 2}.items():
        assert len({getattr(case, field) for case in cases}) == least
    assert any(case.reduced > 64 for case in cases)
    assert any(case.shape[2] * case.shape[3] == 1 for case in cases)


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("shape", "reduced"),
    [
        pytest.param((1, 64, 14, 14), 16, id="one-image"),
        pytest.param((2, 131, 7, 9), 33, id="odd"),
        pytest.param((5, 16, 2, 3), 70, id="wide-hidden-layer"),
        pytest.param((2, 1030, 7, 7), 40, id="many-channels"),
    ],
)
def test_larger_problems(shape, reduced, dtype, layout):
    """More than one tile in every direction, the ends of each included."""
    case = Case(shape, reduced, dtype, layout=layout, bias=True, residual=True, map=True)
    problem = draw(case)
    assert_accurate(results(operator("cpu"), problem), problem, case)


def squashed(t: torch.Tensor, squash: str, layout: torch.memory_format) -> torch.Tensor:
    """squash(t) elementwise, by the kernel: x = 1, both paths 0 but for the global path's bias t, a = 1, m = 0."""
    c, zero, one = t.numel(), t.new_zeros, t.new_ones
    w = Weights(zero(1, c), zero(c, 1), zero(1, c), zero(1), one(c), zero(c), zero(1), t, zero(1), zero(1))
    x = one(1, c, 1, 3).to(memory_format=layout)
    return operator("cpu")(x, w, None, squash, False)[0][0, :, 0, 1]


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("squash", [torch.tanh, torch.sigmoid], ids=lambda f: f.__name__)
def test_squash_is_within_4_ulp(squash, dtype, layout):
    """Of float64's, from denormals to saturation; exact at 0, far out and at NaN. As torch's own, sigmoid may end in 0
    where it passes below the smallest normal number."""
    info = torch.finfo(dtype)
    powers = torch.logspace(-44 if dtype == torch.float32 else -320, 2, 4001, dtype=torch.float64)
    special = torch.tensor([0.0, 1e30, -1e30, torch.nan], dtype=torch.float64)
    t = torch.cat([special, powers, -powers, torch.linspace(-12, 12, 6001, dtype=torch.float64)]).to(dtype)
    got, want = squashed(t, squash.__name__, layout), squash(t.double())
    rounded = want.to(dtype)
    torch.testing.assert_close(got[:4], rounded[:4], rtol=0, atol=0, equal_nan=True)
    ulp = torch.nextafter(rounded.abs(), torch.full_like(t, 2)).double() - rounded.abs().double()
    error = (got.double() - want).abs()[4:] / ulp[4:]
    if squash is torch.sigmoid:
        error[(got[4:] == 0) & (want[4:] < info.smallest_normal)] = 0
    assert error.max() <= 4, f"{error.max():.1f} ulp at {t[4:][error.argmax()]}"


@pytest.mark.slow
@pytest.mark.usefixtures("threads_restored")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize(
    ("shape", "reduced"), [((1, 64, 14, 14), 16), ((7, 33, 5, 5), 9), ((2, 8, 31, 1), 33)], ids=str
)
def test_repeats_are_bitwise_equal(shape, reduced, layout, dtype):
    torch.set_num_threads(2)
    problem = draw(Case(shape, reduced, dtype, layout=layout, bias=True, residual=True, map=True))
    first = results(operator("cpu"), problem)
    for _ in range(5):
        for name, value in results(operator("cpu"), problem).items():
            assert torch.equal(value, first[name]), name


@pytest.mark.usefixtures("threads_restored")
@pytest.mark.parametrize("threads", [1, 2, 3, 5])
def test_any_number_of_threads(threads):
    """More threads than images, rows that do not divide: each thread's share is right at both ends."""
    case = Case((3, 40, 7, 5), 12, bias=True, residual=True, map=True)
    problem = draw(case)
    torch.set_num_threads(threads)
    assert_accurate(results(operator("cpu"), problem), problem, case)


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_batches_beyond_the_cache(layout):
    """Above 16 MiB images go through all stages in chunks: the whole equals its parts, which are one chunk each."""
    n, c, side, reduced = 96, 128, 20, 3
    case = Case((n, c, side, side), reduced, layout=layout, residual=True, map=True)
    problem = draw(case)
    assert problem.x.nbytes > 16 << 20
    whole, parts = results(operator("cpu"), problem), []
    for i in range(0, n, 16):
        rows = slice(i, i + 16)
        part = problem._replace(
            **{name: getattr(problem, name)[rows] for name in ("x", "residual", "grad_out", "grad_map")}
        )
        parts.append(results(operator("cpu"), part))
    for name, value in whole.items():
        joined = [part[name] for part in parts]
        per_image = name in ("out", "map", "grad x", "grad residual")
        want = torch.cat(joined) if per_image else sum(t.double() for t in joined)
        assert (value - want).abs().max() <= tolerance(torch.float32, torch.float32, case.terms) * want.abs().max(), (
            name
        )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_offsets_beyond_32_bits(dtype):
    """Images 2^31 elements apart; the memory between them is never touched."""
    problem = draw(Case((2, 24, 3, 3), 5, dtype, residual=True))
    apart = 2**31 + 8
    try:
        memory = torch.empty(apart + problem.x[0].numel(), dtype=dtype)
    except RuntimeError as error:
        pytest.skip(f"no address space for two images 2^31 elements apart: {error}")
    x = memory.as_strided(problem.x.shape, (apart, *problem.x.stride()[1:])).copy_(problem.x)
    want = results(operator("cpu"), problem)
    for name, value in results(operator("cpu"), problem._replace(x=x)).items():
        assert torch.equal(value, want[name]), name


def test_without_gradients_nothing_but_out_and_map_is_computed():
    problem = draw(Case((2, 8, 3, 3), 4))
    out, attn_map, stats, relu_mask = torch.ops.gala_cuda.gala(
        problem.x, *problem.w, None, Squash.TANH, False, False, "cpu"
    )
    assert out.shape == problem.x.shape
    assert attn_map.numel() == stats.numel() == relu_mask.numel() == 0
