"""The CUDA kernels, run on the host by `shim` with threads in random orders, against float64: forward and backward."""

from typing import Any

import pytest
import torch
from shim import Shim, why_no_compiler

from gala_cuda import backends
from gala_cuda.backends.interface import Weights
from gala_cuda.backends.squash import SQUASHES
from gala_cuda.testing import Case, Problem, composite, draw, errors, exact, laid_out, operator, results, tolerance

pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(why_no_compiler()), reason=why_no_compiler() or "")]

FULL: dict[str, Any] = {"bias": True, "residual": True, "map": True}
LAYOUTS = ("contiguous", "channels_last")
# their products take v_shrink or v_collapse v_shrink in x's dtype
ROUNDED = ("grad x", "grad v_shrink", "grad v_collapse")
TANH_APPROX = 2**-11  # the relative error of the hardware's tanh, which serves bfloat16
TF32_ROUNDING = 2**-11


@pytest.fixture
def run(monkeypatch):
    """results(problem) on a device with these properties."""

    def call(problem: Problem, **properties) -> dict[str, torch.Tensor]:
        monkeypatch.setitem(backends.BACKENDS, "cuda", Shim(**properties))
        return results(operator("cuda"), problem)

    return call


def representable(problem: Problem) -> Problem:
    """Rounds v_shrink to x's dtype, as the products do, so that this rounding is no error of the results."""
    v = problem.w.v_shrink
    return problem._replace(w=problem.w._replace(v_shrink=v.to(problem.x.dtype).to(v.dtype)))


def assert_right(got: dict[str, torch.Tensor], problem: Problem, case: Case, rounding: float | None = None) -> None:
    """Asserts what `tolerance` asks for; results in ROUNDED may be off by one `rounding` more, by default x's dtype's.

    Float32 results of bfloat16 x carry the error of its tanh besides: A's, and twice that in 1 - A^2.
    """
    approximate = case.dtype == torch.bfloat16 and case.squash == "tanh"
    beyond = {}
    for name, error in errors(got, problem, case).items():
        limit = tolerance(got[name].dtype, case.dtype, case.terms)
        if name in ROUNDED:
            limit += torch.finfo(case.dtype).eps / 2 if rounding is None else rounding
        if approximate and got[name].dtype == torch.float32:
            limit += TANH_APPROX if name == "map" else 2 * TANH_APPROX
        if not error <= limit:
            beyond[name] = f"{error:.2e} > {limit:.2e}"
    assert not beyond, f"relative to float64: {beyond}"


BF16, F16 = torch.bfloat16, torch.float16
CASES = {
    "one of everything": Case((1, 1, 1, 1), 1),
    "one of everything, bfloat16": Case((1, 1, 1, 1), 1, BF16, layout="channels_last", **FULL),
    "C 7": Case((3, 7, 5, 5), 2, layout="channels_last"),
    "C 7, NCHW": Case((3, 7, 5, 5), 2, F16, squash="sigmoid", **FULL),
    "an odd number of k-tiles": Case((5, 96, 7, 7), 24, layout="channels_last", **FULL),
    "an odd number of k-tiles, NCHW": Case((5, 96, 7, 7), 24, squash="sigmoid", **FULL),
    "an odd number of k-tiles, bfloat16": Case((3, 192, 7, 7), 24, BF16, layout="channels_last", **FULL),
    "an odd number of k-tiles, bfloat16, NCHW": Case((3, 192, 7, 7), 24, BF16, **FULL),
    "14x14": Case((2, 40, 14, 14), 10, layout="channels_last", bias=True),
    "14x14, bfloat16, NCHW": Case((3, 40, 14, 14), 10, BF16, squash="sigmoid", **FULL),
    "14x14, float16": Case((2, 24, 14, 14), 6, F16, layout="channels_last", map=True),
    "one pixel": Case((70, 40, 1, 1), 10, F16, layout="channels_last", **FULL),
    "one pixel, NCHW": Case((70, 40, 1, 1), 10, **FULL),
    "two hidden words": Case((2, 40, 4, 4), 40, layout="channels_last", **FULL),
    "five hidden tiles": Case((1, 24, 3, 5), 300, BF16, layout="channels_last", **FULL),
    "five hidden tiles, NCHW": Case((1, 24, 3, 5), 300, **FULL),
    "wide weights": Case((2, 33, 6, 6), 9, BF16, torch.float32, "channels_last", **FULL),
    "wide weights, float16, NCHW": Case((2, 33, 6, 6), 9, F16, torch.float32),
    "slice along C": Case((2, 24, 5, 5), 6, F16, layout="channels_last/slice_c", **FULL),
    "slice along N": Case((2, 24, 5, 5), 6, layout="contiguous/slice_n", **FULL),
    "misaligned": Case((2, 24, 4, 4), 6, BF16, layout="channels_last/misaligned", **FULL),
    "misaligned, NCHW": Case((2, 24, 4, 4), 6, F16, layout="contiguous/misaligned", **FULL),
    "misaligned, float32": Case((2, 24, 4, 4), 6, layout="contiguous/misaligned", **FULL),
    "one channel, channels_last": Case((2, 1, 8, 8), 1, BF16, layout="channels_last", **FULL),
    "one channel, channels_last, float32": Case((1, 1, 4, 4), 2, layout="channels_last", **FULL),
    "height 1": Case((3, 16, 1, 9), 4, layout="channels_last", residual=True),
    "many channels": Case((1, 1030, 2, 2), 7, BF16, layout="channels_last", **FULL),
}


