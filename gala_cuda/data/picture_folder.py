"""Pictures in one folder per class, as ImageNet is laid out: FOLDER/train/CLASS/* and FOLDER/val/CLASS/*."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from .folders import files_below, is_litter, split_folder
from .hold_out import hold_out
from .picture_files import ListedPictures, describe_left_out, is_picture


class PictureFolder(ListedPictures):
    """The pictures below FOLDER/CLASS/, each labelled by the position of its class in ``classes``.

    Files and folders in it are taken and sorted as torchvision's ImageFolder does; hidden ones are passed over.

    Attributes:
        left_out: paths of the other files: not named as pictures, or beside the folders of classes.
    """

    def __init__(self, folder: Path) -> None:
        """Raises FileNotFoundError where there are no classes, or some have no pictures."""
        with os.scandir(folder) as inside:
            visible = [(each.name, each.is_dir()) for each in inside if not is_litter(each.name)]
        classes = sorted(name for name, is_folder in visible if is_folder)
        self.left_out = sorted(os.path.join(folder, name) for name, is_folder in visible if not is_folder)
        if not classes:
            raise FileNotFoundError(f"there are no folders of classes in {folder}; expected {folder}/CLASS/*")
        files, labels = list[bytes](), list[int]()
        for label, name in enumerate(classes):
            for path in files_below(folder / name):
                if is_picture(path):
                    files.append(os.fsencode(path))
                    labels.append(label)
                else:
                    self.left_out.append(path)
        empty = sorted(set(range(len(classes))) - set(labels))
        if empty:
            names = ", ".join(classes[label] for label in empty)
            reason = f" ({line})" if (line := describe_left_out(self.left_out)) else ""
            raise FileNotFoundError(f"{folder} has classes without pictures: {names}; expected some of each{reason}")
        super().__init__(folder, classes, np.array(files), torch.tensor(labels))


def open_picture_folder(
    path: Path, tell: Callable[[str], object] = lambda line: None, val_share: float | None = None, seed: int = 0
) -> tuple[ListedPictures, ListedPictures, tuple[str, ...]]:
    """(train, val, names of the classes): the pictures ``path``/train/CLASS/* and ``path``/val/CLASS/*.

    With ``val_share`` there is no folder val: ``seed`` decides which of the pictures ``path``/train/CLASS/*, or
    ``path``/CLASS/*, are held out, as ``hold_out`` says.

    ``tell`` is called with a line about the files that are left out, if there are any.

    Raises:
        FileNotFoundError: a folder or its pictures are missing.
        ValueError: train and val have different classes, there is a folder val beside ``val_share``, or a class has too
            few pictures for it.
    """
    folders = [split_folder(path, split) for split in ("train", "val")]
    if val_share is not None:
        if folders[1] is not None:
            raise ValueError(f"val_share is {val_share}, and there is a folder {folders[1]}; expected one of them")
        if not path.is_dir():
            raise FileNotFoundError(f"there is no folder {path}; expected {path}/CLASS/*")
        pictures = PictureFolder(folders[0] or path)
        if line := describe_left_out(pictures.left_out):
            tell(line)
        held_out = hold_out(pictures, val_share, seed)
        return pictures.take(~held_out), pictures.take(held_out), tuple(pictures.classes)
    for folder, split in zip(folders, ("train", "val"), strict=True):
        if folder is None:
            missing = path / split if path.is_dir() else path
            raise FileNotFoundError(
                f"there is no folder {missing}; expected train/CLASS/* and val/CLASS/*, or tar shards, in {path}, "
                "or val_share"
            )
    train, val = (PictureFolder(folder) for folder in folders if folder is not None)
    if train.classes != val.classes:
        only = [
            f"{folder}: {', '.join(sorted(set(these.classes) - set(those.classes)))}"
            for folder, these, those in zip(folders, (train, val), (val, train), strict=True)
            if set(these.classes) - set(those.classes)
        ]
        raise ValueError(f"{folders[0]} and {folders[1]} have different classes; only in {'; only in '.join(only)}")
    if line := describe_left_out([*train.left_out, *val.left_out]):
        tell(line)
    return train, val, tuple(train.classes)
