"""ClickMe's files written anew in another of their formats."""

import os
import shutil
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

from ..errors import UnreadableError
from ..folders import CLASSES
from .encode import Kind
from .record import decode
from .samples import Samples, open_splits

Track = Callable[[Samples, str], Iterable[int]]  # the samples' numbers, showing how far a loop over them is
Left = list[tuple[str, str]]  # (name, why) of records


def convert(source: Path, target: Path, kind: Kind, per_shard: int, track: Track) -> tuple[int, Left]:
    """Writes all splits of the folder ``source`` to the new folder ``target``: whole, or nothing at all.

    Returns how many samples were written, and which were left out because they cannot be read, or not written so.

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
    written, left = 0, Left()
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}-") as draft:
        folder = Path(draft, "whole")
        folder.mkdir()
        for split, samples in splits.items():
            count, without = _write(folder, split, samples, kind, per_shard, track)
            written, left = written + count, left + without
        if (source / CLASSES).is_file():
            shutil.copyfile(source / CLASSES, folder / CLASSES)
        os.replace(folder, target)
    return written, left


def _write(folder: Path, split: str, samples: Samples, kind: Kind, per_shard: int, track: Track) -> tuple[int, Left]:
    files, keys, left = list[Path](), set[str](), Left()
    for index in track(samples, split):
        try:
            record = samples.record(index)
            decode(record)  # what cannot be read is not written
            key = _new(samples.key(index).removeprefix(f"{split}/"), keys)
            data = kind.encode(key, record)
        except UnreadableError as error:
            left.append((samples.name(index), str(error)))
            continue
        shard = f"{split}-{len(keys) // per_shard:06d}" if kind.shared else f"{split}/{key}"
        path = folder / f"{shard}{kind.suffix}"
        if path not in files[-1:]:
            path.parent.mkdir(parents=True, exist_ok=True)
            files.append(path)
        with path.open("ab") as file:
            file.write(data)
        keys.add(key)
    for path in files if kind.end else ():
        with path.open("ab") as file:
            file.write(kind.end)
    return len(keys), left


def _new(key: str, keys: set[str]) -> str:
    """``key``, with a number where another sample has it."""
    return next(name for number in range(len(keys) + 1) if (name := f"{key}-{number}" if number else key) not in keys)
