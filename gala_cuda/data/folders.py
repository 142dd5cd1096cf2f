"""What a folder holds: its files but what systems and editors leave behind, and the split that each is of."""

import os
import re
import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path

# The words that name a split, as the whole name of a folder or as a word of a file's name.
SPLITS = {"train": ("train", "training"), "val": ("val", "valid", "validation"), "test": ("test", "testing")}
CLASSES = "classes.txt"  # names, one a line; without it they are the numbers
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

    Links are followed. A link to nothing is a file, which whoever reads it will say; pipes and devices are none.
    """
    found = list[tuple[str, list[str]]]()
    unread = [(os.fspath(folder), {os.path.realpath(folder)})]
    while unread:
        place, above = unread.pop()
        names = []
        with os.scandir(place) as entries:
            for entry in entries:
                if is_litter(entry.name):
                    continue
                if entry.is_dir():
                    real = os.path.realpath(entry.path)
                    if real not in above:  # a link to a folder that it lies in leads round and round
                        unread.append((entry.path, above | {real}))
                elif entry.is_file() or not os.path.exists(entry.path):
                    names.append(entry.name)
        found.append((place, sorted(names)))
    for place, names in sorted(found):
        yield from (os.path.join(place, name) for name in names)


def canonical(split: str) -> str:
    """The name of a split in ``SPLITS`` by any of its words; another name as it is."""
    return next((name for name, words in SPLITS.items() if split.lower() in words), split)


def splits_named(name: str, *more: str) -> set[str]:
    """The splits, of ``SPLITS`` and ``more``, that are words of a file's name.

    What is no letter, of any alphabet, ends a word; of ``more`` only what is neither letter nor digit.
    """
    parts = re.findall(r"[^\W_]+", unicodedata.normalize("NFC", name).lower())
    words = {canonical(word) for part in parts for word in re.findall(r"[^\W\d]+", part)}
    return words & SPLITS.keys() | set(parts) & set(more)


def split_folder(folder: Path, split: str) -> Path | None:
    """The folder in ``folder`` that is named by a split, None where there is none. Raises ValueError for several."""
    if not folder.is_dir():
        return None
    found = sorted(each for each in folder.iterdir() if canonical(each.name) == split and each.is_dir())
    if len(found) > 1:
        names = " and ".join(each.name for each in found)
        raise ValueError(f"{folder} has {names}, both of the split {split}; expected one of them")
    return found[0] if found else None


def files_of_split(folder: Path, split: str, counts: Callable[[str], bool]) -> list[Path]:
    """Those files directly in ``folder`` that have ``split`` as a word of their names, sorted.

    ``counts`` says of a name whether the file has to be of a split at all.

    Raises:
        ValueError: a file that counts is of two splits, or of none although others are of some.
    """
    if not folder.is_dir():
        return []
    named = {
        path: splits_named(path.name, split) for path in sorted(folder.iterdir())
        if not is_litter(path.name) and path.is_file()
    }  # fmt: skip
    for path, splits in named.items():
        if len(splits) > 1 and counts(path.name):
            raise ValueError(f"{path} has {' and '.join(sorted(splits))} in its name; expected one split")
    inside = any(split_folder(folder, each) for each in SPLITS)
    if inside or any(splits for path, splits in named.items() if counts(path.name)):
        for path, splits in named.items():
            if not splits and counts(path.name):
                raise ValueError(
                    f"{path} is of no split; expected one of {', '.join(SPLITS)} as a word of its name, or its folder"
                )
    return [path for path, splits in named.items() if splits == {split}]


def class_names(folder: Path) -> list[str] | None:
    """The lines of ``folder``/classes.txt; None where there is no such file."""
    named = folder / CLASSES
    if not named.is_file():
        return None
    return named.read_text("utf-8-sig", "surrogateescape").removesuffix("\n").split("\n")
