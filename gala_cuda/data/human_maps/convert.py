"""Writes ClickMe's files in any of their formats, and converts them to another."""

import os
import shutil
import tempfile
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sized
from contextlib import contextmanager
from itertools import count as numbers_from_0
from pathlib import Path
from typing import Protocol

from ..errors import UnreadableError
from ..folders import CLASSES
from .formats.writer import Writer
from .record import Record, decode_record
from .split_reader import open_splits


class Records(Protocol):
    """What is written as a split; a ``SplitReader`` is one of them."""

    def __len__(self) -> int: ...

    def name(self, index: int) -> str:
        """What messages call the record."""

    def key(self, index: int) -> str:
        """The name to write it under."""

    def record(self, index: int) -> Record:
        """Raises UnreadableError."""


Track = Callable[[Sized, str], Iterable[int]]  # the numbers of a split's samples, while it shows the progress
LeftOut = list[tuple[str, str]]  # (name, reason) of records


def convert(source: Path, target: Path, writer: Writer, per_shard: int, track: Track) -> tuple[int, LeftOut]:
    """Writes all splits of the folder ``source`` to the new folder ``target``: whole, or nothing at all.

    Returns how many samples were written, and which were left out because they cannot be read or written.

    Raises:
        FileNotFoundError: there are no ClickMe files in ``source``.
        FileExistsError: ``target`` has something in it, or lies in ``source``.
        OSError: the disk is full, ...
    """
    check_new(target, source)
    splits = open_splits(source)
    with new_folder(target) as folder:
        written = write_splits(folder, splits, writer, per_shard, track)
        if (source / CLASSES).is_file():
            shutil.copyfile(source / CLASSES, folder / CLASSES)
    return written


def check_new(target: Path, source: Path) -> None:
    """Raises FileExistsError where ``target`` has something in it, or lies in ``source``."""
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise FileExistsError(f"{target} is there already; expected a new folder, or an empty one")
    if target.resolve().is_relative_to(source.resolve()):
        raise FileExistsError(f"{target} lies in {source}; expected a folder elsewhere")


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """A folder to write into, which is ``target`` in the end; nothing is left of it where that is not reached."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}-") as draft:
        folder = Path(draft, "whole")
        folder.mkdir()
        yield folder
        os.replace(folder, target)


def write_splits(
    folder: Path, splits: Mapping[str, Records], writer: Writer, per_shard: int, track: Track
) -> tuple[int, LeftOut]:
    """Writes each split's records into ``folder``: how many, and which cannot be read or written."""
    written, left_out = 0, LeftOut()
    for split, records in splits.items():
        count, without = _write_split(folder, split, records, writer, per_shard, track)
        written, left_out = written + count, left_out + without
    return written, left_out


def _write_split(
    folder: Path, split: str, samples: Records, writer: Writer, per_shard: int, track: Track
) -> tuple[int, LeftOut]:
    files, keys, left_out = list[Path](), set[str](), LeftOut()
    for index in track(samples, split):
        try:
            record = samples.record(index)
            decode_record(record)  # a record that cannot be decoded is not copied
            key = unique_key(samples.key(index).removeprefix(f"{split}/"), keys)
            data = writer.encode(key, record)
        except UnreadableError as error:
            left_out.append((samples.name(index), str(error)))
            continue
        name = f"{split}-{len(keys) // per_shard:06d}" if writer.shared else f"{split}/{key}"
        path = folder / f"{name}{writer.suffix}"
        if path not in files[-1:]:
            path.parent.mkdir(parents=True, exist_ok=True)
            files.append(path)
        with path.open("ab") as file:
            file.write(data)
        keys.add(key)
    for path in files if writer.end else ():
        with path.open("ab") as file:
            file.write(writer.end)
    return len(keys), left_out


def unique_key(key: str, keys: Container[str]) -> str:
    """``key``, with a number after it where it is among ``keys`` already."""
    return next(name for number in numbers_from_0() if (name := f"{key}-{number}" if number else key) not in keys)
