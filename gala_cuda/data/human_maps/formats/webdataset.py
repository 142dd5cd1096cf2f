"""The WebDataset format: tar files of KEY.jpg or .png, KEY.heatmap.npy or .jpg or .png, KEY.cls, perhaps KEY.json.

The members of a key lie side by side, so that a record is one stretch of the file. A key without a heatmap has no map.
``gala_cuda.data.shards`` reads the same files without their maps.
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
from ..record import Record, check_label, check_numbers, decode_image
from . import npz
from .location import UNKNOWN, RecordLocation
from .writer import JPEG_START, Writer, encode_picture

NAMES = re.compile(r"\.(tar|tgz|tbz2?|txz|tzst)$")
PICTURES = ("jpg", "jpeg", "png")
CLASS_BYTES = 4096  # of a .cls at most
DAMAGED = None  # the key of all that follows where the archive cannot be read


class _Member(NamedTuple):
    """A member of the archive: where its header starts and its data ends, padded; where its data lie."""

    key: str | None  # empty for what is no file of a record
    kind: str
    start: int
    stop: int
    data: int
    size: int


def recognises(head: bytes) -> bool:
    return head[257:262] == b"ustar"


def scan(file: Path) -> list[RecordLocation]:
    """A record for each key. What follows a damaged header is one more record, which cannot be read."""
    locations = []
    with file.open("rb") as opened:
        size = os.fstat(opened.fileno()).st_size
        for key, group in groupby(_members(opened), lambda member: member.key):
            members = list(group)
            start, stop = members[0].start, members[-1].stop
            if key is DAMAGED:
                locations.append(RecordLocation(start, min(size - start, tarfile.BLOCKSIZE), UNKNOWN))
            elif key:
                locations.append(RecordLocation(start, stop - start, _label(opened, members)))
    return locations


def parse(data: bytes) -> Record:
    """The record of a stretch of an archive. Raises UnreadableError."""
    files = {}
    for member in _members(io.BytesIO(data)):
        if member.key is not DAMAGED:
            files[member.kind] = data[member.data : member.data + member.size]
        elif member.start < len(data) or not data:
            raise UnreadableError("the archive is damaged or cut off, and the rest of it is lost")
    images = [files[kind] for kind in PICTURES if kind in files]
    for there, what in ((bool(images), f"image ({', '.join(PICTURES)})"), ("cls" in files, "label (cls)")):
        if not there:
            raise UnreadableError(
                f"the key has no {what} beside its {', '.join(sorted(files))}; expected all members of a key side by "
                "side, as in an archive of sorted names (tar --sort=name)"
            )
    return Record(images[0], _heatmap(files), _parse_class(files.get("cls")), _numbers(files.get("json", b"{}")))


def key_of(data: bytes) -> str:
    """The key of a record."""
    return next(_members(io.BytesIO(data))).key or ""


def encode(key: str, record: Record) -> bytes:
    """The members of a key: pictures as they are, or as PNG; the numbers of a map as NPY."""
    files = {"cls": str(record.label).encode()}
    if isinstance(record.image, bytes):
        files[_suffix(record.image)] = record.image
    else:
        files["png"] = encode_picture(decode_image(record.image).transpose(1, 2, 0), "PNG")
    if isinstance(record.heatmap, bytes):
        files[f"heatmap.{_suffix(record.heatmap)}"] = record.heatmap
    elif record.heatmap is not None:
        stream = io.BytesIO()
        np.save(stream, record.heatmap)
        files["heatmap.npy"] = stream.getvalue()
    if record.numbers:
        files["json"] = json.dumps(record.numbers).encode()
    return b"".join(_encode_member(f"{key}.{kind}", data) for kind, data in files.items())


WRITER = Writer(encode, ".tar", shared=True, end=bytes(2 * tarfile.BLOCKSIZE))


def _members(file: BinaryIO) -> Iterator[_Member]:
    """The members, with one of the key ``DAMAGED`` at the end where the archive does not end as it should."""
    start, size = 0, file.seek(0, os.SEEK_END)
    file.seek(0)
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            while member := tar.next():
                stop = min(tar.offset, size)  # the last member may lack its padding
                if stop <= start or (member.isreg() and not start < member.offset_data <= stop - member.size):
                    raise tarfile.ReadError("a member that lies elsewhere")
                path = PurePosixPath(member.name)
                stem, _, kind = path.name.partition(".")
                belongs = member.isreg() and not any(map(is_litter, path.parts))
                key = str(path.parent / stem) if belongs else ""
                yield _Member(key, kind.lower(), start, stop, member.offset_data, member.size)
                start = stop
        file.seek(start)
        whole = file.read(tarfile.BLOCKSIZE) == bytes(tarfile.BLOCKSIZE)
    except (tarfile.TarError, *npz.READER_ERRORS):
        whole = False
    if not whole:
        yield _Member(DAMAGED, "", start, start, start, 0)


def _label(file: BinaryIO, members: list[_Member]) -> int:
    for member in members:
        if member.kind == "cls":
            file.seek(member.data)
            try:
                return _parse_class(file.read(min(member.size, CLASS_BYTES)))
            except UnreadableError:  # reading the record will say what is wrong
                return UNKNOWN
    return UNKNOWN


def _parse_class(data: bytes | None) -> int:
    try:
        return check_label([] if data is None else int(data[:CLASS_BYTES]))
    except (ValueError, OverflowError) as error:
        raise UnreadableError(f"the label is {data!r:.40}; expected a whole number") from error


def _heatmap(files: dict[str, bytes]) -> bytes | np.ndarray | None:
    if "heatmap.npy" in files:
        try:
            return npz.parse_npy(files["heatmap.npy"])
        except npz.READER_ERRORS as error:
            raise UnreadableError(f"the map is no readable NPY file: {error}") from error
    return next((files[f"heatmap.{kind}"] for kind in PICTURES if f"heatmap.{kind}" in files), None)


def _numbers(data: bytes) -> dict[str, list[int]]:
    try:
        content = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise UnreadableError(f"the .json of the key cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise UnreadableError("the .json of the key is no object")
    return check_numbers(content)


def _suffix(picture: bytes) -> str:
    return "jpg" if picture.startswith(JPEG_START) else "png"


def _encode_member(name: str, data: bytes) -> bytes:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    return member.tobuf() + data + bytes(-len(data) % tarfile.BLOCKSIZE)
