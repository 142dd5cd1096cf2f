"""Files of pictures: which formats are read, and the files in folders of classes."""

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageFile, features

from .errors import UnreadableError
from .folders import files_below, is_litter

MAX_FILE = 1 << 30  # bytes
KINDS = 5  # of files that are left out, in a message
_NEEDED = {"AVIF": "avif", "WEBP": "webp", "JPEG2000": "jpg_2000"}  # what Pillow may have been built without
_UNREAD = ("MPEG", "IPTC", "EPS")  # told, not read; no picture; by an outside program, Ghostscript


def _readable(name: str) -> bool:
    opener = Image.OPEN[name][0]
    is_stub = isinstance(opener, type) and issubclass(opener, ImageFile.StubImageFile)
    return not is_stub and name not in _UNREAD and (name not in _NEEDED or bool(features.check(_NEEDED[name])))


Image.init()
FORMATS = [name for name in Image.ID if _readable(name)]
EXTENSIONS = {ending for ending, name in Image.registered_extensions().items() if name in FORMATS} | {".mpo"}


class Folder:
    """The pictures below FOLDER/CLASS/, labelled by their class's place in ``classes``.

    Files and folders in it are taken and sorted as torchvision's ImageFolder does, but for what is hidden.

    Attributes:
        left_out: paths of the other files: not named as pictures, or beside the folders of classes.
    """

    def __init__(self, folder: Path) -> None:
        """Raises FileNotFoundError where there are no classes, or some have no pictures."""
        with os.scandir(folder) as entries:
            shown = [(each.name, each.is_dir()) for each in entries if not is_litter(each.name)]
        self.classes = sorted(name for name, is_folder in shown if is_folder)
        self.left_out = sorted(os.path.join(folder, name) for name, is_folder in shown if not is_folder)
        if not self.classes:
            raise FileNotFoundError(f"there are no folders of classes in {folder}; expected {folder}/CLASS/*")
        files, labels = list[bytes](), list[int]()
        for label, name in enumerate(self.classes):
            for path in files_below(folder / name):
                if is_picture(path):
                    files.append(os.fsencode(path))
                    labels.append(label)
                else:
                    self.left_out.append(path)
        empty = sorted(set(range(len(self.classes))) - set(labels))
        if empty:
            names = ", ".join(self.classes[label] for label in empty)
            reason = f" ({left})" if (left := left_out(self.left_out)) else ""
            raise FileNotFoundError(f"{folder} has classes without pictures: {names}; expected some of each{reason}")
        self._files = np.array(files)  # one block: workers share its memory
        self.labels = torch.tensor(labels)

    def name(self, index: int) -> str:
        return os.fsdecode(self._files[index])

    def load(self, index: int) -> bytes:
        return read_file(self.name(index))

    def prepare(self, indices: list[int]) -> None:
        pass


def is_picture(path: str) -> bool:
    """Whether a file's name ends as those of a format that is read."""
    return os.path.splitext(path)[1].lower() in EXTENSIONS


def left_out(paths: Sequence[str]) -> str:
    """A line about files that are left out: how many of which kind, and one by name; "" of none."""
    if not paths:
        return ""
    kinds = Counter(os.path.splitext(path)[1].lower() or "no suffix" for path in paths).most_common()
    counted = ", ".join(f"{count} {kind}" for kind, count in kinds[:KINDS]) + ", ..." * (len(kinds) > KINDS)
    files = f"{len(paths)} file{'s' * (len(paths) > 1)}"
    return f"left out: {files} ({counted}), not named as pictures or in no class's folder, such as {paths[0]}"


def read_file(path: str) -> bytes:
    """Raises OSError, and UnreadableError where the file is larger than ``MAX_FILE``."""
    with open(path, "rb") as file:
        check_size(os.fstat(file.fileno()).st_size)
        return file.read()


def check_size(size: int) -> None:
    """Raises UnreadableError where a file of ``size`` bytes is larger than ``MAX_FILE``."""
    if size > MAX_FILE:
        raise UnreadableError(f"the file has {size} bytes; expected at most {MAX_FILE}")
