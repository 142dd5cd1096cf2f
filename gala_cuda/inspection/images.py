"""The images to inspect: from picture files, folders of them, ClickMe's files, or the built-in sets."""

from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from ..data.augmentation import centre_crop
from ..data.builtin import open_builtin
from ..data.choices import DIGITS, PREFIX, explicit_source
from ..data.datasets import ImageDataset, PictureDataset
from ..data.errors import UnreadableError
from ..data.folders import CLASSES, files_below
from ..data.human_maps.augmentation import centre_crop as centre_crop_with_map
from ..data.human_maps.dataset import ClickMeDataset, find_class_names
from ..data.human_maps.split_reader import open_split
from ..data.picture_files import describe_left_out, is_picture, read_file
from ..networks.classes import match_classes
from ..networks.network import Network

UNKNOWN = -1  # the label of an image whose class is not known


class InspectedImage(NamedTuple):
    """An image as the network takes it, with what is known about it."""

    name: str
    image: Tensor  # [C, size, size] float32 normalised
    label: int | None
    heatmap: Tensor | None  # [size, size] float32


def open_images(
    source: str, network: Network, split: str = "val", tell: Callable[[str], object] = lambda line: None
) -> ImageDataset:
    """The images of ``source`` as ``network`` takes them, each with its class where that is known, else ``UNKNOWN``.

    ``source`` is a picture file or a folder of them, where a picture's class is the name of its folder if the network
    has such a class; a ClickMe file, or the ``split`` of a folder of those; or a built-in set, as for
    ``gala_cuda.data.load.load``, of which the held-out images are taken.

    ``tell`` is called with a line about what is taken or left out, where that is not obvious.

    Raises:
        FileNotFoundError: there is no such source, or it holds no images.
        ValueError: the images have other channels than the network takes, or classes that it does not know.
    """
    given, source = source, explicit_source(source)
    if source != given:
        tell(f"images: {source}")
    path = Path(source)
    dataset: ImageDataset
    classes: Sequence[str] | None = None  # those that the labels count, if they are not the network's
    if source.startswith(PREFIX):
        _, dataset, classes = open_builtin(source, network.size)
    elif path.is_file() and is_picture(source):
        dataset = _picture_dataset([source], network)
    elif path.is_dir() and (pictures := list(filter(is_picture, files := list(files_below(path))))):
        dataset = _picture_dataset(pictures, network)
        if line := describe_left_out([file for file in files if not is_picture(file)]):
            tell(line)
    elif path.exists():
        samples, transform = open_split(path, split), centre_crop_with_map(network.size, "raw", network.preprocessing)
        classes = find_class_names(path, [samples]) if (path / CLASSES).is_file() else None
        dataset = ClickMeDataset(samples, transform, network.size, len(classes or network.classes))
    else:
        raise FileNotFoundError(f"there is no {source}; expected picture files, folders, ClickMe's files, or {DIGITS}")
    if dataset.shape[0] != network.channels:
        raise ValueError(
            f"{source} has images of {dataset.shape[0]} channels; expected {network.channels}, as the network takes"
        )
    if classes is not None:
        try:
            dataset.labels = _renumber(dataset.labels, match_classes(classes, network.classes)[0])
        except ValueError as error:
            raise ValueError(f"{source} {error}") from error
    return dataset


def _renumber(labels: Tensor, numbers: Sequence[int]) -> Tensor:
    """``labels`` [n] as indices into ``numbers``; those out of range stay, to be refused when the image is read."""
    known = (labels >= 0) & (labels < len(numbers))
    return torch.where(known, torch.tensor(numbers)[labels.where(known, 0)], labels)


def may_have_human_maps(datasets: Sequence[ImageDataset]) -> bool:
    """Whether some of the images may come with human maps."""
    return any(isinstance(dataset, ClickMeDataset) for dataset in datasets)


def choose_evenly(datasets: Sequence[ImageDataset], limit: int) -> list[tuple[ImageDataset, int]]:
    """At most ``limit`` images, evenly spaced over all datasets: (dataset, number of the image in it)."""
    ends = list(accumulate(len(dataset.labels) for dataset in datasets))
    count = min(limit, ends[-1])
    chosen = []
    for position in (i * ends[-1] // count for i in range(count)):
        number = next(i for i, end in enumerate(ends) if position < end)
        chosen.append((datasets[number], position - ends[number] + len(datasets[number].labels)))
    return chosen


def read_images(
    chosen: Sequence[tuple[ImageDataset, int]], skip: Callable[[str, str], None]
) -> Iterator[InspectedImage]:
    """The images one by one; ``skip`` is called with name and reason of each that cannot be read."""
    for dataset, index in chosen:
        dataset.prepare([index])
        try:
            sample = dataset.read(index, 0)
        except UnreadableError as error:
            skip(dataset.name(index), str(error))
            continue
        label = int(dataset.labels[index])
        known = None if label == UNKNOWN else label
        if isinstance(sample, Tensor):
            yield InspectedImage(dataset.name(index), sample, known, None)
        else:
            heatmap = sample.heatmap[0] if sample.has_map else None
            yield InspectedImage(dataset.name(index), sample.image, known, heatmap)


class _ListedPictures:
    """Picture files given one by one, each labelled by the name of its folder."""

    def __init__(self, paths: Sequence[str], classes: Sequence[str]) -> None:
        self.paths = paths
        number_of = {name: number for number, name in enumerate(classes)}
        self.labels = torch.tensor([number_of.get(Path(path).absolute().parent.name, UNKNOWN) for path in paths])

    def name(self, index: int) -> str:
        return self.paths[index]

    def load(self, index: int) -> bytes:
        return read_file(self.name(index))

    def prepare(self, indices: list[int]) -> None:
        pass


def _picture_dataset(paths: Sequence[str], network: Network) -> ImageDataset:
    transform = centre_crop(network.size, network.preprocessing)
    return PictureDataset(
        _ListedPictures(paths, network.classes), transform, network.size, network.preprocessing.channels
    )
