"""A picture of images with maps over them, one row for each image."""

from collections.abc import Mapping, Sequence
from textwrap import TextWrapper

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor

from ..text import printable

CELL, LABEL, GAP = 1.5, 2.7, 0.06  # inches: side of a picture, width of a row's title at most, space between
SIZE = 9  # points of all text
LINE, CHARACTER = 1.25 * SIZE / 72, 0.65 * SIZE / 72  # inches that a line and a character of it take


def overlay(images: Tensor, maps: Mapping[str, Tensor], titles: Sequence[str], heading: str | None = None) -> Figure:
    """One row for each image: the image, then each map in colour over it.

    Args:
        images: [N, C, H, W], C of 1 or 3, of any range; each is drawn from its least to its greatest value.
        maps: title to [N, H', W']. Each map is resized to the image and spans the colours from its own least to its
            greatest value: colours compare places within a picture, and not pictures with each other. Where a map is
            all NaN, its place stays empty.
        titles: N titles of the rows.
        heading: above all of it.

    Raises:
        ValueError: a shape or length does not fit; the message names the argument.
    """
    _validate(images, maps, titles)
    _, _, height, width = images.shape
    pictures = to_unit_range(images).mean(1) if images.shape[1] == 1 else to_unit_range(images).permute(0, 2, 3, 1)
    figure, grid = _grid(("image", *maps), titles, heading)
    for row, picture in zip(grid, pictures, strict=True):
        for axes in row:
            axes.imshow(picture.cpu().numpy(), cmap="gray", interpolation="nearest")
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_visible(False)
    for column, attn_map in zip(grid.T[1:], maps.values(), strict=True):
        for axes, one in zip(column, _resize(attn_map, (height, width)), strict=True):
            if one.isnan().all():
                axes.images[0].remove()
                continue
            axes.imshow(one.cpu().numpy(), cmap="inferno", alpha=0.65, interpolation="bilinear")
    return figure


def _grid(names: Sequence[str], titles: Sequence[str], heading: str | None) -> tuple[Figure, np.ndarray]:
    """A figure with a cell for each title and name, as large as these need, and its axes [titles, names]."""
    names, titles = [_wrap(name, CELL) for name in names], [_wrap(title, LABEL) for title in titles]
    left = max(len(line) for title in titles for line in title.splitlines() or [""]) * CHARACTER + 2 * GAP
    width = left + len(names) * (CELL + GAP)
    above = _wrap(heading, width) if heading else ""
    top = LINE * (_count_lines(above) + max(map(_count_lines, names))) + 2 * GAP
    cell = max(CELL, LINE * max(map(_count_lines, titles)))
    height = top + len(titles) * (cell + GAP)
    figure = Figure(figsize=(width, height))
    grid = figure.subplots(
        len(titles), len(names), squeeze=False,
        gridspec_kw={
            "left": left / width, "right": 1 - GAP / width, "top": 1 - top / height, "bottom": GAP / height,
            "wspace": GAP / CELL, "hspace": GAP / cell,
        },
    )  # fmt: skip
    text = {"fontsize": SIZE, "parse_math": False}
    for axes, title in zip(grid[:, 0], titles, strict=True):
        axes.set_ylabel(title, rotation=0, ha="right", va="center", **text)
    for axes, name in zip(grid[0], names, strict=True):
        axes.set_title(name, **text)
    if above:
        figure.suptitle(above, x=0.5, y=1 - GAP / height, va="top", **text)
    return figure, grid


def _wrap(text: str, inches: float) -> str:
    """``text`` broken into lines that fit into so many ``inches``."""
    fill = TextWrapper(int(inches / CHARACTER), break_on_hyphens=False).fill
    return "\n".join(fill(line) for line in printable(text).splitlines())


def _count_lines(text: str) -> int:
    return len(text.splitlines())


def _validate(images: Tensor, maps: Mapping[str, Tensor], titles: Sequence[str]) -> None:
    if images.dim() != 4 or images.shape[1] not in (1, 3) or images.shape[0] == 0:
        raise ValueError(f"images has shape {tuple(images.shape)}; expected [N, 1 or 3, H, W] with N of at least 1")
    if len(titles) != len(images):
        raise ValueError(f"titles has {len(titles)} entries; expected one for each of {len(images)} images")
    for name, attn_map in maps.items():
        if attn_map.dim() != 3 or len(attn_map) != len(images):
            raise ValueError(f"maps[{name!r}] has shape {tuple(attn_map.shape)}; expected [{len(images)}, H', W']")


def to_unit_range(t: Tensor) -> Tensor:
    """Images [N, ...], each scaled to the range from 0 to 1; constant ones become 0."""
    t = t.detach().float()
    flat = t.flatten(1)
    low, high = (f(1).values.view(-1, *[1] * (t.dim() - 1)) for f in (flat.min, flat.max))
    return (t - low) / torch.where(high > low, high - low, 1.0)


def _resize(attn_map: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(to_unit_range(attn_map)[:, None], size, mode="bilinear")[:, 0]
