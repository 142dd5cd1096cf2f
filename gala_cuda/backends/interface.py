"""What every backend takes and gives: the weights and the two calls."""

from typing import NamedTuple

import torch
from torch import Tensor

from .dtypes import accumulation_dtype
from .squash import Squash


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


class Spatial(NamedTuple):
    """The convolution that the authors' released code has in the local path, K x K with zeros around."""

    weight: Tensor  # [R, R, K, K]
    bias: Tensor  # [R]


def weight_shapes(channels: int, reduced: int) -> Weights:
    """The shape of each weight and bias."""
    c, r = channels, reduced
    return Weights((r, c), (c, r), (r, c), (r,), (c,), (c,), (r,), (c,), (r,), (1,))  # type: ignore[arg-type]


def plain_weights(w: Weights, dtype: torch.dtype) -> Weights:
    """The weights contiguous and in the accumulation dtype of x's dtype; they are small beside x."""
    dtype = accumulation_dtype(dtype)
    return Weights._make(
        t if t is None or (t.dtype == dtype and t.is_contiguous()) else t.to(dtype).contiguous() for t in w
    )


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


def autocast_on(x: Tensor) -> bool:
    device = x.device.type
    return torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
