"""Draws scenes with a known, small part that decides the class, and a background that misleads."""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from gala_cuda.data.clickme_sample import ClickMeSample

CLASSES = ("rows", "columns", "checks", "dots", "rings", "spokes")
CLUTTER, BLOBS = 3, 4  # plain things in a scene, and the discs that each thing is made of
RADIUS = (0.24, 0.34)  # of a thing, in halves of the image's side
WAVES = 1.7  # of a pattern in a thing's radius
FINE = 2  # each pixel is the mean of FINE x FINE points
BLUR = 1 / 20  # sigma of a human map's blur, in sides of the image
MEAN, STD = 0.45, 0.25  # of the pixels, roughly
PART = 64  # scenes that are drawn at a time


@dataclass(frozen=True)
class Scenes:
    """`n` scenes: a thing whose pattern is the class, among plain ones on a background whose hue is the cue.

    Attributes:
        images: [n, 3, size, size] uint8.
        labels, cues: [n] int64, the pattern, and the class that the background stands for.
        masks: [n, 1, size, size] float32, the share of each pixel that the patterned thing covers.
    """

    images: Tensor
    labels: Tensor
    cues: Tensor
    masks: Tensor


class SceneImages:
    """Scenes as the trainer reads them: ClickMeSamples, image and map flipped together at random where they train."""

    def __init__(self, scenes: Scenes, flips: bool) -> None:
        self.scenes, self.flips = scenes, flips
        self.heatmaps = blurred(scenes.masks)
        channels, height, width = scenes.images.shape[1:]
        self.labels, self.shape = scenes.labels, (channels, height, width)

    def name(self, index: int) -> str:
        return f"scene {index}"

    def prepare(self, indices: list[int]) -> None:
        pass

    def read(self, index: int, seed: int) -> ClickMeSample:
        image, heatmap = (self.scenes.images[index] / 255 - MEAN) / STD, self.heatmaps[index]
        if self.flips and seed % 2:
            image, heatmap = image.flip(2), heatmap.flip(2)
        return ClickMeSample(image, self.labels[index], heatmap, torch.tensor(True))


def draw(count: int, size: int, agreement: float, seed: int) -> Scenes:
    """`count` scenes of `size` pixels, the classes equally frequent.

    A share `agreement` of the backgrounds has the hue of the scene's class, the others any hue by chance. Everything
    depends on `seed` alone.
    """
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % len(CLASSES)
    labels = labels[torch.randperm(count, generator=generator)]
    cues = torch.randint(len(CLASSES), (count,), generator=generator)
    agreeing = torch.arange(count) < round(agreement * count)
    cues = torch.where(agreeing[torch.randperm(count, generator=generator)], labels, cues)
    parts = [_paint(*part, size, generator) for part in zip(labels.split(PART), cues.split(PART), strict=True)]
    images, masks = map(torch.cat, zip(*parts, strict=True))
    return Scenes(images, labels, cues, masks)


def blurred(masks: Tensor) -> Tensor:
    """Human maps [n, 1, size, size] from masks: where a person who knows the class would point, roughly."""
    sigma = BLUR * masks.shape[-1]
    reach = math.ceil(3 * sigma)
    kernel = torch.exp(-0.5 * (torch.arange(-reach, reach + 1) / sigma) ** 2)
    kernel /= kernel.sum()
    rows = F.conv2d(masks, kernel.view(1, 1, -1, 1), padding=(reach, 0))
    return F.conv2d(rows, kernel.view(1, 1, 1, -1), padding=(0, reach))


def _paint(labels: Tensor, cues: Tensor, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """(images, masks) of a few scenes, the patterned thing in front of the others."""
    n = len(labels)

    def uniform(*shape: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        return low + (high - low) * torch.rand(n, *shape, generator=generator)

    def texture(detail: int, low: float, high: float) -> Tensor:
        return F.interpolate(uniform(1, detail, detail, low=low, high=high), (size, size), mode="bicubic")

    hue = (cues + uniform(low=-0.35, high=0.35)) / len(CLASSES)
    images = _colour(hue, uniform(low=0.35, high=0.65), texture(6, 0.3, 0.7))
    for thing in range(CLUTTER + 1):
        u, v = _local(uniform(4), size)
        mask = _softened(_blob(u, v, uniform(BLOBS, 3)))
        bright = _colour(uniform(), uniform(low=0.1, high=0.6), texture(12, 0.75, 1.0))
        dark = _colour(uniform(), uniform(low=0.1, high=0.6), texture(12, 0.05, 0.3))
        first = (uniform() < 0.5).float()[:, None, None, None]
        if thing == CLUTTER:
            first = _softened(_pattern(u, v, labels))
        images = torch.lerp(images, torch.lerp(dark, bright, first), mask)
    images += 0.04 * torch.randn(images.shape, generator=generator)
    return (images.clamp(0, 1) * 255).round().byte(), mask


def _local(drawn: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Coordinates u, v [n, FINE size, FINE size] in which a thing is about the unit disc.

    `drawn` [n, 4] from 0 to 1 decides radius, place and rotation.
    """
    radius = RADIUS[0] + (RADIUS[1] - RADIUS[0]) * drawn[:, 0]
    centre = (2 * drawn[:, 1:3] - 1) * (1 - radius[:, None])
    points = (torch.arange(FINE * size) + 0.5) / (FINE * size) * 2 - 1
    y = (points[:, None] - centre[:, :1, None]) / radius[:, None, None]
    x = (points[None, :] - centre[:, 1:, None]) / radius[:, None, None]
    angle = ((drawn[:, 3] - 0.5) * math.pi / 3)[:, None, None]
    return x * angle.cos() + y * angle.sin(), y * angle.cos() - x * angle.sin()


def _pattern(u: Tensor, v: Tensor, labels: Tensor) -> Tensor:
    """[n, H, W] bool: where the patterns of `labels` have the first of their two colours."""
    radius, angle = torch.hypot(u, v), torch.atan2(v, u)
    across, down = (torch.sin(WAVES * 2 * math.pi * x) for x in (u, v))
    patterns = (
        down > 0,
        across > 0,
        across * down > 0,
        torch.minimum(across, down) > -0.2,
        torch.sin(WAVES * 2 * math.pi * radius) > 0,
        torch.sin(8 * angle) > 0,
    )
    return torch.stack(patterns)[labels, torch.arange(len(labels))]


def _blob(u: Tensor, v: Tensor, drawn: Tensor) -> Tensor:
    """[n, H, W] bool: discs of radius 0.35 to 0.65 about the middle; `drawn` [n, BLOBS, 3]."""
    found = torch.zeros_like(u, dtype=torch.bool)
    for x, y, radius in drawn.permute(1, 2, 0):
        x, y, radius = (value[:, None, None] for value in (x, y, radius))
        found |= torch.hypot(u - (1.2 * x - 0.6), v - (1.2 * y - 0.6)) < 0.35 + 0.3 * radius
    return found


def _softened(drawn: Tensor) -> Tensor:
    """[n, FINE H, FINE W] bool to shares [n, 1, H, W]."""
    return F.avg_pool2d(drawn[:, None].float(), FINE)


def _colour(hue: Tensor, saturation: Tensor, value: Tensor) -> Tensor:
    """RGB [n, 3, H, W] of hue [n] in turns, saturation [n] and value [n, 1, H, W]."""
    offsets = torch.tensor([5.0, 3.0, 1.0])
    k = (offsets + 6 * hue[:, None]) % 6
    share = torch.minimum(k, 4 - k).clamp(0, 1) * saturation[:, None]  # of the value, that each channel lacks
    return value * (1 - share[:, :, None, None])
