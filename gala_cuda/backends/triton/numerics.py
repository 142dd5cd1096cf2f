"""The arithmetic of the kernels: products, rounding, the ReLU and the squashes.

In Triton's interpreter, products and arithmetic of bfloat16 are wrong and float32 is cut, not rounded, to bfloat16:
`dot` widens its operands there and `narrow` rounds by hand.
"""

import triton
import triton.language as tl

from ..squash import Squash

INTERPRETED = tl.constexpr(bool(triton.knobs.runtime.interpret))
TANH, SIGMOID = tl.constexpr(int(Squash.TANH)), tl.constexpr(int(Squash.SIGMOID))


@triton.jit
def dot(a, b, acc, PRECISION: tl.constexpr):
    """acc + a . b in float32. PRECISION says how float32 operands are multiplied: "ieee", "tf32" or "tf32x3"."""
    if INTERPRETED:
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    return tl.dot(a, b, acc, input_precision=PRECISION)


@triton.jit
def narrow(value, dtype: tl.constexpr):
    """float32 rounded to dtype, to nearest even."""
    if INTERPRETED and dtype == tl.bfloat16:
        bits = value.to(tl.int32, bitcast=True)
        rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        return tl.where(value == value, rounded, 0x7FC0).to(tl.int16).to(tl.bfloat16, bitcast=True)
    return value.to(dtype)


@triton.jit
def computed_anew(value):
    """A 32-bit integer as it is, but what is made of it is not kept in registers from an earlier time."""
    if INTERPRETED:
        return value
    return tl.inline_asm_elementwise("mov.b32 $0, $1;", "=r,r", [value], dtype=tl.int32, is_pure=False, pack=1)


@triton.jit
def relu(value):
    """max(value, 0) that keeps a NaN, as torch.relu."""
    return tl.where(value <= 0, 0.0, value)


@triton.jit
def _exp_parts(y, LESS: tl.constexpr):
    """2^(n - LESS) and exp(r) - 1 for y = n ln 2 + r, |r| <= ln 2 / 2; as csrc/cpu/squash.h."""
    n = tl.floor(y * 1.44269504088896340736 + 0.5)
    r = (y - n * 0.693145751953125) - n * 1.428606765330187e-06
    scale = ((n.to(tl.int32) + (127 - LESS)) << 23).to(tl.float32, bitcast=True)
    series = 0.0013882517 * r + 0.0083665475
    series = series * r + 0.0416672006
    series = series * r + 0.1666654348
    series = series * r + 0.49999997
    return scale, r * r * series + r


@triton.jit
def _tanh_float32(x):
    """tanh |x| = e / (e + 2) with e = exp(2 |x|) - 1, which loses nothing near 0."""
    sign = x.to(tl.int32, bitcast=True) & -2147483648
    size = tl.abs(x)
    size = tl.where(size > 10.0, 10.0, size)
    scale, expm1_r = _exp_parts(size + size, 0)
    e = scale * expm1_r + (scale - 1)
    return (tl.div_rn(e, e + 2).to(tl.int32, bitcast=True) | sign).to(tl.float32, bitcast=True)


@triton.jit
def _sigmoid_float32(x):
    y = -x
    y = tl.where(y < -87.0, -87.0, y)
    y = tl.where(y > 89.0, 89.0, y)
    scale, expm1_r = _exp_parts(y, 1)  # exp(y) / 2 stays finite
    return tl.div_rn(tl.full(y.shape, 1.0, tl.float32), 1 + (scale * expm1_r + scale) * 2)


@triton.jit
def _tanh_fast(x):
    """Within 1e-6 of tanh, relatively: (1 - t) / (1 + t) with t = exp(-2 |x|), near 0 a series."""
    size = tl.abs(x)
    t = tl.exp(-2 * size)
    far = (1 - t) / (1 + t)
    square = x * x
    near = x + x * square * (square * 0.13333333 - 0.33333333)
    return tl.where(size < 0.1, near, tl.where(x < 0, -far, far))


@triton.jit
def _tanh_approx(x):
    """The hardware's tanh, within 2^-11."""
    return tl.inline_asm_elementwise("tanh.approx.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1)


@triton.jit
def squash(total, SQUASH: tl.constexpr, dtype: tl.constexpr):
    """The squash of float32, as accurately as a result of `dtype` can show."""
    if SQUASH == TANH:
        if dtype == tl.float32:
            return _tanh_float32(total)
        elif dtype == tl.bfloat16 and not INTERPRETED:
            return _tanh_approx(total)
        else:
            return _tanh_fast(total)
    else:
        tl.static_assert(SQUASH == SIGMOID, f"the Triton kernels have no squash {SQUASH}")
        return _sigmoid_float32(total) if dtype == tl.float32 else 1 / (1 + tl.exp(-total))


@triton.jit
def derivative(attention, SQUASH: tl.constexpr):
    """The derivative of the squash, from its value."""
    if SQUASH == TANH:
        return 1 - attention * attention
    else:
        tl.static_assert(SQUASH == SIGMOID, f"the Triton kernels have no derivative of squash {SQUASH}")
        return attention * (1 - attention)
