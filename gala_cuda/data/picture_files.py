"""Which files are pictures that can be read, by their names, how large a file may be, and lists of such files."""

import copy
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageFile, features
from torch import Tensor

from .errors import UnreadableError

MAX_FILE = 1 << 30  # bytes
MAX_SUFFIXES = 5  # that a message about left-out files names
_NEEDED = {"AVIF": "avif", "WEBP": "webp", "JPEG2000": "jpg_2000"}  # what Pillow may have been built without
# Pillow opens these too. It recognises MPEG without reading it, IPTC is no picture, EPS needs a program, Ghostscript.
_UNREAD = ("MPEG", "IPTC", "EPS")


def _readable(name: str) -> bool:
    opener = Image.OPEN[name][0]
    is_stub = isinstance(opener, type) and issubclass(opener, ImageFile.StubImageFile)
    return not is_stub and name not in _UNREAD and (name not in _NEEDED or bool(features.check(_NEEDED[name])))


Image.init()
FORMATS = [name for name in Image.ID if _readable(name)]
EXTENSIONS = {ending for ending, name in Image.registered_extensions().items() if name in FORMATS} | {".mpo"}


def is_picture(path: str) -> bool:
    """Whether a file's name ends as those of a format that is read."""
    return os.path.splitext(path)[1].lower() in EXTENSIONS


def describe_left_out(paths: Sequence[str]) -> str:
    """A line about files that are left out: how many with each suffix, and one by name; "" where there are none."""
    if not paths:
        return ""
    suffixes = Counter(os.path.splitext(path)[1].lower() or "no suffix" for path in paths).most_common()
    counted = ", ".join(f"{count} {suffix}" for suffix, count in suffixes[:MAX_SUFFIXES])
    counted += ", ..." * (len(suffixes) > MAX_SUFFIXES)
    files = f"{len(paths)} file{'s' * (len(paths) > 1)}"
    return f"left out: {files} ({counted}), not named as pictures or in no class's folder, such as {paths[0]}"


def read_file(path: str) -> bytes:
    """The content of a file. Raises OSError, and UnreadableError where the file is larger than ``MAX_FILE``."""
    with open(path, "rb") as file:
        check_size(os.fstat(file.fileno()).st_size)
        return file.read()


def check_size(size: int) -> None:
    """Raises UnreadableError where a file of ``size`` bytes is larger than ``MAX_FILE``."""
    if size > MAX_FILE:
        raise UnreadableError(f"the file has {size} bytes; expected at most {MAX_FILE}")


class ListedPictures:
    """Picture files of a list, in and below a folder.

    Attributes:
        folder: of the pictures.
        classes: their names.
        paths: [n] of bytes: one block, whose memory the worker processes share.
        labels: [n] int64 or, of any number each, [n, classes] bool.
    """

    def __init__(self, folder: Path, classes: Sequence[str], paths: np.ndarray, labels: Tensor) -> None:
        self.folder, self.classes, self.paths, self.labels = folder, classes, paths, labels

    def take(self, chosen: Tensor) -> "ListedPictures":
        """Those of the pictures for which ``chosen`` [n] bool is True."""
        taken = copy.copy(self)
        taken.paths, taken.labels = self.paths[chosen.numpy()], self.labels[chosen]
        return taken

    def name(self, index: int) -> str:
        return os.fsdecode(self.paths[index])

    def below(self, index: int) -> str:
        """The path of a picture in the folder."""
        return os.path.relpath(self.name(index), self.folder)

    def load(self, index: int) -> bytes:
        return read_file(self.name(index))

    def prepare(self, indices: list[int]) -> None:
        pass
