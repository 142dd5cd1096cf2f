"""How human maps are processed before a loss sees them: as the paper, as Harmonization, or as stored."""

import torch
import torch.nn.functional as F
from torch import Tensor

MAP_MODES = ("paper", "harmonization", "raw")


def process_map(heatmap: Tensor, map_mode: str) -> Tensor:
    """A map [1, H, W] as a loss takes it, before it is cropped.

    "paper" divides it by its maximum; "harmonization" blurs it by 10 x 10 of 64 x 64 pixels, sigma 10, as Fel et al.
    (2022) did, with zeros outside the map; "raw" leaves it as it is stored. Whether the paper blurred its maps is
    unconfirmed; ``GalaMapLoss`` in the mode "gala_tpu" does so itself, after the crop.
    """
    if map_mode == "paper":
        return heatmap / heatmap.max()
    if map_mode == "harmonization":
        return resize_map(blur_map(resize_map(heatmap, (64, 64)), 10, 10.0), heatmap.shape[1:])
    return heatmap


def check_map_mode(map_mode: str) -> None:
    """Raises ValueError where there is no such mode."""
    if map_mode not in MAP_MODES:
        raise ValueError(f"map_mode is {map_mode!r}; expected one of {', '.join(MAP_MODES)}")


def blur_map(heatmap: Tensor, taps: int, sigma: float) -> Tensor:
    """A map [1, H, W] convolved with a centred Gaussian of ``taps`` x ``taps`` pixels whose sum is 1."""
    offsets = torch.arange(taps) - (taps - 1) / 2
    kernel = torch.softmax(-(offsets**2) / (2 * sigma**2), 0)
    before, after = (taps - 1) // 2, taps // 2
    padded = F.pad(heatmap[None], (before, after, before, after))
    return F.conv2d(F.conv2d(padded, kernel[None, None, :, None]), kernel[None, None, None])[0]


def resize_map(heatmap: Tensor, sides: tuple[int, ...] | torch.Size) -> Tensor:
    """A map [1, H, W] resized to ``sides``."""
    if heatmap.shape[1:] == tuple(sides):
        return heatmap
    return F.interpolate(heatmap[None], tuple(sides), mode="bilinear", antialias=True)[0]
