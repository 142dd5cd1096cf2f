"""A study's images with the maps that rounds make of them, as records of ClickMe's files."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from ..data.errors import UnreadableError
from ..data.human_maps.convert import unique_key
from ..data.human_maps.record import MAX_SIDE, Record, decode_image, is_jpeg_or_png
from ..data.human_maps.split_reader import plain_key
from ..data.picture_decoding import decode_picture
from ..data.picture_files import ListedPictures
from .quality import grouped
from .records import Round
from .rules import MAP_BOX, click_map


@dataclass(frozen=True)
class MapOptions:
    """How maps are made.

    Attributes:
        box: side of the square that a bubble adds to, in pixels of the image.
        blur: standard deviation of a Gaussian in pixels of the image; 0 leaves maps as they are.
        min_people: an image that fewer people painted has no map.
        only_mapped: images without a map are left out; otherwise they train the classification alone.
    """

    box: int = MAP_BOX
    blur: float = 0.0
    min_people: int = 1
    only_mapped: bool = False


class StudyRecords:
    """The images of a split with the maps of the rounds that count, as ``write_splits`` takes them.

    Images and maps with a side of more than ``MAX_SIDE`` pixels are made smaller, for readers would refuse them.

    Attributes:
        all_names: paths of the split's images, also of those that ``only_mapped`` leaves out.
    """

    def __init__(
        self, pictures: ListedPictures, root: Path, classes: Sequence[str], rounds: Mapping[str, Sequence[Round]],
        options: MapOptions,
    ) -> None:  # fmt: skip
        """``rounds`` are by their image's path below ``root``; labels are positions in ``classes``."""
        self._root, self._rounds, self._options = root, rounds, options
        paths = [Path(pictures.name(index)) for index in range(len(pictures.labels))]
        self.all_names = [path.relative_to(root).as_posix() for path in paths]
        self._entries, keys = list[tuple[str, str, int]](), set[str]()  # name, key, label
        for path, name, label in zip(paths, self.all_names, pictures.labels.tolist(), strict=True):
            if self.has_map(name) or not options.only_mapped:
                key = unique_key(plain_key(path.relative_to(pictures.folder).with_suffix("").as_posix()), keys)
                keys.add(key)
                self._entries.append((name, key, classes.index(pictures.classes[label])))

    def __len__(self) -> int:
        return len(self._entries)

    def name(self, index: int) -> str:
        """The image's path below STUDY/images."""
        return self._entries[index][0]

    def key(self, index: int) -> str:
        return self._entries[index][1]

    def has_map(self, name: str) -> bool:
        return len(grouped(self._rounds.get(name, ()), "participant")) >= self._options.min_people

    def record(self, index: int) -> Record:
        """The image and its map, as large as each other. Raises UnreadableError."""
        name, _, label = self._entries[index]
        rounds = self._rounds.get(name, ())
        try:
            data = (self._root / name).read_bytes()
        except OSError as error:
            raise UnreadableError(str(error)) from error
        picture = decode_picture(data)
        for width, height in {(round.width, round.height) for round in rounds} - {picture.size}:
            raise UnreadableError(
                f"the image has {picture.width} x {picture.height} pixels, and {width} x {height} in its rounds"
            )
        image = _stored(data, picture)
        if not self.has_map(name):
            return Record(image, None, label, {})
        return Record(image, self._map(rounds), label, {"click_count": [sum(len(round.points) for round in rounds)]})

    def people(self, index: int) -> tuple[list[np.ndarray], list[str]]:
        """(single people's maps, made as the image's own, and their codes)."""
        own = grouped(self._rounds.get(self.name(index), ()), "participant")
        return [self._map(rounds) for rounds in own.values()], list(own)

    def _map(self, rounds: Sequence[Round]) -> np.ndarray:
        """The map of all bubbles of ``rounds``, [H, W] float32 with a maximum of 1."""
        points = tuple(point for round in rounds for point in round.points)
        heatmap = click_map(points, rounds[0].height, rounds[0].width, self._options.box)
        if self._options.blur:
            from scipy.ndimage import gaussian_filter

            heatmap = gaussian_filter(heatmap, self._options.blur, mode="constant")
        size = _fitting(*heatmap.shape)
        if size != heatmap.shape:
            heatmap = F.interpolate(torch.from_numpy(heatmap)[None, None], size, mode="area")[0, 0].numpy()
        return heatmap / max(heatmap.max(), np.finfo(np.float32).tiny)


def _stored(data: bytes, picture: Image.Image) -> bytes | np.ndarray:
    """The image file as it is where a reader sees in it the same as the players did; else its pixels [H, W, 3]."""
    pixels = np.asarray(picture)
    height, width = _fitting(*pixels.shape[:2])
    if (height, width) != pixels.shape[:2]:
        return np.asarray(picture.resize((width, height), Image.Resampling.LANCZOS))
    if is_jpeg_or_png(data) and np.array_equal(decode_image(data), pixels.transpose(2, 0, 1)):
        return data
    return pixels


def _fitting(height: int, width: int) -> tuple[int, int]:
    """The sides of an image made to fit into ``MAX_SIDE``."""
    scale = min(1, MAX_SIDE / max(height, width))
    return max(1, round(scale * height)), max(1, round(scale * width))
