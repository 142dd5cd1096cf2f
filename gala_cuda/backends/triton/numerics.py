"""What the kernels compute with: squashes, products, rounding, and where a tile lies in x.

In Triton's interpreter, products and arithmetic of bfloat16 are wrong and float32 is cut, not rounded, to bfloat16:
``dot`` widens its operands there and ``narrow`` rounds by hand.
"""

import triton
import triton.language as tl

INTERPRETED = tl.constexpr(bool(triton.knobs.runtime.interpret))
WORD = tl.constexpr(32)  # bits of a word of the sign pattern


@triton.jit
def dot(a, b, acc, PRECISION: tl.constexpr):
    """acc + a . b in float32; PRECISION is of float32 operands: "ieee", "tf32" or "tf32x3"."""
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
def _tanh_precise(x):
    """tanh |x| = e / (e + 2) with e = exp(2 |x|) - 1, which loses nothing near 0."""
    sign = x.to(tl.int32, bitcast=True) & -2147483648
    size = tl.abs(x)
    size = tl.where(size > 10.0, 10.0, size)
    scale, expm1_r = _exp_parts(size + size, 0)
    e = scale * expm1_r + (scale - 1)
    return (tl.div_rn(e, e + 2).to(tl.int32, bitcast=True) | sign).to(tl.float32, bitcast=True)


@triton.jit
def _sigmoid_precise(x):
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
def squash(total, TANH: tl.constexpr, dtype: tl.constexpr):
    """tanh or sigmoid of float32, as accurate as a result of ``dtype`` can tell."""
    if dtype == tl.float32:
        return _tanh_precise(total) if TANH else _sigmoid_precise(total)
    if not TANH:
        return 1 / (1 + tl.exp(-total))
    if dtype == tl.bfloat16 and not INTERPRETED:
        return _tanh_approx(total)
    return _tanh_fast(total)


@triton.jit
def derivative(attention, TANH: tl.constexpr):
    """Of the squash, from its value."""
    return 1 - attention * attention if TANH else attention * (1 - attention)


@triton.jit
def how_many(extent, span):
    """Spans that cover the extent (at least 1); a span may be so long that ``tl.cdiv``'s sum of both overflows."""
    return (extent - 1) // span + 1


@triton.jit
def spots(start, pixel, channel, step, CHANNELS_LAST: tl.constexpr):
    """Element offsets [P, C] of pixels [P] and channels [C] from ``start`` (a number, or [P, 1]).

    ``step`` lies between pixels with CHANNELS_LAST, else between channels; the other stride is 1.
    """
    if CHANNELS_LAST:
        return start + (pixel.to(tl.int64) * step)[:, None] + channel[None, :]
    return start + pixel[:, None] + (channel.to(tl.int64) * step)[None, :]


@triton.jit
def tile_rows(tile, images, pixels, ROWS: tl.constexpr, FLAT: tl.constexpr):
    """The image [ROWS] and pixel [ROWS] of a tile's rows, whether they exist, and the tile's first image.

    FLAT tiles are cut from all images' pixels in a row, the others from each image by itself.
    """
    lane = tl.arange(0, ROWS)
    if FLAT:
        row = tile * ROWS + lane
        return row // pixels, row % pixels, row < images * pixels, tile * ROWS // pixels
    per_image = tl.cdiv(pixels, ROWS)
    first = tile // per_image
    pixel = tile % per_image * ROWS + lane
    return tl.full([ROWS], 0, tl.int32) + first, pixel, pixel < pixels, first


@triton.jit
def of_images(values, image, first, images, channel, channels, ROWS: tl.constexpr, SEGMENTS: tl.constexpr):
    """values [images, C] for each row's image: [ROWS, C], where a tile spans at most SEGMENTS images from ``first``."""
    inside = channel < channels
    found = tl.zeros([ROWS, channel.shape[0]], tl.float32)
    for segment in tl.static_range(SEGMENTS):
        this = first + segment
        row = tl.load(values + this.to(tl.int64) * channels + channel, mask=inside & (this < images), other=0.0)
        if SEGMENTS == 1:
            found += row[None, :]
        else:
            found = tl.where((image == this)[:, None], row[None, :], found)
    return found
