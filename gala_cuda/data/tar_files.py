"""The tar files of a folder, and where the images lie in each of them."""

import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from .compression import advice, compression
from .folders import files_of_split, is_litter, split_folder
from .picture_files import EXTENSIONS

HEAD, CLASS_BYTES = 512, 64  # bytes read of a file to recognise its compression, and of a .cls member
# Compressed ones are found too, and refused when they are read.
_NAME = re.compile(r"\.(tar(\.(gz|z|bz2|xz|zst|lz4))?|tgz|tbz2?|txz|tzst)$", re.IGNORECASE)


@dataclass(frozen=True)
class Shard:
    """A tar file, ``file`` relative to the index, and its images: name, offset and size in bytes, class."""

    file: str
    bytes: int
    names: list[str]
    offsets: list[int]
    sizes: list[int]
    labels: list[int]


def tar_files_of_split(folder: Path, split: str) -> list[Path]:
    """The tar files of a split: those in FOLDER/SPLIT/, and those in FOLDER with SPLIT as a word of their names.

    Raises ValueError for a tar file of two splits, or of none beside others.
    """
    inside = split_folder(folder, split)
    below = [path for path in inside.iterdir() if is_tar(path.name) and path.is_file()] if inside else []
    beside = [path for path in files_of_split(folder, split, is_tar) if is_tar(path.name)]
    return sorted([*below, *beside])


def is_tar(name: str) -> bool:
    """Whether a file is a tar file by its name, compressed or not."""
    return bool(_NAME.search(name)) and not is_litter(name)


def scan_tar(file: Path, folder: Path) -> Shard:
    """The images of ``file``, a tar file in ``folder``, from its headers.

    Raises ValueError: it is compressed, damaged, or an image and a class do not belong together.
    """
    images: dict[str, tuple[str, int, int]] = {}
    labels: dict[str, int] = {}
    with file.open("rb") as opened:
        for member in _members(file):
            path = PurePosixPath(member.name)
            if not member.isreg() or any(map(is_litter, path.parts)):
                continue
            stem, _, suffix = path.name.partition(".")
            key = str(path.parent / stem)
            if suffix == "cls":
                opened.seek(member.offset_data)
                labels[key] = _parse_class(opened.read(min(member.size, CLASS_BYTES)), f"{file}: {member.name}")
            elif f".{suffix.lower()}" in EXTENSIONS:
                if key in images:
                    raise ValueError(f"{file}: {images[key][0]} and {member.name} are images of one key; expected one")
                images[key] = (member.name, member.offset_data, member.size)
    unpaired = sorted(images.keys() ^ labels.keys())
    if unpaired:
        missing = "class" if unpaired[0] in images else "image that can be read"
        raise ValueError(f"{file}: {unpaired[0]} has no {missing}; expected KEY.jpg and KEY.cls")
    names, offsets, sizes = (list(column) for column in zip(*images.values(), strict=True)) if images else ([], [], [])
    name = file.relative_to(folder).as_posix()
    return Shard(name, file.stat().st_size, names, offsets, sizes, [labels[key] for key in images])


def _members(file: Path) -> Iterator[tarfile.TarInfo]:
    """The members of a whole tar file. Raises ValueError where it is none."""
    with file.open("rb") as opened:
        packed = compression(opened.read(HEAD))
        if packed:
            raise ValueError(f"{file} {advice(packed)}")
        opened.seek(0)
        try:
            with tarfile.open(fileobj=opened, mode="r:") as tar:
                yield from tar
                end = tar.offset
            opened.seek(end)  # tarfile takes a damaged header for the end
            if opened.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                raise tarfile.ReadError(f"damaged or cut off at byte {end}")
        except (tarfile.TarError, OSError) as error:
            raise ValueError(f"{file} is no whole tar file of images and classes: {error}") from error


def _parse_class(data: bytes, where: str) -> int:
    try:
        return int(data)
    except ValueError as error:
        raise ValueError(f"{where} is {data[:40]!r}; expected a whole number, the class") from error
