"""What to train on: scikit-learn's handwritten digits, random images, a folder of pictures, or tar shards."""

from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor

from . import shards
from .choices import DIGITS, PREFIX, SYNTHETIC
from .folders import split_folder
from .picture_files import Folder, left_out
from .pictures import IMAGENET, Pictures, Preprocessing, augmentation, centre_crop
from .sampling import Images

TEST_SHARE = 0.25  # of the digits
SYNTHETIC_IMAGES, SYNTHETIC_CLASSES, DISTINCT = 12_800, 1000, 64
Source = tuple[Images, Images, tuple[str, ...]]  # to train on, held out, classes


def builtin(source: str, size: int | None = None) -> Source:
    """The built-in set of a name that starts with "builtin:". Raises ValueError where there is no such set."""
    if source == DIGITS:
        return digits(size or 32)
    name, _, count = source.removeprefix(PREFIX).partition(":")
    if f"{PREFIX}{name}" != SYNTHETIC:
        raise ValueError(f"{source} was given; expected {DIGITS}, {SYNTHETIC} or {SYNTHETIC}:N")
    return synthetic(size or 224, _count(source, count) if count or source.endswith(":") else SYNTHETIC_IMAGES)


def digits(size: int = 32) -> Source:
    """The 1,797 real handwritten digits of 8x8 pixels that ship with scikit-learn, scaled up to ``size``.

    A quarter of each class is held out for testing; the split is always the same.
    """
    images, labels = load_digits(return_X_y=True)
    parts = train_test_split(images, labels, test_size=TEST_SHARE, stratify=labels, random_state=0)
    train_images, test_images, train_labels, test_labels = map(torch.from_numpy, parts)
    mean, std = train_images.mean(), train_images.std()

    def scaled(images: Tensor) -> Tensor:
        normalised = ((images - mean) / std).float().view(-1, 1, 8, 8)
        return F.interpolate(normalised, (size, size), mode="bilinear")

    train = InMemory(scaled(train_images), train_labels.long())
    return train, InMemory(scaled(test_images), test_labels.long()), tuple("0123456789")


def synthetic(size: int = 224, count: int = SYNTHETIC_IMAGES) -> Source:
    """``count`` normal random images of 1,000 classes, and a tenth as many to test: for timing, not for learning.

    They repeat ``DISTINCT`` images, so that neither memory nor time goes into making them.
    """
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(DISTINCT, 3, size, size, generator=generator)
    train, test = (torch.randint(SYNTHETIC_CLASSES, (n,), generator=generator) for n in (count, -(-count // 10)))
    return InMemory(images, train), InMemory(images, test), tuple(map(str, range(SYNTHETIC_CLASSES)))


def image_folder(
    path: Path,
    size: int = 224,
    augment: str = "paper",
    how: Preprocessing = IMAGENET,
    tell: Callable[[str], object] = lambda line: None,
) -> Source:
    """The pictures ``path``/train/CLASS/* and ``path``/val/CLASS/*, as ImageNet is laid out.

    ``tell`` is called with a line about the files that are left out, if there are any.

    Raises:
        FileNotFoundError: a folder or its pictures are missing.
        ValueError: train and val have different classes, or there is no such ``augment``.
    """
    folders = [split_folder(path, split) for split in ("train", "val")]
    for folder, split in zip(folders, ("train", "val"), strict=True):
        if folder is None:
            missing = path / split if path.is_dir() else path
            raise FileNotFoundError(
                f"there is no folder {missing}; expected train/CLASS/* and val/CLASS/*, or tar shards, in {path}"
            )
    train, test = (Folder(folder) for folder in folders if folder is not None)
    if train.classes != test.classes:
        only = [f"{folder}: {', '.join(sorted(set(these.classes) - set(those.classes)))}"
                for folder, these, those in zip(folders, (train, test), (test, train), strict=True)
                if set(these.classes) - set(those.classes)]  # fmt: skip
        raise ValueError(f"{folders[0]} and {folders[1]} have different classes; only in {'; only in '.join(only)}")
    if left := left_out([*train.left_out, *test.left_out]):
        tell(left)
    transforms = augmentation(augment, size, how), centre_crop(size, how)
    return Pictures(train, transforms[0], size), Pictures(test, transforms[1], size), tuple(train.classes)


def tar_shards(source: str, size: int = 224, augment: str = "paper", how: Preprocessing = IMAGENET) -> Source:
    """The pictures in WebDataset's shards; ``source`` and errors as of :func:`shards.open_shards`."""
    transforms = augmentation(augment, size, how), centre_crop(size, how)
    train, test, classes = shards.open_shards(source)
    return Pictures(train, transforms[0], size), Pictures(test, transforms[1], size), classes


class InMemory:
    """Images [distinct, channels, size, size] that are normalised already; they repeat where there are more labels."""

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self.images, self.labels = images, labels
        _, channels, height, width = images.shape
        self.shape = (channels, height, width)

    def name(self, index: int) -> str:
        return f"image {index}"

    def prepare(self, indices: list[int]) -> None:
        pass

    def read(self, index: int, seed: int) -> Tensor:
        return self.images[index % len(self.images)]


def _count(source: str, text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise ValueError(f"{source} was given; expected {SYNTHETIC}:N with a whole number N of at least 1")
    return int(text)
