"""How a picture is scaled, cropped and normalised for a network."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
MAX_ASPECT = 32  # the longer side over the shorter one


@dataclass(frozen=True)
class Preprocessing:
    """How a picture becomes what a network takes, at any size in pixels.

    Args:
        mean, std: of red, green and blue, for values in [0, 1]; normalisation subtracts the mean and divides by std.
        interpolation: a value of torchvision's InterpolationMode.
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
            if len(value) != 3 or not all(0 <= number < math.inf for number in value) or not all(self.std):
                raise ValueError(f"{name} is {value}; expected three numbers of at least 0, of std above 0")
        if len(self.crop) != 2 or min(self.crop) < 1:
            raise ValueError(f"crop is {self.crop}; expected two whole numbers of at least 1")
        if self.interpolation not in (known := [mode.value for mode in v2.InterpolationMode]):
            raise ValueError(f"interpolation is {self.interpolation!r}; expected one of {', '.join(known)}")

    def describe(self, size: int) -> str:
        """A line about it for a user, for images of ``size`` x ``size`` pixels."""
        mean, std = (" ".join(f"{number:.3g}" for number in numbers) for numbers in (self.mean, self.std))
        what = "both sides" if self.squash else "the shorter side"
        scaled = f"{what} scaled to {self._scaled_side(size)} ({self.interpolation})"
        return f"{size} x {size} pixels, {scaled}; mean {mean}, std {std}"

    def resize(self, size: int) -> v2.Transform:
        """Scales a picture so that its centre of ``size`` x ``size`` pixels is what the network takes."""
        side, mode = self._scaled_side(size), v2.InterpolationMode(self.interpolation)
        return v2.Resize((side, side), mode) if self.squash else v2.Compose([LimitAspect(), v2.Resize(side, mode)])

    def normalisation(self) -> list[v2.Transform]:
        """The steps from the pixels of an image tensor to normalised float32."""
        return [v2.ToDtype(torch.float32, scale=True), v2.Normalize(self.mean, self.std), v2.ToPureTensor()]

    def _scaled_side(self, size: int) -> int:
        return size * self.crop[1] // self.crop[0]


class LimitAspect(v2.Transform):
    """Takes the middle of an image longer than ``MAX_ASPECT`` times its width, which would fill memory when scaled."""

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        height, width = functional.get_size(inpt)
        longest = MAX_ASPECT * min(height, width)
        if max(height, width) <= longest:
            return inpt
        return functional.center_crop(inpt, [min(height, longest), min(width, longest)])


IMAGENET = Preprocessing()
