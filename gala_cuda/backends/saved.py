"""What forward saves for backward beside the caller's own tensors, and how it lies in memory.

Every backend writes and reads the same: `stats` [N, HW + C + R] and `relu_mask` [N, HW, ceil(R / 32)]. The kernels have
these sizes from `csrc/torch_tensors.h` and `triton/problem.py`.
"""

from typing import NamedTuple

from torch import Tensor

BITS_PER_WORD = 32


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
