"""Converts ClickMe's files to another of their formats."""

import os
import shutil
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

from ..errors import UnreadableError
from ..folders import CLASSES
from .formats.writer import Writer
from .record import decode_record
from .split_reader import SplitReader, open_splits

Track = Callable[[SplitReader, str], Iterable[int]]  # the numbers of a split's samples, while it shows the progress
LeftOut = list[tuple[str, str]]  # (name, reason) of records


def convert(source: Path, target: Path, writer: Writer, per_shard: int, track: Track) -> tuple[int, LeftOut]:
    """Writes all splits of the folder ``source`` to the new folder ``target``: whole, or nothing at all.

    Returns how many samples were written, and which were left out because they cannot be read or written.

    Raises:
        FileNotFoundError: there are no ClickMe files in ``source``.
        FileExistsError: ``target`` has something in it, or lies in ``source``.
        OSError: the disk is full, ...
    """
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise FileExistsError(f"{target} is there already; expected a new folder, or an empty one")
    if target.resolve().is_relative_to(source.resolve()):
        raise FileExistsError(f"{target} lies in {source}; expected a folder elsewhere")
    splits = open_splits(source)
    target.parent.mkdir(parents=True, exist_ok=True)
    written, left_out = 0, LeftOut()
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}-") as draft:
        folder = Path(draft, "whole")
        folder.mkdir()
        for split, samples in splits.items():
            count, without = _write_split(folder, split, samples, writer, per_shard, track)
            written, left_out = written + count, left_out + without
        if (source / CLASSES).is_file():
            shutil.copyfile(source / CLASSES, folder / CLASSES)
        os.replace(folder, target)
    return written, left_out


def _write_split(
    folder: Path, split: str, samples: SplitReader, writer: Writer, per_shard: int, track: Track
) -> tuple[int, LeftOut]:
    files, keys, left_out = list[Path](), set[str](), LeftOut()
    for index in track(samples, split):
        try:
            record = samples.record(index)
            decode_record(record)  # a record that cannot be decoded is not copied
            key = _unique(samples.key(index).removeprefix(f"{split}/"), keys)
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


def _unique(key: str, keys: set[str]) -> str:
    """``key``, with a number after it where it is among ``keys`` already."""
    return next(name for number in range(len(keys) + 1) if (name := f"{key}-{number}" if number else key) not in keys)