@pytest.mark.parametrize("name", CASES)
def test_forward_and_gradients_match_float64(name, run):
    """With a seed of its own for each case."""
    case = CASES[name]
    problem = representable(draw(case))
    assert_right(run(problem, seed=list(CASES).index(name)), problem, case)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    ("shape", "reduced", "dtype"),
    [
        pytest.param((64, 8, 14, 14), 5, torch.float32, id="128-rows"),
        pytest.param((70, 8, 14, 14), 130, BF16, id="256-hidden"),
    ],
)
def test_large_tiles(shape, reduced, dtype, layout, run):
    """With so many pixels that the kernels take the tiles of large problems."""
    case = Case(shape, reduced, dtype, layout=layout, bias=True, map=True)
    problem = representable(draw(case))
    assert_right(run(problem, seed=3), problem, case)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, BF16], ids=str)
def test_the_order_of_threads_and_blocks_does_not_matter(dtype, layout, run):
    problem = draw(Case((3, 72, 7, 5), 36, dtype, layout=layout, **FULL))
    first = run(problem, seed=0)
    for seed in range(1, 7):
        for name, value in run(problem, seed=seed).items():
            assert torch.equal(value, first[name]), (name, seed)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_device_does_not_matter(layout, run):
    """More shared memory changes no bit."""
    problem = draw(Case((3, 200, 5, 5), 36, layout=layout, **FULL))
    small = run(problem)
    for shared_kib in (163, 227):
        large = run(problem, shared_limit=shared_kib << 10)
        assert all(torch.equal(small[name], large[name]) for name in small)


