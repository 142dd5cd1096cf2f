"""The images to train on: scikit-learn's handwritten digits, random ones, or a folder of pictures."""

import struct
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from .sampling import Batches, Images, Unreadable

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
TEST_SHARE = 0.25  # of the digits
BROKEN = (OSError, SyntaxError, ValueError, struct.error, Image.DecompressionBombError)  # what Pillow raises


@dataclass(frozen=True)
class Data:
    """Images to train on and held out, in batches."""

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
) -> Data:
    """``source`` is "digits" or the path of a folder, as :func:`digits` and :func:`image_folder` take them."""
    if source == "digits":
        size, workers = size or 32, 0
        train, test, classes = digits(size)
    else:
        size = size or 224
        train, test, classes = image_folder(Path(source), size)

    def batches(images: Images, train: bool) -> Batches:
        return Batches(images, batch_size, seed, workers, train=train, rank=rank, world=world)

    return Data(batches(train, True), batches(test, False), classes, train.shape[0], size)


def digits(size: int = 32) -> tuple[Images, Images, tuple[str, ...]]:
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


def image_folder(path: Path, size: int = 224) -> tuple[Images, Images, tuple[str, ...]]:
    """Pictures below ``path``/train/CLASS and ``path``/val/CLASS: random crops and flips of ``size``, centre crops.

    Raises:
        FileNotFoundError: a folder or its pictures are missing.
        ValueError: train and val have different classes.
    """
    for folder in (path, path / "train", path / "val"):
        if not folder.is_dir():
            raise FileNotFoundError(f"there is no folder {folder}; expected train/CLASS/* and val/CLASS/* in {path}")
    finish = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(IMAGENET_MEAN, IMAGENET_STD)]
    augment = v2.Compose([v2.RandomResizedCrop(size), v2.RandomHorizontalFlip(), *finish])
    centre = v2.Compose([v2.Resize(size * 8 // 7), v2.CenterCrop(size), *finish])
    train, test = ImageFolder(path / "train"), ImageFolder(path / "val")
    if train.classes != test.classes:
        odd = sorted(set(train.classes) ^ set(test.classes))
        raise ValueError(f"{path}/train and {path}/val have different classes; only in one: {', '.join(odd)}")
    return Pictures(train, augment, size), Pictures(test, centre, size), tuple(train.classes)


class InMemory:
    """Images that are tensors [n, channels, size, size] already; they are not augmented."""

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self.images, self.labels = images, labels
        _, channels, height, width = images.shape
        self.shape = (channels, height, width)

    def name(self, index: int) -> str:
        return f"image {index}"

    def read(self, index: int, seed: int) -> Tensor:
        return self.images[index]


class Pictures:
    """Files, decoded and transformed as they are read."""

    def __init__(self, folder: ImageFolder, transform: v2.Transform, size: int) -> None:
        self.labels = torch.tensor(folder.targets)
        self.files = [name for name, _ in folder.samples]
        self.transform, self.shape = transform, (3, size, size)

    def name(self, index: int) -> str:
        return self.files[index]

    def read(self, index: int, seed: int) -> Tensor:
        try:
            picture = Image.open(self.files[index]).convert("RGB")
        except BROKEN as error:
            raise Unreadable(f"{type(error).__name__}: {error}") from error
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            return self.transform(picture)
