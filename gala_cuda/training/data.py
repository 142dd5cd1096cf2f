"""What to train on: scikit-learn's handwritten digits, random images, a folder of pictures, or tar shards."""

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor

from . import shards
from .pictures import IMAGENET, Folder, Pictures, Preprocessing, augmentation, centre_crop
from .sampling import Batches, Images

TEST_SHARE = 0.25  # of the digits
SYNTHETIC, SYNTHETIC_CLASSES, DISTINCT = 12_800, 1000, 64
Source = tuple[Images, Images, tuple[str, ...]]  # to train on, held out, classes


@dataclass(frozen=True)
class Data:
    """Images to train on and held out, in batches; ``channels`` and ``size`` in pixels are those of every image."""

    train: Batches
    test: Batches
    classes: tuple[str, ...]
    channels: int
    size: int


def load(
    source: str,
    batch_size: int,
    seed: int,
    size: int | None = None,
    workers: int = 0,
    *,
    rank: int = 0,
    world: int = 1,
    augment: str = "paper",
    how: Preprocessing = IMAGENET,
    maps: str | None = None,
    pin_memory: bool = False,
) -> Data:
    """The batches of one of ``world`` processes, ``batch_size`` images each, read by ``workers`` processes more.

    ``source`` is "digits"; "synthetic", or "synthetic:N" for N images; a folder of pictures; a folder of tar shards; or
    the http(s) address of shards with an index. See :func:`digits`, :func:`synthetic`, :func:`image_folder` and
    :func:`tar_shards`. ``size`` is 224 unless given, of digits 32. ``augment`` is for pictures:
    :func:`pictures.augmentation` has the choices, and ``how`` they are scaled, cropped and normalised. Other images are
    taken as they are. With ``maps``, how human maps are
    processed, ``source`` is a folder as of :func:`gala_cuda.clickme.data.clickme_folder`.

    Raises:
        FileNotFoundError, ValueError: as those functions say, or a number is out of range.
    """
    kind, _, count = source.partition(":")
    if maps is not None:
        from ..clickme.data import clickme_folder

        train, test, classes = clickme_folder(Path(source), size or 224, augment, maps, how)
    elif source == "digits":
        train, test, classes = digits(size or 32)
        workers = 0  # there is nothing to do
    elif kind == "synthetic":
        train, test, classes = synthetic(size or 224, _count(count) if ":" in source else SYNTHETIC)
    elif shards.is_address(source) or shards.are_in(Path(source)):
        train, test, classes = tar_shards(source, size or 224, augment, how)
    else:
        train, test, classes = image_folder(Path(source), size or 224, augment, how)

    def batches(images: Images, train: bool) -> Batches:
        return Batches(images, batch_size, seed, workers, train=train, rank=rank, world=world, pin_memory=pin_memory)

    channels, _, side = train.shape
    return Data(batches(train, True), batches(test, False), classes, channels, side)


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


def synthetic(size: int = 224, count: int = SYNTHETIC) -> Source:
    """``count`` normal random images of 1,000 classes, and a tenth as many to test: for timing, not for learning.

    They repeat ``DISTINCT`` images, so that neither memory nor time goes into making them.
    """
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(DISTINCT, 3, size, size, generator=generator)
    train, test = (torch.randint(SYNTHETIC_CLASSES, (n,), generator=generator) for n in (count, -(-count // 10)))
    return InMemory(images, train), InMemory(images, test), tuple(map(str, range(SYNTHETIC_CLASSES)))


def image_folder(path: Path, size: int = 224, augment: str = "paper", how: Preprocessing = IMAGENET) -> Source:
    """The pictures ``path``/train/CLASS/* and ``path``/val/CLASS/*, as ImageNet is laid out.

    Raises:
        FileNotFoundError: a folder or its pictures are missing.
        ValueError: train and val have different classes, or there is no such ``augment``.
    """
    for folder in (path, path / "train", path / "val"):
        if not folder.is_dir():
            raise FileNotFoundError(
                f"there is no folder {folder}; expected train/CLASS/* and val/CLASS/*, or tar shards, in {path}"
            )
    train, test = Folder(path / "train"), Folder(path / "val")
    if train.classes != test.classes:
        odd = sorted(set(train.classes) ^ set(test.classes))
        raise ValueError(f"{path}/train and {path}/val have different classes; only in one: {', '.join(odd)}")
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


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise ValueError(f"synthetic:{text} was given; expected synthetic:N with a whole number N of at least 1")
    return int(text)
