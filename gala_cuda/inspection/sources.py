"""The images to inspect: picture files, folders of them, ClickMe's files, the built-in sets."""

from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from ..data.choices import DIGITS, PREFIX, located
from ..data.errors import UnreadableError
from ..data.folders import CLASSES, files_below
from ..data.human_maps.images import ClickMeImages, class_names
from ..data.human_maps.samples import open_samples
from ..data.human_maps.transform import centre_crop as clickme_crop
from ..data.picture_files import is_picture, left_out, read_file
from ..data.pictures import Pictures, centre_crop
from ..data.sampling import Images
from ..data.sources import builtin
from ..networks.classes import places
from ..networks.network import Network

UNKNOWN = -1  # the label of an image whose class nobody says


class Shown(NamedTuple):
    """An image as the network takes it, with what is known about it."""

    name: str
    image: Tensor  # [C, size, size] float32 normalised
    label: int | None
    heatmap: Tensor | None  # [size, size] float32


def open_images(
    place: str, network: Network, split: str = "val", tell: Callable[[str], object] = lambda line: None
) -> Images:
    """The images at ``place`` as ``network`` takes them, each with its class where that is known, else ``UNKNOWN``.

    ``place`` is a picture file or a folder of them, where a picture's class is the name of its folder if the network
    has such a class; a ClickMe file, or the ``split`` of a folder of those; or a built-in set, as for
    :func:`gala_cuda.data.load.load`, of which those held out are taken.

    ``tell`` is called with a line about what is taken or left out, where that is in doubt.

    Raises:
        FileNotFoundError: there is no such place, or it holds no images.
        ValueError: the network takes images of other channels, or does not know the classes.
    """
    if place != (place := located(place)):
        tell(f"images: {place}")
    path = Path(place)
    classes: Sequence[str] | None = None  # by whose numbers images are labelled, if not the network's
    if place.startswith(PREFIX):
        _, images, classes = builtin(place, network.size)
    elif path.is_file() and is_picture(place):
        images = _pictures([place], network)
    elif path.is_dir() and (files := list(filter(is_picture, found := list(files_below(path))))):
        images = _pictures(files, network)
        if left := left_out([file for file in found if not is_picture(file)]):
            tell(left)
    elif path.exists():
        samples, transform = open_samples(path, split), clickme_crop(network.size, "raw", network.how)
        classes = class_names(path, [samples]) if (path / CLASSES).is_file() else None
        images = ClickMeImages(samples, transform, network.size, len(classes or network.classes))
    else:
        raise FileNotFoundError(f"there is no {place}; expected picture files, folders, ClickMe's files, or {DIGITS}")
    if images.shape[0] != network.channels:
        raise ValueError(
            f"{place} has images of {images.shape[0]} channels; expected {network.channels}, as the network takes"
        )
    if classes is not None:
        try:
            images.labels = _renumbered(images.labels, places(classes, network.classes)[0])
        except ValueError as error:
            raise ValueError(f"{place} {error}") from error
    return images


def _renumbered(labels: Tensor, numbers: Sequence[int]) -> Tensor:
    """``labels`` [n] by ``numbers``; those that are none of them stay, to be refused when the image is read."""
    known = (labels >= 0) & (labels < len(numbers))
    return torch.where(known, torch.tensor(numbers)[labels.where(known, 0)], labels)


def has_maps(sources: Sequence[Images]) -> bool:
    """Whether there may be human maps among them."""
    return any(isinstance(source, ClickMeImages) for source in sources)


def spread(sources: Sequence[Images], limit: int) -> list[tuple[Images, int]]:
    """At most ``limit`` images as (source, its number), evenly spaced over all."""
    ends = list(accumulate(len(source.labels) for source in sources))
    count = min(limit, ends[-1])
    chosen = []
    for place in (i * ends[-1] // count for i in range(count)):
        number = next(i for i, end in enumerate(ends) if place < end)
        chosen.append((sources[number], place - ends[number] + len(sources[number].labels)))
    return chosen


def read(chosen: Sequence[tuple[Images, int]], skip: Callable[[str, str], None]) -> Iterator[Shown]:
    """The images one by one; ``skip`` is called with name and reason of each that cannot be read."""
    for source, index in chosen:
        source.prepare([index])
        try:
            sample = source.read(index, 0)
        except UnreadableError as error:
            skip(source.name(index), str(error))
            continue
        label = int(source.labels[index])
        known = None if label == UNKNOWN else label
        if isinstance(sample, Tensor):
            yield Shown(source.name(index), sample, known, None)
        else:
            heatmap = sample.heatmap[0] if sample.has_map else None
            yield Shown(source.name(index), sample.image, known, heatmap)


class _Listed:
    """Picture files, numbered."""

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


def _pictures(paths: Sequence[str], network: Network) -> Images:
    return Pictures(_Listed(paths, network.classes), centre_crop(network.size, network.how), network.size)
