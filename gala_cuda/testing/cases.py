"""Random problems: any size, dtype, memory layout and option, without hidden units within a rounding error of 0."""

import math
import random
from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..backends import reference
from ..backends.dtypes import DTYPES, HALVES, accumulation_dtype
from ..backends.interface import Weights, weight_shapes
from ..backends.squash import SQUASHES
from .tolerances import tolerance

LAYOUTS = (
    "contiguous",
    "contiguous/misaligned",
    "contiguous/slice_n",
    "contiguous/slice_c",
    "contiguous/crop",
    "channels_last",
    "channels_last/misaligned",
    "channels_last/slice_n",
    "channels_last/slice_c",
    "channels_last/crop",
)
KINDS = tuple(  # dtypes of x, and of the weights where that is another
    (dtype, weights) for dtype in DTYPES for weights in ((None, torch.float32) if dtype in HALVES else (None,))
)
DRAWS = 100  # of an image, until it has no tie


class Case(NamedTuple):
    """What a random problem looks like.

    `layout` is one of `LAYOUTS`: a memory format, and how x lies in a larger allocation. Weights that are
    `representable` have values of x's dtype, whatever their own: tensor cores round them to it.
    """

    shape: tuple[int, int, int, int]  # N, C, H, W
    reduced: int
    dtype: torch.dtype = torch.float32
    parameters: torch.dtype | None = None  # the weights' dtype; None: x's
    layout: str = "contiguous"
    squash: str = "tanh"
    bias: bool = False
    residual: bool = False
    map: bool = False
    representable: bool = False

    @property
    def terms(self) -> int:
        """The length of the longest sum."""
        n, c, height, width = self.shape
        return max(1, c, n * height * width)


class Problem(NamedTuple):
    """The operator's inputs and the incoming gradients; `grad_map` is None where no map is asked for."""

    x: Tensor  # [N, C, H, W]
    w: Weights
    residual: Tensor | None  # [N, C, H, W]
    squash: str
    grad_out: Tensor  # [N, C, H, W]
    grad_map: Tensor | None  # [N, H, W]


def random_cases(count: int, seed: int = 0) -> Iterator[Case]:
    """Sizes on both sides of every vector, tile and word: C to 130, R to 70, odd planes; at most 40,000 elements."""
    rng = random.Random(seed)
    for _ in range(count):
        dtype, parameters = rng.choice(KINDS)
        while True:
            shape = rng.choice((1, 1, 2, 3, 5)), rng.randint(1, 130), rng.randint(1, 14), rng.randint(1, 14)
            reduced = rng.choice((1, 2, 7, 8, 16, 31, 32, 33, 64, rng.randint(1, 70)))
            pixels = shape[0] * shape[2] * shape[3]
            if pixels * max(shape[1], reduced) <= 40_000:
                break
        squash, layout = rng.choice(tuple(SQUASHES)), rng.choice(LAYOUTS)
        bias, residual, with_map = (rng.random() < 0.5 for _ in range(3))
        yield Case(shape, reduced, dtype, parameters, layout, squash, bias, residual, with_map)


def draw(case: Case, seed: int = 0, device: torch.device | str = "cpu") -> Problem:
    """A random problem of `case`, the same one for the same arguments.

    No hidden unit is within a rounding error of 0, where float64 and another precision may disagree on the side of its
    ReLU and a gradient differ by a whole term; nor, with a residual, is an output before its own.

    Raises:
        ValueError: No such problem was found.
    """
    return draw_with(case, torch.Generator(device).manual_seed(seed))


def draw_with(case: Case, generator: torch.Generator) -> Problem:
    """`draw` with the generator's device and state."""
    w = _weights(case, generator)
    x = laid_out(_images(case, case.shape[0], generator), case.layout)
    for _ in range(DRAWS):
        tied = clear_ties(x, w)
        if not tied.any():
            break
        x[tied] = _images(case, int(tied.sum()), generator)
    else:
        raise ValueError(f"no problem without ties in {DRAWS} draws of {case}; expected more units or more pixels")
    residual = _residual(case, x, w, generator) if case.residual else None
    order = case.layout.partition("/")[0]
    grad_out = laid_out(_normal(case.shape, generator).to(case.dtype), order)
    grad_map = None
    if case.map:
        n, _, height, width = case.shape
        grad_map = _normal((n, height, width), generator).to(accumulation_dtype(case.dtype))
    return Problem(x, w, residual, case.squash, grad_out, grad_map)


