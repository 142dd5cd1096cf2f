"""Loads the images to train and test on, from whichever kind of source, as batches."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import SettingError
from .augmentation import augmentation, centre_crop, several_views
from .batches import Batches
from .builtin import open_builtin
from .choices import PREFIX, USUAL, Columns, explicit_source
from .datasets import ImageDataset, PictureDataset
from .hf_datasets import is_of_datasets, open_datasets
from .human_maps.dataset import open_clickme_folder
from .picture_folder import open_picture_folder
from .preprocessing import IMAGENET, Preprocessing
from .shard_index import is_shard_folder
from .shards import is_address, open_shards
from .streams import StreamedDataset
from .table import open_table, tables_of


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
    held_out: tuple[str, ...] = ()  # the pictures that were, where ``val_share`` decided which


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
    erasing: float | None = None,
    repeats: int = 1,
    preprocessing: Preprocessing = IMAGENET,
    test_size: int | None = None,
    tta: str | None = None,
    map_mode: str | None = None,
    val_share: float | None = None,
    columns: Columns = USUAL,
    stream: bool = False,
    pin_memory: bool = False,
) -> Data:
    """The batches of one of ``world`` processes, of ``batch_size`` images each, read by ``workers`` further processes.

    Args:
        source: "builtin:digits"; "builtin:synthetic", or "builtin:synthetic:N" for N images; one of these without
            "builtin:", unless there is a folder of that name; a folder of pictures; a table of them, FILE.csv or a
            folder with train.csv and val.csv; a folder of tar shards; or the http(s) address of shards with an index.
            "datasets:WHAT" as for ``open_datasets``. With ``map_mode``, a folder of ClickMe files.
        size: of the images in pixels; 224 unless given, of digits 32.
        augment, erasing: of pictures, see ``augmentation``. Built-in images are taken as they are.
        repeats: how often an image comes in a batch, each time augmented in another way, to train on.
        preprocessing: how pictures are scaled, cropped and normalised, and how many channels they have.
        test_size: of the images to test on, where it is not ``size``.
        tta: the views of each picture to test on, see ``several_views``: images are [n, views, channels, size, size].
        map_mode: how human maps are processed, see ``process_map``.
        val_share: of pictures without val, the share of each class that is held out; ``seed`` says which.
        columns: of a table, or of a data set of datasets.
        stream: whether a data set of datasets is read as a stream.

    Raises:
        FileNotFoundError, ValueError: as the function says that opens this kind of source, or a number is out of range.
    """
    notes, held_out = list[str](), tuple[str, ...]()
    train: ImageDataset | StreamedDataset
    test: ImageDataset | StreamedDataset
    of_table = _given(columns) | {"stream": stream or None}
    if map_mode is not None:
        _refuse(source, "no folder of pictures", val_share=val_share, tta=tta, **of_table)
        train, test, classes = open_clickme_folder(
            Path(source), size or 224, augment, map_mode, preprocessing, erasing, test_size
        )
    elif (source := explicit_source(source)).startswith(PREFIX):
        _refuse(source, "no folder of pictures", val_share=val_share, tta=tta, erasing=erasing,
                repeats=repeats if repeats > 1 else None, **of_table)  # fmt: skip
        train, test, classes = open_builtin(source, size)
        if test_size is not None:
            _, test, _ = open_builtin(source, test_size)
        workers = 0  # there is nothing to do
    else:
        if stream:
            _refuse(source, "read as a stream", repeats=repeats if repeats > 1 else None)
        train_files, test_files, classes = _open_files(source, notes.append, val_share, seed, columns, stream)
        if val_share is not None:
            held_out = tuple(test_files.name(index) for index in range(len(test_files.labels)))
        kind: type[PictureDataset] | type[StreamedDataset] = StreamedDataset if stream else PictureDataset
        side = size or 224
        train = kind(train_files, augmentation(augment, side, preprocessing, erasing), side, preprocessing.channels)
        side = test_size or side
        views = several_views(tta, side, preprocessing) if tta else centre_crop(side, preprocessing)
        test = kind(test_files, views, side, preprocessing.channels)

    def batches(dataset: ImageDataset | StreamedDataset, train: bool) -> Batches:
        return Batches(
            dataset, batch_size, seed, workers, train=train, repeats=repeats if train else 1, rank=rank, world=world,
            pin_memory=pin_memory,
        )  # fmt: skip

    channels, _, side = train.shape
    return Data(batches(train, True), batches(test, False), classes, channels, side, tuple(notes), held_out)


def _open_files(
    source: str, tell: Callable[[str], object], val_share: float | None, seed: int, columns: Columns, stream: bool
) -> tuple[Any, Any, tuple[str, ...]]:
    """(train, val, names of the classes): ``PictureFiles``, or with ``stream`` ``StreamedPictures``."""
    if is_of_datasets(source):
        return open_datasets(source, columns, tell, val_share, seed, stream)
    _refuse(source, "not of datasets", stream=stream or None)
    if tables := tables_of(Path(source)):
        return open_table(tables, columns, tell, val_share, seed)
    _refuse(source, "no table", **_given(columns))
    if is_address(source) or is_shard_folder(Path(source)):
        _refuse(source, "no folder of pictures", val_share=val_share)
        return open_shards(source)
    return open_picture_folder(Path(source), tell, val_share, seed)


def _given(columns: Columns) -> dict[str, object]:
    """What is not as usual, by the names of settings."""
    return {
        "multi_label": columns.multi_label or None, "image_column": columns.image, "label_column": columns.label,
    }  # fmt: skip


def _refuse(source: str, what: str, **settings: object) -> None:
    """Raises SettingError for a setting that is given, which ``source``, ``what`` it is, does not go with."""
    for name, value in settings.items():
        if value is not None:
            raise SettingError((name,), f"{name} is {value}, and {source} is {what}; expected none")
