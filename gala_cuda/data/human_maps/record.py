"""A sample as a file holds it, and what must be true of it."""

import io
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

from .. import pictures
from ..clickme_sample import ClickMeSample
from ..errors import UnreadableError
from ..picture_modes import as_rgb

MAX_BYTES = 32 << 20  # of a record
MAX_SIDE = 2048  # of an image or a map, in pixels
MAX_LABEL = 65_535
MAX_VALUE = 1e12  # of a map: its square is still a float32
UNIT = 2.0  # floating-point images with no value above are of the range [0, 1], the others of [0, 255]
OVERSHOOT = 0.1  # of the range: how far bicubic scaling may have gone outside it
NUMBERS = {"click_count": 1, "bbox": 4}  # what some files have beside the label, and how many


class Record(NamedTuple):
    """A sample as a file holds it."""

    image: bytes | np.ndarray  # JPEG or PNG; or uint8 or floating point, [H, W, 3] or [3, H, W]
    heatmap: bytes | np.ndarray | None  # JPEG or PNG; or numbers [H', W'], with further dimensions of 1
    label: int
    numbers: dict[str, list[int]]  # of ``NUMBERS``, those that the file has


def decode(record: Record) -> ClickMeSample:
    """The sample: image uint8, map float32 with its values as stored. Raises UnreadableError.

    There is no map where ``click_count`` is 0 or the map has no value above 0.
    """
    image = image_of(record.image)
    heatmap, has_map = np.zeros(image.shape[1:], np.float32), False
    if record.heatmap is not None and record.numbers.get("click_count") != [0]:
        stored = heatmap_of(record.heatmap)
        if stored.any():
            heatmap, has_map = stored, True
    return ClickMeSample(
        torch.from_numpy(image), torch.tensor(record.label), torch.from_numpy(heatmap)[None], torch.tensor(has_map)
    )


def is_picture(data: bytes) -> bool:
    """Whether these are a JPEG or PNG file: raw float32 values, 0 to 255, do not start so."""
    return data.startswith(b"\x89PNG") or (data[:3] == b"\xff\xd8\xff" and data[3:4] >= b"\x80")


def checked_label(value: object) -> int:
    """A class from a number, or a list or an array of one. Raises UnreadableError."""
    label = _whole("label", value, 1)[0]
    if not 0 <= label <= MAX_LABEL:
        raise UnreadableError(f"the label is {label}; expected 0 to {MAX_LABEL}")
    return label


def checked_numbers(found: Mapping[str, object]) -> dict[str, list[int]]:
    """Those of ``NUMBERS`` that are among what was found. Raises UnreadableError."""
    return {name: _whole(name, found[name], count) for name, count in NUMBERS.items() if name in found}


def _whole(name: str, value: object, count: int) -> list[int]:
    values = value.ravel().tolist() if isinstance(value, np.ndarray) else value if isinstance(value, list) else [value]
    if not values:
        raise UnreadableError(f"there is no {name}")
    whole = [each for each in values if type(each) is int and -(1 << 63) <= each < 1 << 63]
    if not len(values) == len(whole) == count:
        plain = len(values) == 1 and isinstance(values[0], int | float | str | bytes)
        what = f"{values[0]!r:.40}" if plain else f"{len(values)} values"
        raise UnreadableError(f"the {name} is {what}; expected {count} whole number{'s' * (count > 1)}")
    return whole


def image_of(data: bytes | np.ndarray) -> np.ndarray:
    """uint8 [3, H, W]."""
    if isinstance(data, bytes):
        return np.asarray(_picture(data, "image")).transpose(2, 0, 1).copy()
    shape = data.shape[sum(side == 1 for side in data.shape[:-3]) :]  # without batch dimensions of 1
    if len(shape) != 3 or 3 not in (shape[0], shape[2]) or data.dtype.kind not in "uf":
        raise UnreadableError(f"the image is {data.dtype} of shape {data.shape}; expected [H, W, 3] or [3, H, W]")
    _check_sides("image", shape[:2] if shape[2] == 3 else shape[1:])
    image = data.reshape(shape).transpose(2, 0, 1) if shape[2] == 3 else data.reshape(shape)
    return image.copy() if image.dtype == np.uint8 else _as_bytes(image)


def _as_bytes(image: np.ndarray) -> np.ndarray:
    """uint8 of an image in [0, 1] or [0, 255]."""
    low, high = float(image.min()), float(image.max())
    whole = 1.0 if high <= UNIT else 255.0
    if not -OVERSHOOT * whole <= low <= high <= (1 + OVERSHOOT) * whole:
        raise UnreadableError(f"the image has values from {low:g} to {high:g}; expected 0 to 1 or 0 to 255")
    return np.rint(image.astype(np.float32) * (255 / whole)).clip(0, 255).astype(np.uint8)


def heatmap_of(data: bytes | np.ndarray) -> np.ndarray:
    """float32 [H', W'], at least 0."""
    if isinstance(data, bytes):
        picture = _picture(data, "map")
        return np.asarray(picture if picture.mode in ("L", "I;16") else picture.convert("L")).astype(np.float32)
    shape = tuple(side for side in data.shape if side != 1)
    if len(shape) != 2 or data.dtype.kind not in "uif":
        raise UnreadableError(f"the map is {data.dtype} of shape {data.shape}; expected numbers [H, W]")
    _check_sides("map", shape)
    low, high = float(data.min()), float(data.max())
    if not (-OVERSHOOT * abs(high) <= low and high <= MAX_VALUE):
        raise UnreadableError(f"the map has values from {low:g} to {high:g}; expected 0 to {MAX_VALUE:g}")
    return data.reshape(shape).astype(np.float32).clip(0)


def _picture(data: bytes, what: str) -> Image.Image:
    """As it is stored, an image in RGB: EXIF data do not turn it, for nothing says that they would turn its map."""
    with pictures.decoding(f"the {what} cannot be decoded: "):
        opened = Image.open(io.BytesIO(data), formats=("JPEG", "PNG"))
        _check_sides(what, opened.size)
        opened.load()
        return as_rgb(opened) if what == "image" else opened


def _check_sides(what: str, sides: tuple[int, ...]) -> None:
    if not all(1 <= side <= MAX_SIDE for side in sides):
        raise UnreadableError(f"the {what} has sides of {sides[0]} and {sides[1]}; expected 1 to {MAX_SIDE} pixels")
