"""The files of a data set's folder: hidden ones are passed over, and each belongs to a split by its name or folder."""

import os
import re
import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path

# The words that name a split, as the whole name of a folder or as a word of a file's name.
SPLITS = {"train": ("train", "training"), "val": ("val", "valid", "validation"), "test": ("test", "testing")}
CLASSES = "classes.txt"  # names of the classes, one per line; without this file the names are numbers
# Left by Windows, macOS, Synology's DSM and Linux's file systems. All else that is hidden starts with a dot.
_LITTER = {
    "thumbs.db", "ehthumbs.db", "desktop.ini", "$recycle.bin", "system volume information", "__macosx", "@eadir",
    "#recycle", "lost+found",
}  # fmt: skip


def is_litter(name: str) -> bool:
    """Whether a file, a folder or a member of an archive is hidden, or left there by an operating system."""
    return (name.startswith(".") and name not in (".", "..")) or name.lower() in _LITTER


def files_below(folder: Path) -> Iterator[str]:
    """The paths of all files in ``folder`` and below but litter, in the order of torchvision's ImageFolder.

    Links are followed. A broken link counts as a file, so that reading it says what is wrong; pipes and devices do not
    count.
    """
    found = list[tuple[str, list[str]]]()
    unread = [(os.fspath(folder), {os.path.realpath(folder)})]
    while unread:
        path, above = unread.pop()
        names = []
        with os.scandir(path) as inside:
            for each in inside:
                if is_litter(each.name):
                    continue
                if each.is_dir():
                    real = os.path.realpath(each.path)
                    if real not in above:  # a link to a folder that it lies in would be followed for ever
                        unread.append((each.path, above | {real}))
                elif each.is_file() or not os.path.exists(each.path):
                    names.append(each.name)
        found.append((path, sorted(names)))
    for path, names in sorted(found):
        yield from (os.path.join(path, name) for name in names)


def canonical_split(split: str) -> str:
    """The name of a split in ``SPLITS`` for any of its words; another name unchanged."""
    return next((name for name, words in SPLITS.items() if split.lower() in words), split)


def splits_named(name: str, *more: str) -> set[str]:
    """The splits, of ``SPLITS`` and ``more``, that are words of a file's name.

    Anything but a letter of some alphabet ends a word; for ``more``, anything but a letter or a digit.
    """
    parts = re.findall(r"[^\W_]+", unicodedata.normalize("NFC", name).lower())
    words = {canonical_split(word) for part in parts for word in re.findall(r"[^\W\d]+", part)}
    return words & SPLITS.keys() | set(parts) & set(more)


def split_folder(folder: Path, split: str) -> Path | None:
    """The folder in ``folder`` that is named by a split, None where there is none. Raises ValueError for several."""
    if not folder.is_dir():
        return None
    found = sorted(each for each in folder.iterdir() if canonical_split(each.name) == split and each.is_dir())
    if len(found) > 1:
        names = " and ".join(each.name for each in found)
        raise ValueError(f"{folder} has {names}, both of the split {split}; expected one of them")
    return found[0] if found else None


def files_of_split(folder: Path, split: str, needs_split: Callable[[str], bool]) -> list[Path]:
    """Those files directly in ``folder`` that have ``split`` as a word of their names, sorted.

    ``needs_split`` says of a name whether such a file has to belong to a split at all.

    Raises:
        ValueError: a file that needs a split names two, or none although others do.
    """
    if not folder.is_dir():
        return []
    named = {
        path: splits_named(path.name, split) for path in sorted(folder.iterdir())
        if not is_litter(path.name) and path.is_file()
    }  # fmt: skip
    for path, splits in named.items():
        if len(splits) > 1 and needs_split(path.name):
            raise ValueError(f"{path} has {' and '.join(sorted(splits))} in its name; expected one split")
    has_split_folder = any(split_folder(folder, each) for each in SPLITS)
    if has_split_folder or any(splits for path, splits in named.items() if needs_split(path.name)):
        for path, splits in named.items():
            if not splits and needs_split(path.name):
                raise ValueError(
                    f"{path} is of no split; expected one of {', '.join(SPLITS)} as a word of its name, or its folder"
                )
    return [path for path, splits in named.items() if splits == {split}]


def read_class_names(folder: Path) -> list[str] | None:
    """The lines of ``folder``/classes.txt; None where there is no such file."""
    file = folder / CLASSES
    if not file.is_file():
        return None
    return file.read_text("utf-8-sig", "surrogateescape").removesuffix("\n").split("\n")
