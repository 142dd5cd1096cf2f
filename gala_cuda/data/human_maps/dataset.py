"""ClickMe's images with their human maps as a dataset to train on and to test."""

from pathlib import Path

from ..clickme_sample import ClickMeSample
from ..datasets import seeded
from ..errors import UnreadableError
from ..folders import read_class_names
from ..preprocessing import IMAGENET, Preprocessing
from .augmentation import ClickMeTransform, augmentation, centre_crop
from .formats.location import UNKNOWN
from .split_reader import SplitReader, open_split


class ClickMeDataset:
    """The samples of a split, transformed when they are read: images [3, size, size], maps [1, size, size]."""

    def __init__(self, samples: SplitReader, transform: ClickMeTransform, size: int, num_classes: int) -> None:
        self.samples, self.transform, self.num_classes = samples, transform, num_classes
        self.labels, self.shape = samples.labels, (3, size, size)

    def name(self, index: int) -> str:
        return self.samples.name(index)

    def prepare(self, indices: list[int]) -> None:
        pass

    def read(self, index: int, seed: int) -> ClickMeSample:
        """The sample; ``seed`` decides its augmentation. Raises UnreadableError."""
        sample = self.samples.read(index)
        check_class(sample, self.num_classes)
        with seeded(seed):
            return self.transform(sample)


def open_clickme_folder(
    path: Path,
    size: int = 224,
    augment: str = "paper",
    map_mode: str = "paper",
    preprocessing: Preprocessing = IMAGENET,
    erasing: float | None = None,
    test_size: int | None = None,
) -> tuple[ClickMeDataset, ClickMeDataset, tuple[str, ...]]:
    """(train, val, names of the classes) of a folder with ClickMe's files of the splits train and val.

    Files of every format of ``gala_cuda.data.human_maps.formats`` may be in it, in FOLDER/SPLIT/ or in FOLDER with
    the split in the name. The names of the classes are the lines of FOLDER/classes.txt, else numbers up to the largest
    label. ``augment``, ``map_mode`` and ``erasing`` are as for ``augmentation``. val has images of ``test_size``.

    Raises:
        FileNotFoundError: there are no records of a split.
        ValueError: there is no such ``augment`` or ``map_mode``, or no label can be read.
    """
    train_transform = augmentation(augment, size, map_mode, preprocessing, erasing)
    side = test_size or size
    train, val = open_split(path, "train"), open_split(path, "val")
    classes = find_class_names(path, [train, val])
    return (
        ClickMeDataset(train, train_transform, size, len(classes)),
        ClickMeDataset(val, centre_crop(side, map_mode, preprocessing), side, len(classes)),
        classes,
    )


def check_class(sample: ClickMeSample, num_classes: int) -> None:
    """Raises UnreadableError where the sample's label is none of ``num_classes`` classes."""
    if sample.label >= num_classes:
        raise UnreadableError(f"the label is {int(sample.label)}; expected 0 to {num_classes - 1}")


def find_class_names(path: Path, splits: list[SplitReader]) -> tuple[str, ...]:
    """The lines of ``path``/classes.txt, else numbers up to the largest label of ``splits``.

    Raises ValueError where no label can be read.
    """
    names = read_class_names(path)
    if names is not None:
        return tuple(names)
    largest = max((int(samples.labels.max()) for samples in splits if len(samples)), default=UNKNOWN)
    if largest == UNKNOWN:
        raise ValueError(f"no record in {path} has a label that can be read")
    return tuple(map(str, range(largest + 1)))
