"""ClickMe's files as images to train on and to test, with their maps."""

from pathlib import Path

import torch

from .. import folders
from ..clickme_sample import ClickMeSample
from ..errors import UnreadableError
from ..pictures import IMAGENET, Preprocessing
from ..sources import Source
from .formats import UNKNOWN
from .samples import Samples, open_samples
from .transform import Transform, augmentation, centre_crop


class ClickMeImages:
    """The samples of a split, transformed as they are read: images [3, size, size], maps [1, size, size]."""

    def __init__(self, samples: Samples, transform: Transform, size: int, classes: int) -> None:
        self.samples, self.transform, self.classes = samples, transform, classes
        self.labels, self.shape = samples.labels, (3, size, size)

    def name(self, index: int) -> str:
        return self.samples.name(index)

    def prepare(self, indices: list[int]) -> None:
        pass

    def read(self, index: int, seed: int) -> ClickMeSample:
        """The sample; ``seed`` decides its augmentation. Raises UnreadableError."""
        sample = checked_class(self.samples.read(index), self.classes)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed CUDA too, for good
            return self.transform(sample)


def clickme_folder(
    path: Path, size: int = 224, augment: str = "paper", maps: str = "paper", how: Preprocessing = IMAGENET
) -> Source:
    """(to train on, held out, classes) of a folder with ClickMe's files of the splits train and val.

    Every format of :mod:`gala_cuda.data.human_maps.formats` may be in it, in FOLDER/SPLIT/ or in FOLDER with the split
    in the name. Classes are the lines of FOLDER/classes.txt, else numbers up to the largest label. The choices of
    ``augment`` and ``maps`` are those of :func:`transform.augmentation`.

    Raises:
        FileNotFoundError: there are no records of a split.
        ValueError: there is no such ``augment`` or ``maps``, or no label can be read.
    """
    transforms = augmentation(augment, size, maps, how), centre_crop(size, maps, how)
    train, val = open_samples(path, "train"), open_samples(path, "val")
    classes = class_names(path, [train, val])
    train_images, val_images = (
        ClickMeImages(samples, transform, size, len(classes))
        for samples, transform in zip((train, val), transforms, strict=True)
    )
    return train_images, val_images, classes


def checked_class(sample: ClickMeSample, classes: int | None) -> ClickMeSample:
    """The sample. Raises UnreadableError where there are ``classes`` and its label is none of them."""
    if classes is not None and sample.label >= classes:
        raise UnreadableError(f"the label is {int(sample.label)}; expected 0 to {classes - 1}")
    return sample


def class_names(path: Path, splits: list[Samples]) -> tuple[str, ...]:
    """The lines of ``path``/classes.txt, else numbers up to the largest label of ``splits``. Raises ValueError."""
    named = folders.class_names(path)
    if named is not None:
        return tuple(named)
    largest = max((int(samples.labels.max()) for samples in splits if len(samples)), default=UNKNOWN)
    if largest == UNKNOWN:
        raise ValueError(f"no record in {path} has a label that can be read")
    return tuple(map(str, range(largest + 1)))