@torch.no_grad()
def clear_ties(x: Tensor, w: Weights) -> Tensor:
    """Overwrites pixels of x [N, C, H, W] where a hidden unit of the local path is within a rounding error of 0.

    Such a pixel gets the values of one of its image that has no such unit, where there is one. Returns which images
    [N] still have such a unit, in the local path or in the global one.
    """
    if not x.numel():
        return x.new_zeros(len(x), dtype=torch.bool)
    tied = _near_zero(_local_hidden(x, w), x)  # [N, R, H, W]
    for image, pixels in zip(x, tied.any(1), strict=True):
        clear = (~pixels).nonzero()
        if len(clear) and pixels.any():
            row, column = clear[0]
            image[:, pixels] = image[:, row, column, None].clone()
    return _near_zero(_local_hidden(x, w), x).flatten(1).any(1) | _near_zero(_global_hidden(x, w), x).any(1)


def laid_out(values: Tensor, layout: str) -> Tensor:
    """A copy of values [N, C, H, W] in the named layout, inside memory that otherwise holds NaN."""
    order, _, place = layout.partition("/")
    n, c, height, width = values.shape
    whole = slice(None)
    padded, index = {
        "slice_n": ((2 * n + 1, c, height, width), (slice(1, 2 * n, 2),)),
        "slice_c": ((n, c + 3, height, width), (whole, slice(1, c + 1))),
        "crop": ((n, c, height + 2, width + 3), (whole, whole, slice(1, height + 1), slice(2, width + 2))),
    }.get(place, (tuple(values.shape), (whole,)))
    flank = 1 if place == "misaligned" else 0
    memory = values.new_full((math.prod(padded) + 2 * flank,), torch.nan)
    body = memory[flank : memory.numel() - flank]
    if order == "channels_last":
        full = body.view(padded[0], padded[2], padded[3], padded[1]).permute(0, 3, 1, 2)
    else:
        full = body.view(padded)
    return full[index].copy_(values)


def double_weights(w: Weights) -> Weights:
    return Weights(*(None if t is None else t.double() for t in w))  # type: ignore[arg-type]


def _normal(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return torch.randn(shape, generator=generator, dtype=torch.float64, device=generator.device)


def _weights(case: Case, generator: torch.Generator) -> Weights:
    """Of a size that keeps every layer's values near 1."""
    drawn: list[Tensor | None] = []
    dtype = case.parameters or case.dtype
    for name, shape in weight_shapes(case.shape[1], case.reduced)._asdict().items():
        if name.startswith("b_") and not case.bias:
            drawn.append(None)
            continue
        values = _normal(shape, generator)
        if len(shape) == 2 or name == "v_collapse":
            values /= math.sqrt(shape[-1])
        drawn.append((values.to(case.dtype) if case.representable else values).to(dtype))
    return Weights(*drawn)  # type: ignore[arg-type]


def _images(case: Case, count: int, generator: torch.Generator) -> Tensor:
    """[count, C, H, W], each channel with a mean of its own."""
    _, c, height, width = case.shape
    return (_normal((count, c, height, width), generator) + _normal((count, c, 1, 1), generator)).to(case.dtype)


def _residual(case: Case, x: Tensor, w: Weights, generator: torch.Generator) -> Tensor:
    values = _normal(case.shape, generator)
    product = x.double() * reference.attention(x.double(), double_weights(w), SQUASHES[case.squash])
    near = (values + product).abs() < 4 * torch.finfo(case.dtype).eps
    return laid_out(torch.where(near, values + 1, values).to(case.dtype), case.layout)


def _local_hidden(x: Tensor, w: Weights) -> Tensor:
    """[N, R, H, W], before its ReLU, in float64; one image at a time, which bounds the memory."""
    v, b = w.v_shrink.double()[:, :, None, None], None if w.b_v_shrink is None else w.b_v_shrink.double()
    return torch.cat([F.conv2d(image.double(), v, b) for image in x.split(1)])


def _global_hidden(x: Tensor, w: Weights) -> Tensor:
    """[N, R], before its ReLU, in float64."""
    means = torch.stack([image.double().mean((1, 2)) for image in x])
    return F.linear(means, w.w_shrink.double(), None if w.b_w_shrink is None else w.b_w_shrink.double())


def _near_zero(hidden: Tensor, x: Tensor) -> Tensor:
    """Which units are within the error that sums over channels and pixels may have."""
    margin = tolerance(accumulation_dtype(x.dtype), x.dtype, max(x.shape[1], x.shape[2] * x.shape[3]))
    return hidden.abs() < margin * hidden.abs().amax()
