"""A record as the bytes of each format."""

import io
import json
import tarfile
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from PIL import Image

from ..errors import UnreadableError
from .formats import tfrecord
from .record import Record, heatmap_of, image_of

QUALITY = 95  # of JPEG
JPEG = b"\xff\xd8\xff"


class Kind(NamedTuple):
    """How to write a format: the bytes of a key's record, and what ends a file."""

    encode: Callable[[str, Record], bytes]  # raises UnreadableError
    suffix: str
    shared: bool = False  # a file by many records
    end: bytes = b""


def webdataset(key: str, record: Record) -> bytes:
    """Members of a tar file: pictures as they are, or as PNG; numbers of a map as NPY."""
    members = {"cls": str(record.label).encode()}
    if isinstance(record.image, bytes):
        members[_suffix(record.image)] = record.image
    else:
        members["png"] = _picture(image_of(record.image).transpose(1, 2, 0), "PNG")
    if isinstance(record.heatmap, bytes):
        members[f"heatmap.{_suffix(record.heatmap)}"] = record.heatmap
    elif record.heatmap is not None:
        stream = io.BytesIO()
        np.save(stream, record.heatmap)
        members["heatmap.npy"] = stream.getvalue()
    if record.numbers:
        members["json"] = json.dumps(record.numbers).encode()
    return b"".join(_member(f"{key}.{kind}", data) for kind, data in members.items())


def npz(key: str, record: Record) -> bytes:
    """``image`` uint8 [H, W, 3], ``heatmap`` float32 [H', W'], ``label``."""
    stream = io.BytesIO()
    image = image_of(record.image).transpose(1, 2, 0)
    arrays = {"image": image, "heatmap": _heatmap(record, image.shape[:2]), "label": record.label}
    np.savez_compressed(stream, **cast(Any, arrays | record.numbers))
    return stream.getvalue()


def pth(key: str, record: Record) -> bytes:
    """``image`` uint8 [3, H, W], ``heatmap`` uint8 [1, H', W'], ``label``."""
    stream = io.BytesIO()
    image = image_of(record.image)
    heatmap = _to_bytes(_heatmap(record, image.shape[1:]))
    tensors = {"image": torch.from_numpy(image), "heatmap": torch.from_numpy(heatmap)[None], "label": record.label}
    torch.save(tensors | record.numbers, stream)
    return stream.getvalue()


def raw_tfrecord(key: str, record: Record) -> bytes:
    """A frame of float32 values, the image in [0, 1]. Raises UnreadableError where image or map is no square."""
    image = image_of(record.image).transpose(1, 2, 0)
    heatmap = _heatmap(record, image.shape[:2])
    for what, array in (("image", image), ("map", heatmap)):
        if array.shape[0] != array.shape[1]:
            raise UnreadableError(
                f"the {what} has sides of {array.shape[0]} and {array.shape[1]}; a raw TFRecord has squares"
            )
    if isinstance(record.image, np.ndarray) and record.image.dtype == np.float32:
        image = record.image  # as it was
    else:
        image = image / np.float32(255)
    clicks = {"click_count": [int(heatmap.any())]}
    return tfrecord.frame(
        {
            "image": image.astype("<f4").tobytes(),
            "heatmap": heatmap.astype("<f4").tobytes(),
            "label": [record.label],
            **(clicks | record.numbers),
        }
    )


def jpeg_tfrecord(key: str, record: Record) -> bytes:
    """A frame of JPEG files, as they are where they are such."""
    image, heatmap = record.image, record.heatmap
    if not (isinstance(image, bytes) and image.startswith(JPEG)):
        image = _picture(image_of(image).transpose(1, 2, 0), "JPEG")
    if not (isinstance(heatmap, bytes) and heatmap.startswith(JPEG)):
        heatmap = _picture(_to_bytes(_heatmap(record, image_of(image).shape[1:])), "JPEG")
    return tfrecord.frame({"image": image, "heatmap": heatmap, "label": [record.label], **record.numbers})


KINDS = {
    "webdataset": Kind(webdataset, ".tar", shared=True, end=bytes(2 * tarfile.BLOCKSIZE)),
    "npz": Kind(npz, ".npz"),
    "tfrecord": Kind(raw_tfrecord, ".tfrecord", shared=True),
    "tfrecord-jpeg": Kind(jpeg_tfrecord, ".tfrecord", shared=True),
    "pth": Kind(pth, ".pth"),
}


def _heatmap(record: Record, sides: tuple[int, ...]) -> np.ndarray:
    """float32, of ``sides`` where there is none."""
    return np.zeros(sides, np.float32) if record.heatmap is None else heatmap_of(record.heatmap)


def _to_bytes(heatmap: np.ndarray) -> np.ndarray:
    """uint8: the same numbers where they are whole and at most 255, else scaled to a maximum of 255."""
    most = heatmap.max()
    if most > 255 or (heatmap != np.rint(heatmap)).any():
        heatmap = np.rint(heatmap * (255 / most))
    return heatmap.astype(np.uint8)


def _picture(array: np.ndarray, kind: str) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(array).save(stream, kind, quality=QUALITY)
    return stream.getvalue()


def _suffix(picture: bytes) -> str:
    return "jpg" if picture.startswith(JPEG) else "png"


def _member(name: str, data: bytes) -> bytes:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    return member.tobuf() + data + bytes(-len(data) % tarfile.BLOCKSIZE)
