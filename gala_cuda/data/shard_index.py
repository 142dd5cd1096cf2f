"""The index of tar shards: where every image lies. It is read from index.json or from the tar headers.

``gala-cuda index`` writes index.json, for a quicker start and for shards on a server, whose headers are not scanned.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from .folders import is_litter, read_class_names, split_folder, splits_named
from .tar_files import Shard, is_tar, scan_tar, tar_files_of_split

FILE_NAME = "index.json"


@dataclass(frozen=True)
class ShardIndex:
    """The shards to train on and held out, and the names of their classes.

    Raises:
        FileNotFoundError: a split has no images.
        ValueError: a shard is in both splits, or an image's class is not among ``classes``.
    """

    classes: list[str]
    train: list[Shard]
    val: list[Shard]

    def __post_init__(self) -> None:
        twice = sorted({shard.file for shard in self.train} & {shard.file for shard in self.val})
        if twice:
            raise ValueError(f"{twice[0]} is in both splits, train and val; expected it in one of them")
        for split, shards in (("train", self.train), ("val", self.val)):
            if not any(shard.names for shard in shards):
                raise FileNotFoundError(f"there are no images in shards to {split}")
            for shard in shards:
                for name, label in zip(shard.names, shard.labels, strict=True):
                    if not 0 <= label < len(self.classes):
                        raise ValueError(
                            f"{shard.file}: {name} is of class {label}; expected 0 to {len(self.classes) - 1}"
                        )


def read_index(folder: Path) -> ShardIndex:
    """The index of a folder with shards, from its index.json or else from the tar headers.

    Raises:
        FileNotFoundError: there are no shards, or no images, of a split.
        ValueError: a shard is damaged, or has changed since index.json was written.
    """
    file = folder / FILE_NAME
    index = parse_index(file.read_bytes(), str(file)) if file.is_file() else scan_folder(folder)
    for shard in index.train + index.val:
        size = (folder / shard.file).stat().st_size
        if size != shard.bytes:
            raise ValueError(
                f"{folder / shard.file} has {size} bytes, and {shard.bytes} in {FILE_NAME}; write {FILE_NAME} anew"
            )
    return index


def parse_index(text: bytes, where: str) -> ShardIndex:
    """The index of the JSON ``text``, which is from ``where``. Raises as ``read_index`` does."""
    try:
        index = json.loads(text)
        return ShardIndex(index["classes"], *([Shard(**shard) for shard in index[split]] for split in ("train", "val")))
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"{where} is no index of shards: {error}") from error


def scan_folder(folder: Path) -> ShardIndex:
    """The index of a folder, from the tar headers. Raises as ``read_index`` does."""
    for split in ("train", "val"):
        if not tar_files_of_split(folder, split):
            raise FileNotFoundError(
                f"there are no tar shards of the split {split} in {folder}; expected {split}/*.tar, or *.tar with "
                f"{split} as a word of their names"
            )
    train, val = ([scan_tar(file, folder) for file in tar_files_of_split(folder, split)] for split in ("train", "val"))
    largest = max((max(shard.labels, default=-1) for shard in train + val), default=-1)
    classes = read_class_names(folder) or [str(label) for label in range(1 + largest)]
    return ShardIndex(classes, train, val)


def write_index(folder: Path) -> Path:
    """Writes ``folder``/index.json from the tar headers and returns its path. Raises as ``read_index`` does."""
    text = json.dumps(asdict(scan_folder(folder)))
    (folder / FILE_NAME).write_text(text)
    return folder / FILE_NAME


def is_shard_folder(folder: Path) -> bool:
    """Whether a folder holds shards, and not pictures: an index or tar files of a split, and no folders of classes.

    Beside folders of classes, tar files count as shards only where there is an index. Raises ValueError for a tar file
    of two splits, or of none beside others.
    """
    indexed = (folder / FILE_NAME).is_file()
    if any(_has_class_folders(split_folder(folder, split)) for split in ("train", "val")):
        return indexed and any(is_tar(path.name) and splits_named(path.name) for path in folder.iterdir())
    return indexed or any(tar_files_of_split(folder, split) for split in ("train", "val"))


def _has_class_folders(folder: Path | None) -> bool:
    return folder is not None and any(not is_litter(each.name) and each.is_dir() for each in folder.iterdir())
