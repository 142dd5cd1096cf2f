"""Which images, pixels and channels a program computes, how it reads what lies there, and from when on it may."""

import triton
import triton.language as tl

WORD = tl.constexpr(32)  # hidden units in one word of the ReLU mask


@triton.jit
def follow(PDL: tl.constexpr):
    """With PDL a kernel begins while the one before still runs: waits for the end of that, and lets the next begin.

    Every kernel's first line. Each waits for the one before, so that all earlier ones have ended too: a kernel may read
    what any of them wrote and write what any of them read.
    """
    if PDL:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()


@triton.jit
def below(index, size, WHOLE: tl.constexpr):
    """index < size; with WHOLE it always is, and what depends on it costs nothing."""
    if WHOLE:
        return tl.full(index.shape, 1, tl.int1)
    return index < size


@triton.jit
def multiple(number, RUN: tl.constexpr):
    """A multiple of RUN as it is, and Triton knows it for one: it asks by itself for multiples of 16 only."""
    if RUN == 1:
        return number
    return number // RUN * RUN


@triton.jit
def multiples(layout, RUN: tl.constexpr):
    """A layout whose strides are multiples of RUN, as `multiple`."""
    image_stride, stride = layout
    return multiple(image_stride, RUN), multiple(stride, RUN)


@triton.jit
def load_vector(vector, index, size):
    """vector [size] at `index` as float32, 0 from `size` on."""
    return tl.load(vector + index, mask=index < size, other=0.0).to(tl.float32)


@triton.jit
def load_matrix(matrix, row, column, rows, columns, TRANSPOSED: tl.constexpr, WHOLE: tl.constexpr = False):
    """The block of a contiguous matrix [rows, columns] at these rows and columns, 0 outside of the matrix."""
    row_mask, column_mask = below(row, rows, WHOLE), below(column, columns, WHOLE)
    if TRANSPOSED:
        mask = row_mask[None, :] & column_mask[:, None]
        at = row.to(tl.int64)[None, :] * columns + column[:, None]
    else:
        mask = row_mask[:, None] & column_mask[None, :]
        at = row.to(tl.int64)[:, None] * columns + column[None, :]
    return tl.load(matrix + at, mask=mask, other=0.0)


@triton.jit
def count_spans(extent, span):
    """How many spans cover the extent (at least 1); `tl.cdiv` would add the two, which may overflow."""
    return (extent - 1) // span + 1


@triton.jit
def part_of_image(tile, pixels, channels, span, CHANNELS: tl.constexpr):
    """A tile's image, its share of the pixels, its block of channels, and those channels [CHANNELS].

    An image has a tile for each block of channels and each share, `span` pixels long.
    """
    blocks = tl.cdiv(channels, CHANNELS)
    shares = count_spans(pixels, span)
    block = tile % blocks
    share = tile // blocks % shares
    image = (tile // (blocks * shares)).to(tl.int64)
    return image, share, block, block * CHANNELS + tl.arange(0, CHANNELS)


@triton.jit
def tile_rows(tile, images, pixels, ROWS: tl.constexpr, FLAT: tl.constexpr):
    """A tile's rows: their numbers [ROWS], images [ROWS] and pixels [ROWS], whether they exist, and the first image.

    FLAT tiles are cut from the pixels of all images, one image after the other; the others from each image by itself.
    """
    lane = tl.arange(0, ROWS)
    if FLAT:
        row = tile * ROWS + lane
        return row, row // pixels, row % pixels, row < images * pixels, tile * ROWS // pixels
    per_image = tl.cdiv(pixels, ROWS)
    first = tile // per_image
    pixel = tile % per_image * ROWS + lane
    return first * pixels + pixel, tl.full([ROWS], 0, tl.int32) + first, pixel, pixel < pixels, first


@triton.jit
def offsets(image, pixel, channel, layout, CHANNELS_LAST: tl.constexpr):
    """Element offsets [P, C] of an image's (a number in 64 bits, or [P, 1]) pixels [P] and channels [C].

    The layout's stride lies between pixels with CHANNELS_LAST, else between channels; the other stride is 1.
    """
    image_stride, stride = layout
    start = image * image_stride
    if CHANNELS_LAST:
        return start + (pixel.to(tl.int64) * stride)[:, None] + channel[None, :]
    return start + pixel[:, None] + (channel.to(tl.int64) * stride)[None, :]


@triton.jit
def row_offsets(
    row,
    image,
    first,
    pixel,
    channel,
    layout,
    CHANNELS_LAST: tl.constexpr,
    FLAT: tl.constexpr,
    DENSE: tl.constexpr,  # whether the pixels of all images are equally far apart; only of use for FLAT tiles
):
    """Element offsets [ROWS, C] of a tile's rows, as `tile_rows` gives them, and of channels [C]."""
    if FLAT and DENSE:
        return offsets(0, row, channel, layout, CHANNELS_LAST)
    if FLAT:
        return offsets(image.to(tl.int64)[:, None], pixel, channel, layout, CHANNELS_LAST)
    return offsets(first.to(tl.int64), pixel, channel, layout, CHANNELS_LAST)


@triton.jit
def of_images(values, image, first, images, channel, inside, channels, SEGMENTS: tl.constexpr):
    """values [images, C] for each row's image: [ROWS or 1, C], where a tile spans at most SEGMENTS images from `first`.

    `inside` [C] says which of the channels exist.
    """
    found = tl.load(values + first.to(tl.int64) * channels + channel, mask=inside, other=0.0)[None, :]
    for segment in tl.static_range(1, SEGMENTS):
        this = first + segment
        row = tl.load(values + this.to(tl.int64) * channels + channel, mask=inside & (this < images), other=0.0)
        found = tl.where((image == this)[:, None], row[None, :], found)
    return found
