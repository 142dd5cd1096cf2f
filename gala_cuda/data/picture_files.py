"""Which files are pictures that can be read, by their names, and how large a file may be."""

import os
from collections import Counter
from collections.abc import Sequence

from PIL import Image, ImageFile, features

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
