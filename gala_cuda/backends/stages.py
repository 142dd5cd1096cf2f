"""What a backend has for the block of the authors' released code: its four stages, around a convolution.

Hidden layers are rows [N, H, W, R], contiguous, in `rows_dtype`.
"""

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from .dtypes import accumulation_dtype
from .interface import Spatial, Weights


def rows_dtype(x: Tensor) -> torch.dtype:
    """Of hidden layers: in x's dtype only where the convolution is sure to be quick in it."""
    return accumulation_dtype(x.dtype) if x.device.type == "cpu" else x.dtype


class Gates(NamedTuple):
    """What the gate gives to the scale."""

    alpha: Tensor  # [N, C]
    beta: Tensor  # [N, C]


class BackwardCall(NamedTuple):
    """The incoming gradients, what forward was given and saved, what is wanted."""

    grad_out: Tensor  # [N, C, H, W]
    map_factor: Tensor | None  # [N, H, W], the map's gradient over the map, 0 where the map is 0
    x: Tensor  # [N, C, H, W]
    w: Weights
    spatial: Spatial
    out: Tensor | None  # where a residual was added
    stats: Tensor
    hidden: Tensor  # [N, H, W, R]
    seen: Tensor  # [N, H, W, R]
    need_input: bool
    need_weights: bool


class ScaleGrads(NamedTuple):
    """What `scale_backward` gives; None stands for what is not needed."""

    seen: Tensor  # [N, H, W, R]
    alpha: Tensor  # [N, C]
    beta: Tensor  # [N, C]
    residual: Tensor | None  # where a residual was added
    w: dict[str, Tensor]  # v_collapse and b_v_collapse, where the weights' gradients are needed


class Stages(Protocol):
    """The stages, for x of at least one image; weights are contiguous, in the accumulation dtype."""

    def gather(self, x: Tensor, w: Weights) -> tuple[Tensor, Tensor]:
        """(stats, of which p, and hidden = relu(v_shrink x + b_v_shrink))."""

    def scale(
        self,
        x: Tensor,
        residual: Tensor | None,
        seen: Tensor,
        w: Weights,
        gates: Gates,
        stats: Tensor,
        return_map: bool,
    ) -> tuple[Tensor, Tensor | None]:
        """(out, map); s = v_collapse . relu(seen) + b_v_collapse goes into the stats."""

    def scale_backward(self, call: BackwardCall, gates: Gates, grad_x: Tensor | None) -> ScaleGrads:
        """Leaves in grad_x what `gather_backward` wants to find there."""

    def gather_backward(
        self, call: BackwardCall, gates: Gates, grad_sum: Tensor, grad_hidden: Tensor, dp: Tensor, grad_x: Tensor | None
    ) -> dict[str, Tensor]:
        """grad_x, from the gradients of x A, hidden and p; those of v_shrink and b_v_shrink, where they are needed."""