def to_tf32(t: torch.Tensor) -> torch.Tensor:
    """Float32 with the 10 bits of mantissa that TF32 has."""
    return t.copy_(((t.view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_tf32(layout, run):
    """Products are exact where the operands are TF32 numbers; others are rounded, but not where tf32 is off."""
    case = Case((2, 96, 6, 6), 24, layout=layout, **FULL)
    problem = draw(case)
    assert not torch.equal(run(problem, tf32=True)["out"], run(problem)["out"])
    to_tf32(problem.x), to_tf32(problem.w.v_shrink)
    assert_right(run(problem, tf32=True, seed=2), problem, case, TF32_ROUNDING)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("dtype", [torch.float32, F16], ids=str)
def test_nan_and_infinity_go_where_the_reference_sends_them(dtype, value, layout, run):
    """They reach all of the image that holds them; other images keep every bit, though tiles span several images."""
    case = Case((3, 8, 3, 3), 2, dtype, layout=layout, **FULL)
    problem = draw(case)
    clean = run(problem)
    problem.x[1, 2, 1, 1] = value
    got, want = run(problem), results(composite, problem)
    for name in got:
        assert torch.equal(got[name].isnan(), want[name].isnan()), name
        assert torch.equal(got[name].isinf(), want[name].isinf()), name
    for name in ("out", "map", "grad x", "grad residual"):
        assert torch.equal(got[name][::2], clean[name][::2]), name


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, BF16], ids=str)
def test_gradients_where_finite_x_overflows_the_attention(dtype, layout, run):
    """g s is infinite and its attention saturated, with derivative 0: d m is finite, as the reference backend has it;
    autograd of the formulas in float32 multiplies 0 by infinity."""
    problem = representable(draw(Case((2, 8, 3, 3), 4, dtype, layout=layout, **FULL)))
    problem.x[0, 1] = problem.x[0, 1].sign() * torch.finfo(dtype).max / 16
    got, want = run(problem), results(operator("reference"), problem)
    assert results(composite, problem)["grad m"].isnan().any()
    torch.testing.assert_close(got["grad m"].double(), exact(problem)["grad m"], rtol=2e-2, atol=2e-2)
    for name, value in got.items():
        assert torch.equal(value.isfinite(), want[name].isfinite()), name


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("squash", [torch.tanh, torch.sigmoid], ids=lambda f: f.__name__)
def test_squash_is_within_4_ulp(squash, layout, run):
    """With the host's exp and tanh. x = 1, both paths 0 but for the global path's bias t, a = 1, m = 0."""
    powers = torch.logspace(-44, 2, 401)
    t = torch.cat([torch.tensor([0.0, 1e30, -1e30, torch.nan]), powers, -powers, torch.linspace(-12, 12, 801)])
    c, zero, one = t.numel(), t.new_zeros, t.new_ones
    w = Weights(zero(1, c), zero(c, 1), zero(1, c), zero(1), one(c), zero(c), zero(1), t, zero(1), zero(1))
    x = laid_out(torch.ones(1, c, 1, 3), layout)
    got = run(Problem(x, w, None, squash.__name__, torch.ones_like(x), None))["out"][0, :, 0, 1]
    want = squash(t.double())
    rounded = want.float()
    torch.testing.assert_close(got[:4], rounded[:4], rtol=0, atol=0, equal_nan=True)
    ulp = torch.nextafter(rounded.abs(), torch.full_like(t, 2)).double() - rounded.abs().double()
    error = (got.double() - want).abs()[4:] / ulp[4:]
    if squash is torch.sigmoid:  # which may end in 0 below the smallest normal number
        error[(got[4:] == 0) & (want[4:] < torch.finfo(torch.float32).smallest_normal)] = 0
    assert error.max() <= 4, f"{error.max():.1f} ulp at {t[4:][error.argmax()]}"


@pytest.mark.parametrize("dim", [0, 1], ids=["images", "channels"])
@pytest.mark.parametrize("dtype", [torch.float32, BF16], ids=str)
def test_offsets_beyond_32_bits(dtype, dim, run):
    """Images or channels 2^31 elements apart; the memory between them is never touched."""
    problem = draw(Case((2, 2, 3, 3), 5, dtype))
    apart = 2**31 + 8
    strides = (apart, 9, 3, 1) if dim == 0 else (9, apart, 3, 1)
    try:
        memory = torch.empty(apart + 64, dtype=dtype)
    except RuntimeError as error:
        pytest.skip(f"no address space for 2^31 elements: {error}")
    far = problem._replace(x=memory.as_strided(problem.x.shape, strides).copy_(problem.x))
    want = run(problem)
    for name, value in run(far).items():
        assert torch.equal(value, want[name]), name


def test_only_what_is_asked_for(run):
    """Nothing is saved where no gradient is wanted; gradients may be those of x alone or of some weights alone."""
    problem = draw(Case((2, 8, 3, 3), 4, bias=True, residual=True))
    whole = run(problem)
    x, w, residual, squash, grad_out, _ = problem
    out, attn_map, stats, relu_mask = torch.ops.gala_cuda.gala(x, *w, residual, SQUASHES[squash], False, False, "cuda")
    assert torch.equal(out, whole["out"])
    assert attn_map.numel() == stats.numel() == relu_mask.numel() == 0
    for wanted in (("x",), ("w_shrink", "v_shrink")):
        leaves = {name: t.detach().requires_grad_(name in wanted) for name, t in {"x": x, **w._asdict()}.items()}
        out = operator("cuda")(leaves["x"], w._make(list(leaves.values())[1:]), residual, squash, False)[0]
        grads = torch.autograd.grad(out, [leaves[name] for name in wanted], grad_out)
        assert all(torch.equal(grad, whole[f"grad {name}"]) for name, grad in zip(wanted, grads, strict=True))


def test_float64_is_refused(run):
    with pytest.raises(RuntimeError, match=r"float64, expected one of"):
        run(draw(Case((1, 2, 2, 2), 1, torch.float64)))


REFUSED = {  # what of gala.h's arguments is set to what, and the first words of the error
    "dtype": (("problem.dtype", 1), "dtype is f64"),
    "squash": (("problem.squash", 2), "squash is 2, expected 0 for tanh, 1 for sigmoid"),
    "no images": (("problem.shape.images", 0), "shape.images is 0"),
    "pixels": (("problem.shape.pixels", 2**31), "shape.pixels is 2147483648"),
    "weight": (("problem.weights.a", None), "weights.a is null"),
    "x": (("call.x.data", None), "x.data is null"),
    "stride": (("call.x.channel_stride", 2), "x.channel_stride is 2, expected 1"),
    "stats": (("call.stats", None), "stats is null"),
    "workspace": (("execution.workspace", None), "workspace is null"),
    "alignment": (("execution.workspace", 4096 + 16), "workspace is not aligned to 256 bytes"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_bad_arguments_are_refused(name, run):
    """The error names the argument, and nothing is launched before."""
    (path, value), message = REFUSED[name]

    def tamper(problem, call, execution):
        first, *between, last = path.split(".")
        struct = {"problem": problem, "call": call, "execution": execution}[first]
        for field in between:
            struct = getattr(struct, field)
        setattr(struct, last, value)

    with pytest.raises(RuntimeError, match=f"^gala::cuda: {message}"):
        run(draw(Case((1, 4, 2, 2), 2, layout="channels_last")), tamper=tamper)
