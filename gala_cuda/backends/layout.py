"""In which memory layouts kernels read a feature map."""

import torch
from torch import Tensor


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
