"""Images and the maps over them, as one picture."""

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from torch import Tensor


def overlay(images: Tensor, maps: Mapping[str, Tensor], titles: Sequence[str], heading: str | None = None) -> Figure:
    """One row for each image: the image, then each map in colour over it.

    Args:
        images: [N, C, H, W], C of 1 or 3, any range; shown from its least to its greatest value.
        maps: name to [N, H', W']; each is scaled up to the image and spans the colours from its own least to its
            greatest value, so colours compare places within a picture and not pictures with each other. One of NaN is
            none: its place stays empty.
        titles: N labels of the rows.

    Raises:
        ValueError: a shape or length does not fit; the message names the argument.
    """
    _validate(images, maps, titles)
    n, _, height, width = images.shape
    pictures = unit(images).mean(1) if images.shape[1] == 1 else unit(images).permute(0, 2, 3, 1)
    columns = {name: _enlarge(amap, (height, width)) for name, amap in maps.items()}
    layout = ConstrainedLayoutEngine(h_pad=0.02, w_pad=0.02, hspace=0.02, wspace=0.01)
    figure = Figure(figsize=(1.5 * (1 + len(maps)) + 0.4, 1.5 * n + (0.8 if heading else 0.4)), layout=layout)
    grid = figure.subplots(n, 1 + len(maps), squeeze=False)
    for row in range(n):
        for axes in grid[row]:
            axes.imshow(pictures[row].cpu().numpy(), cmap="gray", interpolation="nearest")
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_visible(False)
        grid[row][0].set_ylabel(titles[row], rotation=0, ha="right", va="center", fontsize=10)
        for axes, amap in zip(grid[row][1:], columns.values(), strict=True):
            if amap[row].isnan().all():
                axes.images[0].remove()
                continue
            axes.imshow(amap[row].cpu().numpy(), cmap="inferno", alpha=0.65, interpolation="bilinear")
    for axes, name in zip(grid[0], ("image", *columns), strict=True):
        axes.set_title(name, fontsize=10)
    if heading:
        figure.suptitle(heading, fontsize=11)
    return figure


def _validate(images: Tensor, maps: Mapping[str, Tensor], titles: Sequence[str]) -> None:
    if images.dim() != 4 or images.shape[1] not in (1, 3) or images.shape[0] == 0:
        raise ValueError(f"images has shape {tuple(images.shape)}; expected [N, 1 or 3, H, W] with N of at least 1")
    if len(titles) != len(images):
        raise ValueError(f"titles has {len(titles)} entries; expected one for each of {len(images)} images")
    for name, amap in maps.items():
        if amap.dim() != 3 or len(amap) != len(images):
            raise ValueError(f"maps[{name!r}] has shape {tuple(amap.shape)}; expected [{len(images)}, H', W']")


def unit(t: Tensor) -> Tensor:
    """Each image from 0 to 1; constant ones are 0."""
    t = t.detach().float()
    flat = t.flatten(1)
    low, high = (f(1).values.view(-1, *[1] * (t.dim() - 1)) for f in (flat.min, flat.max))
    return (t - low) / torch.where(high > low, high - low, 1.0)


def _enlarge(amap: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(unit(amap)[:, None], size, mode="bilinear")[:, 0]
