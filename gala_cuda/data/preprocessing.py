"""How a picture is scaled, cropped and normalised for a network."""

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional

from .choices import CHANNELS, INTERPOLATIONS

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
MAX_ASPECT = 32  # the longer side over the shorter one
_OF_TENSORS = INTERPOLATIONS[:4]  # what torch scales by; the others are Pillow's


@dataclass(frozen=True)
class Preprocessing:
    """How a picture becomes what a network takes, at any size in pixels.

    Args:
        mean, std: of red, green and blue, for values in [0, 1]; normalisation subtracts the mean and divides by std.
            One number where pictures are taken as grey, four where they have an alpha channel.
        interpolation: one of ``INTERPOLATIONS``; with four channels of the first four.
        crop: (a, b): the picture's shorter side is scaled to b pixels for every a pixels of the network's images, and
            the centre is taken.
        squash: scale both sides to that length, whatever the picture's aspect ratio.

    Raises:
        ValueError: a value is out of range.
    """

    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    interpolation: str = "bilinear"
    crop: tuple[int, int] = (7, 8)  # 224 of 256
    squash: bool = False

    def __post_init__(self) -> None:
        for name in ("mean", "std"):
            value = getattr(self, name)
            finite = all(0 <= number < math.inf for number in value)
            if len(value) not in CHANNELS or not finite or not all(self.std):
                raise ValueError(f"{name} is {value}; expected 1, 3 or 4 numbers of at least 0, of std above 0")
        if len(self.mean) != len(self.std):
            raise ValueError(f"mean is {self.mean} and std {self.std}; expected as many numbers of each")
        if len(self.crop) != 2 or min(self.crop) < 1:
            raise ValueError(f"crop is {self.crop}; expected two whole numbers of at least 1")
        known = INTERPOLATIONS if self.channels < 4 else _OF_TENSORS
        if self.interpolation not in known:
            raise ValueError(f"interpolation is {self.interpolation!r}; expected one of {', '.join(known)}")

    @property
    def channels(self) -> int:
        """Channels of a picture: 1 is grey, 3 RGB, 4 RGB and alpha."""
        return len(self.mean)

    def of_channels(self, channels: int) -> "Preprocessing":
        """The same for pictures of so many channels: mean and std of grey and of alpha are the average of the others'.

        Raises:
            ValueError: there is no such number of channels, or no such interpolation of them.
        """
        if channels == self.channels:
            return self
        mean, std = (
            values[:3] if channels == 3 and len(values) > 1 else _of_channels(values[:3], channels)
            for values in (self.mean, self.std)
        )
        return replace(self, mean=mean, std=std)

    def describe(self, size: int) -> str:
        """A line about it for a user, for images of ``size`` x ``size`` pixels."""
        mean, std = (" ".join(f"{number:.3g}" for number in numbers) for numbers in (self.mean, self.std))
        what = "both sides" if self.squash else "the shorter side"
        scaled = f"{what} scaled to {self._scaled_side(size)} ({self.interpolation})"
        return f"{size} x {size} pixels, {scaled}; mean {mean}, std {std}"

    def resize(self, size: int) -> v2.Transform:
        """Scales a picture so that its centre of ``size`` x ``size`` pixels is what the network takes."""
        side, mode = self._scaled_side(size), v2.InterpolationMode(self.interpolation)
        scaling = v2.Resize((side, side), mode) if self.squash else v2.Compose([LimitAspect(), v2.Resize(side, mode)])
        return v2.Compose([*self.opening(), scaling])

    def opening(self) -> list[v2.Transform]:
        """What comes before a picture is scaled: of four channels Pillow would weigh the colours by the fourth."""
        return [v2.ToImage()] if self.channels == 4 else []

    def normalisation(self) -> list[v2.Transform]:
        """The steps from the pixels of an image tensor to normalised float32."""
        return [v2.ToDtype(torch.float32, scale=True), v2.Normalize(self.mean, self.std), v2.ToPureTensor()]

    def _scaled_side(self, size: int) -> int:
        return size * self.crop[1] // self.crop[0]


def _of_channels(values: tuple[float, ...], channels: int) -> tuple[float, ...]:
    """Numbers for so many channels from those of red, green and blue, or of grey."""
    average = sum(values) / len(values)
    return (*values, average) if channels == 4 and len(values) == 3 else (average,) * channels


class LimitAspect(v2.Transform):
    """Takes the middle of an image longer than ``MAX_ASPECT`` times its width, which would fill memory when scaled."""

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        height, width = functional.get_size(inpt)
        longest = MAX_ASPECT * min(height, width)
        if max(height, width) <= longest:
            return inpt
        return functional.center_crop(inpt, [min(height, longest), min(width, longest)])


IMAGENET = Preprocessing()
