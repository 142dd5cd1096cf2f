"""The squashes, their derivatives and the rounding of the Triton kernels, checked for single numbers."""

import pytest
import torch
from test_triton import DEVICE

triton = pytest.importorskip("triton", reason="Triton is not installed")

import triton.language as tl  # noqa: E402

from gala_cuda.backends.squash import SQUASHES  # noqa: E402
from gala_cuda.backends.triton.numerics import derivative, narrow, squash  # noqa: E402

BLOCK = 4096
pytestmark = pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")  # numpy's, of the interpreter


@triton.jit
def squash_all(x, out, SQUASH: tl.constexpr, DTYPE: tl.constexpr, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out + at, squash(tl.load(x + at), SQUASH, DTYPE))


@triton.jit
def slopes(x, out, SQUASH: tl.constexpr, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out + at, derivative(tl.load(x + at), SQUASH))


@triton.jit
def narrow_all(x, out, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out + at, narrow(tl.load(x + at), out.dtype.element_ty))


def numbers() -> torch.Tensor:
    """Numbers of all magnitudes and both signs, as many as fill whole blocks."""
    small = torch.logspace(-38, 2, 150000, dtype=torch.float64)
    x = torch.cat([torch.linspace(-100, 100, 200000), torch.linspace(-1, 1, 100000), small, -small]).float()
    return x[: x.numel() // BLOCK * BLOCK].to(DEVICE)


def squashed(x: torch.Tensor, name: str, dtype: tl.dtype) -> torch.Tensor:
    out = torch.empty_like(x)
    squash_all[(x.numel() // BLOCK,)](x, out, int(SQUASHES[name]), dtype, BLOCK)
    return out


@pytest.mark.slow
@pytest.mark.parametrize("name", SQUASHES)
def test_squash_of_float32_is_within_four_ulp(name):
    x = numbers()
    got, want = squashed(x, name, tl.float32), getattr(torch, name)(x.double())
    above = torch.nextafter(want.abs().float(), torch.tensor(torch.inf, device=DEVICE))
    ulp = (above - want.abs().float()).double()
    normal = want.abs() >= torch.finfo(torch.float32).tiny
    assert ((got.double() - want).abs() / ulp)[normal].max() <= 4


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [tl.float16, tl.bfloat16], ids=str)
@pytest.mark.parametrize("name", SQUASHES)
def test_squash_of_16_bits_is_far_more_accurate_than_they_are(name, dtype):
    """bfloat16 tanh is the hardware's on a GPU: within 2^-11 of its value, an eighth of bfloat16's epsilon."""
    x = numbers()
    got, want = squashed(x, name, dtype), getattr(torch, name)(x.double())
    hardware = DEVICE == "cuda" and name == "tanh" and dtype == tl.bfloat16
    normal = want.abs() >= torch.finfo(torch.float32).tiny
    assert ((got.double() - want) / want)[normal].abs().max() <= (2**-10.9 if hardware else 2e-6)


@pytest.mark.parametrize("dtype", [tl.float32, tl.float16, tl.bfloat16], ids=str)
@pytest.mark.parametrize("name", SQUASHES)
def test_squash_of_zero_infinity_and_nan(name, dtype):
    special = torch.tensor([0.0, -0.0, torch.inf, -torch.inf, torch.nan, 1.0, -1.0, 100.0], device=DEVICE)
    x = special.repeat(BLOCK // 8)
    torch.testing.assert_close(squashed(x, name, dtype), getattr(torch, name)(x), equal_nan=True, atol=0, rtol=1e-3)


@pytest.mark.parametrize("name", SQUASHES)
def test_derivative_of_a_squash_from_its_value(name):
    x = torch.linspace(-8, 8, BLOCK, dtype=torch.float64, device=DEVICE).requires_grad_()
    value = getattr(torch, name)(x)
    (want,) = torch.autograd.grad(value.sum(), x)
    got = torch.empty(BLOCK, device=DEVICE)
    slopes[(1,)](value.detach().float(), got, int(SQUASHES[name]), BLOCK)
    torch.testing.assert_close(got, want.float(), rtol=1e-5, atol=2e-7)


def test_a_third_squash_has_no_derivative():
    x = torch.zeros(BLOCK, device=DEVICE)
    with pytest.raises(triton.TritonError, match="no derivative of squash 2"):
        slopes[(1,)](x, x, len(SQUASHES), BLOCK)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rounding_is_to_nearest_even(dtype):
    halfway = (torch.arange(BLOCK, dtype=torch.int32) * 0x8000 + 0x3F000000).view(torch.float32)
    special = torch.tensor([torch.nan, torch.inf, -torch.inf, 3.4e38, -1e-41, 65519.0, 65520.0, 0.0]).repeat(BLOCK // 8)
    x = torch.cat([halfway, special, torch.randn(BLOCK)]).to(DEVICE)
    out = torch.empty_like(x, dtype=dtype)
    narrow_all[(x.numel() // BLOCK,)](x, out, BLOCK)
    torch.testing.assert_close(out, x.to(dtype), equal_nan=True, atol=0, rtol=0)
