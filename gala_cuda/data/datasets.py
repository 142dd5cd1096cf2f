"""Numbered sets of images with their classes, which batches are made of: of picture files, or in memory."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

import torch
from torch import Tensor
from torchvision.transforms import v2

from .clickme_sample import ClickMeSample
from .errors import UnreadableError
from .picture_decoding import decode_picture


class ImageDataset(Protocol):
    """A numbered set of images."""

    labels: Tensor  # [n] int64, or of any number of labels each [n, classes] bool
    shape: tuple[int, int, int]  # of an image: channels, height, width

    def name(self, index: int) -> str:
        """A name of the image for messages."""

    def prepare(self, indices: list[int]) -> None:
        """Says which images are read next."""

    def read(self, index: int, seed: int) -> Tensor | ClickMeSample:
        """The image, float32 and normalised, or it with its human map; ``seed`` decides the augmentation.

        Raises UnreadableError, UnreachableError.
        """


class PictureFiles(Protocol):
    """A numbered set of picture files with their classes."""

    @property
    def labels(self) -> Tensor:
        """[n] int64, or of any number of labels each [n, classes] bool."""

    def name(self, index: int) -> str:
        """A name of the file for messages."""

    def load(self, index: int) -> bytes:
        """The content of the file. Raises OSError where it cannot be read."""

    def prepare(self, indices: list[int]) -> None:
        """Says which files are loaded next."""


class PictureDataset:
    """Images [channels, size, size] of picture files, decoded and transformed when they are read."""

    def __init__(self, files: PictureFiles, transform: v2.Transform, size: int, channels: int = 3) -> None:
        self.files, self.transform = files, transform
        self.labels, self.shape = files.labels, (channels, size, size)

    def name(self, index: int) -> str:
        return self.files.name(index)

    def prepare(self, indices: list[int]) -> None:
        self.files.prepare(indices)

    def read(self, index: int, seed: int) -> Tensor:
        try:
            data = self.files.load(index)
        except OSError as error:
            raise UnreadableError(str(error)) from error
        picture = decode_picture(data, self.shape[0])
        with seeded(seed):
            return self.transform(picture)


class InMemoryDataset:
    """Images [distinct, channels, size, size], normalised already. With more labels than images, the images repeat."""

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


def derive_seed(*parts: int) -> int:
    """A seed of 63 bits for a tuple of whole numbers, the same on every machine."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Torch's CPU generator starts from ``seed`` inside, and afterwards is as it was before."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed CUDA too, for good
        yield
