"""What the kernels are given together: to a kernel each of these is one argument, a tuple that it unpacks.

The tensors are contiguous; those that nobody reads or writes may be None.
"""

from typing import NamedTuple

from torch import Tensor

from ..interface import Weights
from ..layout import pixel_stride

Argument = Tensor | tuple[Tensor | None, ...] | None  # a tensor of a kernel, or several
Number = int | tuple[int, ...]


class Sizes(NamedTuple):
    """The extents of a problem but the number of images, and the length of a row of stats."""

    pixels: int
    channels: int
    reduced: int
    width: int


class Layout(NamedTuple):
    """Strides of a feature map in elements: between images, and between pixels (channels_last) or channels (NCHW)."""

    image_stride: int
    stride: int

    @classmethod
    def of(cls, t: Tensor, channels_last: bool) -> "Layout":
        return cls(t.stride(0), pixel_stride(t) if channels_last else t.stride(1))  # type: ignore[arg-type]


class Local(NamedTuple):
    """The local path's parameters, or their gradients."""

    v_shrink: Tensor | None  # [R, C]
    v_collapse: Tensor | None  # [R]
    b_v_shrink: Tensor | None  # [R]
    b_v_collapse: Tensor | None  # [1]

    @classmethod
    def of(cls, w: Weights) -> "Local":
        return cls(w.v_shrink, w.v_collapse, w.b_v_shrink, w.b_v_collapse)


class Global(NamedTuple):
    """The global path's parameters and those of the combination, or their gradients."""

    w_shrink: Tensor | None  # [R, C]
    w_expand: Tensor | None  # [C, R]
    a: Tensor | None  # [C]
    m: Tensor | None  # [C]
    b_w_shrink: Tensor | None  # [R]
    b_w_expand: Tensor | None  # [C]

    @classmethod
    def of(cls, w: Weights) -> "Global":
        return cls(w.w_shrink, w.w_expand, w.a, w.m, w.b_w_shrink, w.b_w_expand)


class Gate(NamedTuple):
    """What the gate gives: the attention is squash(alpha + beta s)."""

    alpha: Tensor  # [N, C]
    beta: Tensor  # [N, C]
    g: Tensor | None = None  # [N, C], for the backward pass


class GateParts(NamedTuple):
    """The gradients of alpha and beta, in parts."""

    alpha: Tensor  # [parts, N, C]
    beta: Tensor  # [parts, N, C]


class GateGrads(NamedTuple):
    """What the gradients of alpha and beta lead to."""

    dg: Tensor  # [N, C]
    dz: Tensor  # [N, R]
    dp: Tensor  # [N, C], over HW


class Products(NamedTuple):
    """T = W^T x and the sums that the biases' gradients are made of, in parts."""

    t: Tensor  # [parts, R, C]
    counts: Tensor | None  # [parts, R]: sums of ds where a unit was on
    ds_sums: Tensor | None  # [parts]
