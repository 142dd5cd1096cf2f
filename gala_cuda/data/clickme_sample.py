"""One image with its human map: what the readers of ClickMe files return and what the trainer takes."""

from typing import NamedTuple

from torch import Tensor


class ClickMeSample(NamedTuple):
    """An image with the map of where people looked at it. In a batch of n, each tensor has n as its first dimension."""

    image: Tensor  # [3, H, W] uint8 as read, float32 and normalised after the transform
    label: Tensor  # [] int64
    heatmap: Tensor  # [1, H', W'] float32, at least 0; zeros where there is no map
    has_map: Tensor  # [] bool
