"""Pictures in files: decoding, augmentation, and what counts as unreadable."""

import io
import math
import os
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torchvision.datasets.folder import IMG_EXTENSIONS, find_classes, make_dataset
from torchvision.transforms import v2

from .sampling import Unreadable

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
AUGMENTS = ("paper", "modern", "randaugment", "none")
ERASED = 0.1  # share of the images that lose a rectangle
# What Pillow raises on a damaged file; SyntaxError comes from its PNG reader.
BROKEN = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, Image.DecompressionBombError)


@dataclass(frozen=True)
class Preprocessing:
    """How a picture becomes what a network takes, at any size in pixels.

    Args:
        mean, std: of red, green and blue on a scale of 0 to 1, which the network is to see as 0 and 1.
        interpolation: a value of torchvision's InterpolationMode.
        crop: (a, b): the picture's shorter side is scaled to b pixels for each a of the network's size, and the centre
            is taken.
        squash: both sides are scaled so, whatever the picture's proportions.

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

    def described(self, size: int) -> str:
        """For a user to read."""
        mean, std = (" ".join(f"{number:.3g}" for number in numbers) for numbers in (self.mean, self.std))
        what = "both sides" if self.squash else "the shorter side"
        scaled = f"{what} scaled to {self._side(size)} ({self.interpolation})"
        return f"{size} x {size} pixels, {scaled}; mean {mean}, std {std}"

    def _side(self, size: int) -> int:
        return size * self.crop[1] // self.crop[0]

    def resize(self, size: int) -> v2.Transform:
        """A picture scaled, so that a network of ``size`` pixels takes its centre."""
        side = self._side(size)
        return v2.Resize((side, side) if self.squash else side, v2.InterpolationMode(self.interpolation))

    def normalise(self) -> v2.Transform:
        return v2.Normalize(self.mean, self.std)


IMAGENET = Preprocessing()


class Files(Protocol):
    """A numbered set of labelled files."""

    labels: Tensor  # [n] int64

    def name(self, index: int) -> str: ...

    def load(self, index: int) -> bytes:
        """Raises OSError where the file cannot be read."""

    def prepare(self, indices: list[int]) -> None:
        """Says which are loaded next."""


class Folder:
    """The pictures of FOLDER/CLASS/*, labelled by their class's place in ``classes``."""

    def __init__(self, folder: Path) -> None:
        """Raises FileNotFoundError where there are no classes, or one has no pictures."""
        self.classes, number_of = find_classes(folder)
        samples = make_dataset(folder, number_of, IMG_EXTENSIONS)
        self._files = np.array([os.fsencode(file) for file, _ in samples])  # one block: workers share its memory
        self.labels = torch.tensor([label for _, label in samples])

    def name(self, index: int) -> str:
        return os.fsdecode(self._files[index])

    def load(self, index: int) -> bytes:
        return Path(self.name(index)).read_bytes()

    def prepare(self, indices: list[int]) -> None:
        pass


class Pictures:
    """Images of [3, size, size], decoded and transformed as they are read."""

    def __init__(self, files: Files, transform: v2.Transform, size: int) -> None:
        self.files, self.transform = files, transform
        self.labels, self.shape = files.labels, (3, size, size)

    def name(self, index: int) -> str:
        return self.files.name(index)

    def prepare(self, indices: list[int]) -> None:
        self.files.prepare(indices)

    def read(self, index: int, seed: int) -> Tensor:
        try:
            picture = decode(self.files.load(index))
        except BROKEN as error:
            unknown = isinstance(error, UnidentifiedImageError)  # its text is an address in memory
            raise Unreadable("no image of a known format" if unknown else str(error)) from error
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed CUDA too, for good
            return self.transform(picture)


def decode(data: bytes) -> Image.Image:
    """A picture in RGB; of 16 bits the upper 8. Raises one of ``BROKEN``."""
    picture: Image.Image = Image.open(io.BytesIO(data))
    if picture.mode.startswith("I"):  # I, I;16, I;16B: Pillow would cut at 255
        picture = Image.fromarray(np.clip(np.asarray(picture) >> 8, 0, 255).astype(np.uint8))
    return picture.convert("RGB")


def augmentation(augment: str, size: int, how: Preprocessing = IMAGENET) -> v2.Transform:
    """From a picture to a normalised tensor [3, size, size]. Each draws from torch's generator alone.

    "paper" crops at random (8 to 100 % of the area) and flips; "modern" adds TrivialAugment (Müller and Hutter, 2021)
    and random erasing (Zhong et al., 2020), "randaugment" RandAugment (Cubuk et al., 2020) and erasing; "none" crops
    the centre.
    """
    if augment not in AUGMENTS:
        raise ValueError(f"augment is {augment!r}; expected one of {', '.join(AUGMENTS)}")
    if augment == "none":
        return centre_crop(size, how)
    crop = v2.RandomResizedCrop(size, interpolation=v2.InterpolationMode(how.interpolation))
    steps: list[v2.Transform] = [crop, v2.RandomHorizontalFlip()]
    bilinear = v2.InterpolationMode.BILINEAR
    if augment == "modern":
        steps.append(v2.TrivialAugmentWide(interpolation=bilinear))
    if augment == "randaugment":
        steps.append(v2.RandAugment(interpolation=bilinear))
    steps += _to_tensor(how)
    if augment != "paper":
        steps.append(v2.RandomErasing(ERASED))
    return v2.Compose(steps)


def centre_crop(size: int, how: Preprocessing = IMAGENET) -> v2.Transform:
    """The centre of the picture; as ImageNet has it, of 256 pixels for 224."""
    return v2.Compose([how.resize(size), v2.CenterCrop(size), *_to_tensor(how)])


def _to_tensor(how: Preprocessing) -> list[v2.Transform]:
    return [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), how.normalise(), v2.ToPureTensor()]
