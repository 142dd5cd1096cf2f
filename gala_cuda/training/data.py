"""The images to train on: scikit-learn's handwritten digits, or a folder of pictures."""

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch.utils.data import DataLoader, TensorDataset
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
TEST_SHARE = 0.25  # of the digits


@dataclass(frozen=True)
class Data:
    """Batches of (images [N, channels, size, size] float32 normalised, labels [N] int64), to train on and held out."""

    train: DataLoader
    test: DataLoader
    classes: tuple[str, ...]
    channels: int
    size: int


def load(source: str, batch_size: int, seed: int, size: int | None = None, workers: int = 0) -> Data:
    """``source`` is "digits" or the path of a folder, as :func:`digits` and :func:`image_folder` take them."""
    if source == "digits":
        return digits(batch_size, seed, size or 32)
    return image_folder(Path(source), batch_size, seed, size or 224, workers)


def digits(batch_size: int, seed: int, size: int = 32) -> Data:
    """The 1,797 real handwritten digits of 8x8 pixels that ship with scikit-learn, scaled up to ``size``.

    A quarter of each class is held out for testing; the split is always the same, whatever the ``seed`` of the order.
    """
    images, labels = load_digits(return_X_y=True)
    parts = train_test_split(images, labels, test_size=TEST_SHARE, stratify=labels, random_state=0)
    train_images, test_images, train_labels, test_labels = map(torch.from_numpy, parts)
    mean, std = train_images.mean(), train_images.std()

    def dataset(images: torch.Tensor, labels: torch.Tensor) -> TensorDataset:
        normalised = ((images - mean) / std).float().view(-1, 1, 8, 8)
        return TensorDataset(F.interpolate(normalised, (size, size), mode="bilinear"), labels.long())

    train, test = dataset(train_images, train_labels), dataset(test_images, test_labels)
    return Data(*_loaders(train, test, batch_size, seed, 0), tuple("0123456789"), 1, size)


def image_folder(path: Path, batch_size: int, seed: int, size: int = 224, workers: int = 0) -> Data:
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
    train, test = ImageFolder(path / "train", augment), ImageFolder(path / "val", centre)
    if train.classes != test.classes:
        odd = sorted(set(train.classes) ^ set(test.classes))
        raise ValueError(f"{path}/train and {path}/val have different classes; only in one: {', '.join(odd)}")
    return Data(*_loaders(train, test, batch_size, seed, workers), tuple(train.classes), 3, size)


def _loaders(
    train: TensorDataset | ImageFolder, test: TensorDataset | ImageFolder, batch_size: int, seed: int, workers: int
) -> tuple[DataLoader, DataLoader]:
    order = torch.Generator().manual_seed(seed)
    full = len(train) >= batch_size  # a last batch of one image has no variance to normalise by
    shuffled: DataLoader = DataLoader(
        train, batch_size, shuffle=True, drop_last=full, generator=order, num_workers=workers
    )
    return shuffled, DataLoader(test, batch_size, num_workers=workers)
