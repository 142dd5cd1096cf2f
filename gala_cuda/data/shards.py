"""Pictures in WebDataset's tar shards, KEY.jpg beside KEY.cls with a class number, from disk or over HTTP.

An index says where every image lies in its shard. So images are read in any order, and shards are shuffled, split over
ranks and resumed just as single files are, which is not possible with a stream. Over HTTP the index must lie beside the
shards; images are then fetched as byte ranges, many at a time, and nothing is kept on disk.
"""

import os
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Protocol
from urllib.error import HTTPError
from urllib.parse import quote
from urllib.request import Request, urlopen

import numpy as np
import torch

from .errors import UnreachableError
from .picture_files import check_size
from .shard_index import FILE_NAME, parse_index, read_index
from .tar_files import Shard

TRIES = 5  # of a request
PAUSE = 0.5  # seconds before the second try; it doubles with every further one
TIMEOUT = 30.0  # seconds for a try
CONCURRENT = 16  # requests at a time


class Store(Protocol):
    """Where shards lie."""

    def read(self, file: str, offset: int, size: int) -> bytes:
        """``size`` bytes of a shard from ``offset``. Raises OSError, UnreachableError."""


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
    """Files below ``address``, of a server that answers requests for byte ranges."""

    address: str  # ends with a slash

    def read(self, file: str, offset: int, size: int) -> bytes:
        return self.get(file, {"Range": f"bytes={offset}-{offset + size - 1}"}, 206)

    def get(self, file: str, headers: dict[str, str], expected: int) -> bytes:
        """The body of an answer with the status ``expected``.

        Raises UnreachableError: the server refused, or failed ``TRIES`` times.
        """
        request = Request(self.address + quote(file), headers=headers)
        for attempt in range(TRIES):
            if attempt:
                time.sleep(PAUSE * 2 ** (attempt - 1))
            try:
                with urlopen(request, timeout=TIMEOUT) as answer:
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


class ShardPictures:
    """The pictures in shards, numbered in the order of the index."""

    def __init__(self, store: Store, shards: list[Shard]) -> None:
        self._store = store
        self._files = [shard.file for shard in shards]
        self._file_of = np.repeat(np.arange(len(shards)), [len(shard.names) for shard in shards])
        self._names = np.array([os.fsencode(name) for shard in shards for name in shard.names])
        self._offsets = np.array([offset for shard in shards for offset in shard.offsets])
        self._sizes = np.array([size for shard in shards for size in shard.sizes])
        self.labels = torch.tensor([label for shard in shards for label in shard.labels])
        self._pool: ThreadPoolExecutor | None = None
        self._requested: dict[int, Future[bytes]] = {}

    def name(self, index: int) -> str:
        return f"{self._files[self._file_of[index]]}/{os.fsdecode(self._names[index])}"

    def load(self, index: int) -> bytes:
        requested = self._requested.pop(index, None)
        return requested.result() if requested else self._read(index)

    def prepare(self, indices: list[int]) -> None:
        if not isinstance(self._store, Server):
            return
        self._pool = self._pool or ThreadPoolExecutor(CONCURRENT)  # made here: threads do not survive a fork
        self._requested = {index: self._pool.submit(self._read, index) for index in indices}

    def _read(self, index: int) -> bytes:
        file, size = self._files[self._file_of[index]], int(self._sizes[index])
        check_size(size)
        return self._store.read(file, int(self._offsets[index]), size)


def open_shards(source: str) -> tuple[ShardPictures, ShardPictures, tuple[str, ...]]:
    """(train, val, names of the classes) of a folder with shards, or of the http(s) address of an index.

    Raises:
        FileNotFoundError: there is no index, or there are no images of a split.
        ValueError: a shard is damaged, or has changed since the index was written.
    """
    store: Store
    if is_address(source):
        store = Server(source.removesuffix(FILE_NAME).rstrip("/") + "/")
        try:
            index = parse_index(store.get(FILE_NAME, {}, 200), store.address + FILE_NAME)
        except UnreachableError as error:
            raise FileNotFoundError(str(error)) from error
    else:
        store = Disk(Path(source))
        index = read_index(store.folder)
    return ShardPictures(store, index.train), ShardPictures(store, index.val), tuple(index.classes)


def is_address(source: str) -> bool:
    """Whether a source of images is the address of shards on a server."""
    return source.startswith(("http://", "https://"))
