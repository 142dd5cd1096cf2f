"""What every backend takes and gives: the weights, the two calls, the saved tensors and their layout."""

import enum
from typing import NamedTuple

import torch
from torch import Tensor

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
HALVES = DTYPES[2:]  # their weights may be float32
BITS_PER_WORD = 32


class Squash(enum.IntEnum):
    """The function that squashes the attention, under the code that `csrc/gala.h` gives it too."""

    TANH = 0
    SIGMOID = 1


SQUASHES = {squash.name.lower(): squash for squash in Squash}  # by the names that users give them


class Weights(NamedTuple):
    """The block's parameters under the paper's names; R is the reduced width, C the channels."""

    w_shrink: Tensor  # [R, C]
    w_expand: Tensor  # [C, R]
    v_shrink: Tensor  # [R, C]
    v_collapse: Tensor  # [R]
    a: Tensor  # [C]
    m: Tensor  # [C]
    b_w_shrink: Tensor | None = None  # [R]
    b_w_expand: Tensor | None = None  # [C]
    b_v_shrink: Tensor | None = None  # [R]
    b_v_collapse: Tensor | None = None  # [1]


def weight_shapes(channels: int, reduced: int) -> Weights:
    """The shape of each weight and bias."""
    c, r = channels, reduced
    return Weights((r, c), (c, r), (r, c), (r,), (c,), (c,), (r,), (c,), (r,), (1,))  # type: ignore[arg-type]


class ForwardCall(NamedTuple):
    """What a backend's `forward` takes."""

    x: Tensor  # [N, C, H, W]
    w: Weights
    residual: Tensor | None  # [N, C, H, W]
    squash: Squash
    return_map: bool
    save: bool  # stats and relu_mask, which backward reads


class Outputs(NamedTuple):
    """What a backend's `forward` gives; None stands for what was not asked for."""

    out: Tensor  # [N, C, H, W]
    attn_map: Tensor | None  # [N, H, W] in the accumulation dtype, the L2 norm of the attention over channels
    stats: Tensor | None  # [N, HW + C + R] in the accumulation dtype, see Stats
    relu_mask: Tensor | None  # [N, HW, ceil(R / 32)] of int32, which local hidden units were on


class BackwardCall(NamedTuple):
    """What a backend's `backward` takes: the incoming gradients, what forward was given and saved, what is wanted."""

    grad_out: Tensor  # [N, C, H, W]
    map_factor: Tensor | None  # [N, H, W], the map's gradient over the map, 0 where the map is 0
    x: Tensor  # [N, C, H, W]
    w: Weights
    out: Tensor | None  # where a residual was added
    stats: Tensor
    relu_mask: Tensor
    squash: Squash
    need_input: bool
    need_weights: bool


class Gradients(NamedTuple):
    """What a backend's `backward` gives; None stands for what is not needed."""

    x: Tensor | None  # [N, C, H, W]
    w: Weights | None
    residual: Tensor | None  # [N, C, H, W], where a residual was added


class Stats(NamedTuple):
    """Views of the saved statistics, one row per image, in the accumulation dtype."""

    s: Tensor  # [N, HW] local map
    p: Tensor  # [N, C] pooled mean
    z: Tensor  # [N, R] global hidden layer before its ReLU; g follows from it cheaply


def stats_width(pixels: int, channels: int, reduced: int) -> int:
    return pixels + channels + reduced


def split_stats(stats: Tensor, channels: int, reduced: int) -> Stats:
    """View the flat rows `stats` [N, HW + C + R] as their three parts."""
    return Stats(*stats.split([stats.shape[1] - channels - reduced, channels, reduced], dim=1))


def mask_words(reduced: int) -> int:
    """How many 32-bit words hold one pixel's sign pattern of the local hidden layer."""
    return -(-reduced // BITS_PER_WORD)


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """Sums and statistics are float32, or float64 for float64 input."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def autocast_on(x: Tensor) -> bool:
    device = x.device.type
    return torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)


def pixel_stride(x: Tensor) -> int | None:
    """The one stride that steps through the pixels of x [N, C, H, W], or None where H and W need two."""
    height, width = x.shape[2:]
    if height == 1:
        return x.stride(3)
    if width == 1:
        return x.stride(2)
    return x.stride(3) if x.stride(2) == width * x.stride(3) else None


def is_channels_last(x: Tensor) -> bool:
    """Whether kernels vectorise x [N, C, H, W] over channels (channels_last) rather than over pixels (NCHW)."""
    return x.stride(1) == 1 if x.shape[1] > 1 else pixel_stride(x) != 1


def in_place_or_copy(x: Tensor, like: Tensor | None = None) -> Tensor:
    """x [N, C, H, W] itself where the kernels read it in place, else one dense copy.

    Read in place are NCHW-contiguous and channels_last tensors and slices of either along N or C: one stride steps
    through the pixels, and channels or pixels are adjacent. With `like`, adjacent must be what is adjacent there.
    """
    if _in_place(x, like):
        return x
    return torch.empty_like(x if like is None else like, dtype=x.dtype).copy_(x)


def _in_place(x: Tensor, like: Tensor | None) -> bool:
    stride = pixel_stride(x)
    if stride is None:
        return False
    adjacent_channels = x.shape[1] == 1 or x.stride(1) == 1
    adjacent_pixels = stride == 1 or x.shape[2] * x.shape[3] == 1
    if like is None:
        return adjacent_channels or adjacent_pixels
    return adjacent_channels if is_channels_last(like) else adjacent_pixels
