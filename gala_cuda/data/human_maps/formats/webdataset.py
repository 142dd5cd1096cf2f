"""Tar shards of the WebDataset layout: KEY.jpg or .png, KEY.heatmap.npy or .jpg or .png, KEY.cls, perhaps KEY.json.

The members of a key lie side by side, so that a record is one stretch of the file. There is no map where there is no
heatmap. :mod:`gala_cuda.data.shards` reads the same files without their maps.
"""

import io
import json
import os
import re
import tarfile
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path, PurePosixPath
from typing import BinaryIO, NamedTuple

import numpy as np

from ...errors import UnreadableError
from ...folders import is_litter
from ..record import Record, checked_label, checked_numbers
from . import npz
from .entry import UNKNOWN, Entry

NAMES = re.compile(r"\.(tar|tgz|tbz2?|txz|tzst)$")
PICTURES = ("jpg", "jpeg", "png")
SMALL = 4096  # bytes of a .cls at most
DAMAGED = None  # the key from where on the archive cannot be read


class _Part(NamedTuple):
    """A member: where its header starts and its data ends, padded; where its data lies."""

    key: str | None  # empty of what is no file of a record
    kind: str
    start: int
    stop: int
    data: int
    size: int


def recognises(head: bytes) -> bool:
    return head[257:262] == b"ustar"


def scan(file: Path) -> list[Entry]:
    """A record for each key; what follows a damaged header is one more, which cannot be read."""
    entries = []
    with file.open("rb") as opened:
        size = os.fstat(opened.fileno()).st_size
        for key, group in groupby(_parts(opened), lambda part: part.key):
            parts = list(group)
            start, stop = parts[0].start, parts[-1].stop
            if key is DAMAGED:
                entries.append(Entry(start, min(size - start, tarfile.BLOCKSIZE), UNKNOWN))
            elif key:
                entries.append(Entry(start, stop - start, _label(opened, parts)))
    return entries


def parse(data: bytes) -> Record:
    """The record of a stretch of an archive. Raises UnreadableError."""
    found = {}
    for part in _parts(io.BytesIO(data)):
        if part.key is not DAMAGED:
            found[part.kind] = data[part.data : part.data + part.size]
        elif part.start < len(data) or not data:
            raise UnreadableError("the archive is damaged or cut off, and the rest of it is lost")
    images = [found[kind] for kind in PICTURES if kind in found]
    for there, what in ((bool(images), f"image ({', '.join(PICTURES)})"), ("cls" in found, "label (cls)")):
        if not there:
            raise UnreadableError(
                f"the key has no {what} beside its {', '.join(sorted(found))}; expected all members of a key side by "
                "side, as in an archive of sorted names (tar --sort=name)"
            )
    return Record(images[0], _heatmap(found), _class(found.get("cls")), _numbers(found.get("json", b"{}")))


def key_of(data: bytes) -> str:
    """The key of a record."""
    return next(_parts(io.BytesIO(data))).key or ""


def _parts(file: BinaryIO) -> Iterator[_Part]:
    """The members, with one of the key ``DAMAGED`` at the end where no end of an archive is."""
    at, size = 0, file.seek(0, os.SEEK_END)
    file.seek(0)
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            while member := tar.next():
                stop = min(tar.offset, size)  # the last member may lack its padding
                if stop <= at or (member.isreg() and not at < member.offset_data <= stop - member.size):
                    raise tarfile.ReadError("a member that lies elsewhere")
                path = PurePosixPath(member.name)
                stem, _, kind = path.name.partition(".")
                shown = member.isreg() and not any(map(is_litter, path.parts))
                key = str(path.parent / stem) if shown else ""
                yield _Part(key, kind.lower(), at, stop, member.offset_data, member.size)
                at = stop
        file.seek(at)
        whole = file.read(tarfile.BLOCKSIZE) == bytes(tarfile.BLOCKSIZE)
    except (tarfile.TarError, *npz.BROKEN):
        whole = False
    if not whole:
        yield _Part(DAMAGED, "", at, at, at, 0)


def _label(file: BinaryIO, parts: list[_Part]) -> int:
    for part in parts:
        if part.kind == "cls":
            file.seek(part.data)
            try:
                return _class(file.read(min(part.size, SMALL)))
            except UnreadableError:  # for what it is, reading it says
                return UNKNOWN
    return UNKNOWN


def _class(data: bytes | None) -> int:
    try:
        return checked_label([] if data is None else int(data[:SMALL]))
    except (ValueError, OverflowError) as error:
        raise UnreadableError(f"the label is {data!r:.40}; expected a whole number") from error


def _heatmap(found: dict[str, bytes]) -> bytes | np.ndarray | None:
    if "heatmap.npy" in found:
        try:
            return npz.array(found["heatmap.npy"])
        except npz.BROKEN as error:
            raise UnreadableError(f"the map is no readable NPY file: {error}") from error
    return next((found[f"heatmap.{kind}"] for kind in PICTURES if f"heatmap.{kind}" in found), None)


def _numbers(data: bytes) -> dict[str, list[int]]:
    try:
        given = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise UnreadableError(f"the .json of the key cannot be read: {error}") from error
    if not isinstance(given, dict):
        raise UnreadableError("the .json of the key is no object")
    return checked_numbers(given)
