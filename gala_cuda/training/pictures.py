"""Pictures in files: decoding, augmentation, and what counts as unreadable."""

import io
import os
import struct
import zlib
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


def augmentation(augment: str, size: int) -> v2.Transform:
    """From a picture to a normalised tensor [3, size, size]. Each draws from torch's generator alone.

    "paper" crops at random (8 to 100 % of the area) and flips; "modern" adds TrivialAugment (Müller and Hutter, 2021)
    and random erasing (Zhong et al., 2020), "randaugment" RandAugment (Cubuk et al., 2020) and erasing; "none" crops
    the centre.
    """
    if augment not in AUGMENTS:
        raise ValueError(f"augment is {augment!r}; expected one of {', '.join(AUGMENTS)}")
    if augment == "none":
        return centre_crop(size)
    steps: list[v2.Transform] = [v2.RandomResizedCrop(size), v2.RandomHorizontalFlip()]
    bilinear = v2.InterpolationMode.BILINEAR
    if augment == "modern":
        steps.append(v2.TrivialAugmentWide(interpolation=bilinear))
    if augment == "randaugment":
        steps.append(v2.RandAugment(interpolation=bilinear))
    steps += _to_tensor()
    if augment != "paper":
        steps.append(v2.RandomErasing(ERASED))
    return v2.Compose(steps)


def centre_crop(size: int) -> v2.Transform:
    """The centre of the picture, its shorter side scaled to 8/7 of ``size``: 256 for 224."""
    return v2.Compose([v2.Resize(size * 8 // 7), v2.CenterCrop(size), *_to_tensor()])


def _to_tensor() -> list[v2.Transform]:
    to_float = v2.ToDtype(torch.float32, scale=True)
    return [v2.ToImage(), to_float, v2.Normalize(IMAGENET_MEAN, IMAGENET_STD), v2.ToPureTensor()]
