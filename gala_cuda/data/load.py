"""The images of a training, of whichever kind, as batches to train and to test on."""

from dataclasses import dataclass
from pathlib import Path

from . import shards
from .choices import PREFIX, located
from .human_maps.images import clickme_folder
from .pictures import IMAGENET, Preprocessing
from .sampling import Batches, Images
from .sources import builtin, image_folder, tar_shards


@dataclass(frozen=True)
class Data:
    """Images to train on and held out, in batches; ``channels`` and ``size`` in pixels are those of every image.

    ``notes`` are lines for the user: what was left out.
    """

    train: Batches
    test: Batches
    classes: tuple[str, ...]
    channels: int
    size: int
    notes: tuple[str, ...] = ()


def load(
    source: str,
    batch_size: int,
    seed: int,
    size: int | None = None,
    workers: int = 0,
    *,
    rank: int = 0,
    world: int = 1,
    augment: str = "paper",
    how: Preprocessing = IMAGENET,
    maps: str | None = None,
    pin_memory: bool = False,
) -> Data:
    """The batches of one of ``world`` processes, ``batch_size`` images each, read by ``workers`` processes more.

    ``source`` is "builtin:digits"; "builtin:synthetic", or "builtin:synthetic:N" for N images; one of these without
    "builtin:", unless there is a folder of that name; a folder of pictures; a folder of tar shards; or the http(s)
    address of shards with an index. See :func:`digits`, :func:`synthetic`, :func:`image_folder` and :func:`tar_shards`.
    ``size`` is 224 unless given, of digits 32. ``augment`` is for pictures: :func:`pictures.augmentation` has the
    choices, and ``how`` they are scaled, cropped and normalised. Other images are taken as they are. With ``maps``, how
    human maps are processed, ``source`` is a folder as of :func:`gala_cuda.data.human_maps.images.clickme_folder`.

    Raises:
        FileNotFoundError, ValueError: as those functions say, or a number is out of range.
    """
    source, notes = located(source) if maps is None else source, list[str]()
    if maps is not None:
        train, test, classes = clickme_folder(Path(source), size or 224, augment, maps, how)
    elif source.startswith(PREFIX):
        train, test, classes = builtin(source, size)
        workers = 0  # there is nothing to do
    elif shards.is_address(source) or shards.are_in(Path(source)):
        train, test, classes = tar_shards(source, size or 224, augment, how)
    else:
        train, test, classes = image_folder(Path(source), size or 224, augment, how, notes.append)

    def batches(images: Images, train: bool) -> Batches:
        return Batches(images, batch_size, seed, workers, train=train, rank=rank, world=world, pin_memory=pin_memory)

    channels, _, side = train.shape
    return Data(batches(train, True), batches(test, False), classes, channels, side, tuple(notes))
