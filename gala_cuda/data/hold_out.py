"""Holds out a share of pictures to validate on: which, only the seed and their paths decide."""

import hashlib
import math
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor


class Pictures(Protocol):
    """Pictures of classes."""

    @property
    def classes(self) -> Sequence[str]: ...

    @property
    def labels(self) -> Tensor:
        """[n] int64, or of any number of labels each [n, classes] bool."""

    def below(self, index: int) -> str:
        """The path of a picture below its folder, or whatever else it is known by wherever the data lie."""


def hold_out(pictures: Pictures, share: float, seed: int) -> Tensor:
    """Which pictures are held out, [n] bool: of each class the ``share``, rounded up, that comes first by a digest.

    Where pictures have any number of labels, it is the share of them all.

    The digest is of ``seed`` and the picture's path in their folder, so that it does not matter where the folder lies,
    and pictures that are added later move few of the others.

    Raises:
        ValueError: a class would have none left to train on.
    """
    held_out = torch.zeros(len(pictures.labels), dtype=torch.bool)
    if pictures.labels.dim() == 2:
        parts = [("the table", torch.arange(len(pictures.labels)))]
    else:
        parts = [(f"class {name}", (pictures.labels == label).nonzero()[:, 0])
                 for label, name in enumerate(pictures.classes)]  # fmt: skip
    for part, indices in parts:
        own = indices.tolist()
        count = held_out_count(len(own), share)
        if own and count == len(own):
            raise ValueError(f"{part} has {len(own)} pictures, and val_share {share} of them are all; expected more")

        def digest(index: int) -> bytes:
            return hashlib.blake2b(f"{seed} {pictures.below(index)}".encode("utf-8", "surrogateescape")).digest()

        held_out[sorted(own, key=digest)[:count]] = True
    return held_out


def held_out_count(pictures: int, share: float) -> int:
    """How many of a class's ``pictures`` are held out: the ``share``, rounded up."""
    return math.ceil(round(share * pictures, 6))  # 0.1 * 30 is a little more than 3
