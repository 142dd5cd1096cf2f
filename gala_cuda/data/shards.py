"""WebDataset's tar shards, KEY.jpg beside KEY.cls with a whole number, read in any order, from disk or over HTTP.

The place of every image in its shard is known from an index, so shards are shuffled, split over ranks and resumed as
single files are, which a stream is not. On disk the index is read from the tar headers, or from index.json if there is
one, as ``gala-cuda index`` writes it. Over HTTP there must be one beside the shards; images are then fetched by byte
range, many at a time, and nothing is kept on disk.
"""

import json
import os
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Protocol
from urllib.error import HTTPError
from urllib.parse import quote
from urllib.request import Request, urlopen

import numpy as np
import torch

from .errors import UnreachableError
from .folders import class_names
from .picture_files import check_size
from .tars import Shard, has_shards, in_folder, scan_tar

INDEX = "index.json"
TRIES, PAUSE, PATIENCE = 5, 0.5, 30.0  # of a request; seconds before the second, doubling; seconds for one
TOGETHER = 16  # requests


@dataclass(frozen=True)
class Index:
    """The shards to train on and held out."""

    classes: list[str]
    train: list[Shard]
    val: list[Shard]

    def __post_init__(self) -> None:
        twice = sorted({shard.file for shard in self.train} & {shard.file for shard in self.val})
        if twice:
            raise ValueError(f"{twice[0]} is in both splits, train and val; expected it in one of them")
        for split in ("train", "val"):
            shards = getattr(self, split)
            if not any(shard.names for shard in shards):
                raise FileNotFoundError(f"there are no images in shards to {split}")
            for shard in shards:
                for name, label in zip(shard.names, shard.labels, strict=True):
                    if not 0 <= label < len(self.classes):
                        raise ValueError(
                            f"{shard.file}: {name} is of class {label}; expected 0 to {len(self.classes) - 1}"
                        )


class ShardFiles:
    """The images of shards, numbered in the order of the index."""

    def __init__(self, store: "Store", shards: list[Shard]) -> None:
        self._store = store
        self._shards = [shard.file for shard in shards]
        self._shard = np.repeat(np.arange(len(shards)), [len(shard.names) for shard in shards])
        self._names = np.array([os.fsencode(name) for shard in shards for name in shard.names])
        self._offsets = np.array([offset for shard in shards for offset in shard.offsets])
        self._sizes = np.array([size for shard in shards for size in shard.sizes])
        self.labels = torch.tensor([label for shard in shards for label in shard.labels])
        self._pool: ThreadPoolExecutor | None = None
        self._coming: dict[int, Future[bytes]] = {}

    def name(self, index: int) -> str:
        return f"{self._shards[self._shard[index]]}/{os.fsdecode(self._names[index])}"

    def load(self, index: int) -> bytes:
        coming = self._coming.pop(index, None)
        return coming.result() if coming else self._read(index)

    def prepare(self, indices: list[int]) -> None:
        if not isinstance(self._store, Server):
            return
        self._pool = self._pool or ThreadPoolExecutor(TOGETHER)  # here: threads do not survive a fork
        self._coming = {index: self._pool.submit(self._read, index) for index in indices}

    def _read(self, index: int) -> bytes:
        shard, size = self._shards[self._shard[index]], int(self._sizes[index])
        check_size(size)
        return self._store.read(shard, int(self._offsets[index]), size)


class Store(Protocol):
    """Where shards lie."""

    def read(self, file: str, offset: int, size: int) -> bytes: ...


@dataclass(frozen=True)
class Disk:
    """Files below ``folder``."""

    folder: Path

    def read(self, file: str, offset: int, size: int) -> bytes:
        with (self.folder / file).open("rb", buffering=0) as shard:
            shard.seek(offset)
            return shard.read(size)


@dataclass(frozen=True)
class Server:
    """Files below ``address``, of a server that gives byte ranges."""

    address: str  # ends with a slash

    def read(self, file: str, offset: int, size: int) -> bytes:
        return self.get(file, {"Range": f"bytes={offset}-{offset + size - 1}"}, 206)

    def get(self, file: str, headers: dict[str, str], expected: int) -> bytes:
        """Raises UnreachableError: refused, or failed ``TRIES`` times."""
        request = Request(self.address + quote(file), headers=headers)
        for attempt in range(TRIES):
            if attempt:
                time.sleep(PAUSE * 2 ** (attempt - 1))
            try:
                with urlopen(request, timeout=PATIENCE) as answer:
                    if answer.status != expected:
                        raise UnreachableError(f"{request.full_url} answered {answer.status}; expected {expected}")
                    return answer.read()
            except HTTPError as error:
                reason = f"answered {error.code}, {error.reason}"
                if error.code < 500 and error.code not in (408, 429):
                    break
            except (OSError, HTTPException) as error:
                reason = f"failed {TRIES} times: {error}"
        raise UnreachableError(f"{request.full_url} {reason}")


def open_shards(source: str) -> tuple[ShardFiles, ShardFiles, tuple[str, ...]]:
    """(train, val, classes) of a folder with shards, or of the http(s) address of an index.

    Raises:
        FileNotFoundError: no index there, or no images of a split.
        ValueError: a shard is damaged, or has changed since the index was written.
    """
    store: Store
    if is_address(source):
        store = Server(source.removesuffix(INDEX).rstrip("/") + "/")
        try:
            index = _parse(store.get(INDEX, {}, 200), store.address + INDEX)
        except UnreachableError as error:
            raise FileNotFoundError(str(error)) from error
    else:
        folder = Path(source)
        store = Disk(folder)
        listed = folder / INDEX
        index = _parse(listed.read_bytes(), str(listed)) if listed.is_file() else scan(folder)
        _check_sizes(folder, index)
    return ShardFiles(store, index.train), ShardFiles(store, index.val), tuple(index.classes)


def is_address(source: str) -> bool:
    return source.startswith(("http://", "https://"))


def are_in(folder: Path) -> bool:
    """Whether a folder is one of shards, and not of pictures. Raises ValueError as :func:`open_shards` does."""
    return has_shards(folder, (folder / INDEX).is_file())


def scan(folder: Path) -> Index:
    """The index of a folder, from the tar headers. Errors as of :func:`open_shards`."""
    for split in ("train", "val"):
        if not in_folder(folder, split):
            raise FileNotFoundError(
                f"there are no tar shards of the split {split} in {folder}; expected {split}/*.tar, or *.tar with "
                f"{split} as a word of their names"
            )
    train, val = ([scan_tar(file, folder) for file in in_folder(folder, split)] for split in ("train", "val"))
    largest = max((max(shard.labels, default=-1) for shard in train + val), default=-1)
    classes = class_names(folder) or [str(label) for label in range(1 + largest)]
    return Index(classes, train, val)


def write_index(folder: Path) -> Path:
    """Writes and returns ``folder``/index.json. Errors as of :func:`open_shards`."""
    index = json.dumps(asdict(scan(folder)))
    (folder / INDEX).write_text(index)
    return folder / INDEX


def _check_sizes(folder: Path, index: Index) -> None:
    for shard in index.train + index.val:
        size = (folder / shard.file).stat().st_size
        if size != shard.bytes:
            raise ValueError(
                f"{folder / shard.file} has {size} bytes, and {shard.bytes} in {INDEX}; write {INDEX} anew"
            )


def _parse(text: bytes, where: str) -> Index:
    try:
        index = json.loads(text)
        return Index(index["classes"], *([Shard(**shard) for shard in index[split]] for split in ("train", "val")))
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"{where} is no index of shards: {error}") from error
