"""The built-in data sets: scikit-learn's handwritten digits, and random images for timing."""

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor

from .choices import DIGITS, PREFIX, SYNTHETIC
from .datasets import InMemoryDataset

TEST_FRACTION = 0.25  # of the digits
SYNTHETIC_IMAGES, SYNTHETIC_CLASSES, DISTINCT = 12_800, 1000, 64
Splits = tuple[InMemoryDataset, InMemoryDataset, tuple[str, ...]]  # to train on, held out, names of the classes


def open_builtin(source: str, size: int | None = None) -> Splits:
    """The built-in set ``source``, a name that starts with "builtin:". Raises ValueError where there is none."""
    if source == DIGITS:
        return digits(size or 32)
    name, _, count = source.removeprefix(PREFIX).partition(":")
    if f"{PREFIX}{name}" != SYNTHETIC:
        raise ValueError(f"{source} was given; expected {DIGITS}, {SYNTHETIC} or {SYNTHETIC}:N")
    return synthetic(size or 224, _parse_count(source, count) if count or source.endswith(":") else SYNTHETIC_IMAGES)


def digits(size: int = 32) -> Splits:
    """The 1,797 real handwritten digits of 8x8 pixels that ship with scikit-learn, scaled up to ``size``.

    A quarter of each class is held out for testing; the split is always the same.
    """
    images, labels = load_digits(return_X_y=True)
    parts = train_test_split(images, labels, test_size=TEST_FRACTION, stratify=labels, random_state=0)
    train_images, test_images, train_labels, test_labels = map(torch.from_numpy, parts)
    mean, std = train_images.mean(), train_images.std()

    def scale(images: Tensor) -> Tensor:
        normalised = ((images - mean) / std).float().view(-1, 1, 8, 8)
        return F.interpolate(normalised, (size, size), mode="bilinear")

    train = InMemoryDataset(scale(train_images), train_labels.long())
    return train, InMemoryDataset(scale(test_images), test_labels.long()), tuple("0123456789")


def synthetic(size: int = 224, count: int = SYNTHETIC_IMAGES) -> Splits:
    """``count`` images of normally distributed noise in 1,000 classes, and a tenth as many to test: for timing only.

    They repeat ``DISTINCT`` images, so that neither memory nor time goes into making them.
    """
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(DISTINCT, 3, size, size, generator=generator)
    train, test = (torch.randint(SYNTHETIC_CLASSES, (n,), generator=generator) for n in (count, -(-count // 10)))
    return InMemoryDataset(images, train), InMemoryDataset(images, test), tuple(map(str, range(SYNTHETIC_CLASSES)))


def _parse_count(source: str, text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise ValueError(f"{source} was given; expected {SYNTHETIC}:N with a whole number N of at least 1")
    return int(text)
