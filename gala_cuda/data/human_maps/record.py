"""One record of a ClickMe file: what the file holds about an image, the limits on it, and its decoding."""

import io
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

from ..clickme_sample import ClickMeSample
from ..errors import UnreadableError
from ..picture_decoding import decoder_errors
from ..picture_modes import as_rgb

MAX_BYTES = 32 << 20  # of a record
MAX_SIDE = 2048  # of an image or a map, in pixels
MAX_LABEL = 65_535
MAX_VALUE = 1e12  # of a map: its square still fits into float32
MAX_OF_UNIT_IMAGE = 2.0  # floating-point images with no larger value have the range [0, 1], the others [0, 255]
OVERSHOOT = 0.1  # how far bicubic scaling may have gone outside the range, as a fraction of it
NUMBERS = {"click_count": 1, "bbox": 4}  # what some files have beside the label, and how many whole numbers each is


class Record(NamedTuple):
    """An image, its map and its label as a file holds them."""

    image: bytes | np.ndarray  # JPEG or PNG; or uint8 or floating point, [H, W, 3] or [3, H, W]
    heatmap: bytes | np.ndarray | None  # JPEG or PNG; or numbers [H', W'], with further dimensions of 1
    label: int
    numbers: dict[str, list[int]]  # of ``NUMBERS``, those that the file has


def decode_record(record: Record) -> ClickMeSample:
    """The sample: image uint8, map float32 with its values as stored. Raises UnreadableError.

    There is no map where ``click_count`` is 0 or the map has no value above 0.
    """
    image = decode_image(record.image)
    heatmap, has_map = np.zeros(image.shape[1:], np.float32), False
    if record.heatmap is not None and record.numbers.get("click_count") != [0]:
        stored = decode_heatmap(record.heatmap)
        if stored.any():
            heatmap, has_map = stored, True
    return ClickMeSample(
        torch.from_numpy(image), torch.tensor(record.label), torch.from_numpy(heatmap)[None], torch.tensor(has_map)
    )


def is_jpeg_or_png(data: bytes) -> bool:
    """Whether ``data`` is a JPEG or PNG file. Raw float32 values in [0, 255] never start like one."""
    return data.startswith(b"\x89PNG") or (data[:3] == b"\xff\xd8\xff" and data[3:4] >= b"\x80")


def check_label(value: object) -> int:
    """The class given as a number, or as a list or an array of one number. Raises UnreadableError."""
    label = _whole_numbers("label", value, 1)[0]
    if not 0 <= label <= MAX_LABEL:
        raise UnreadableError(f"the label is {label}; expected 0 to {MAX_LABEL}")
    return label


def check_numbers(fields: Mapping[str, object]) -> dict[str, list[int]]:
    """Those of ``NUMBERS`` that are among a record's ``fields``. Raises UnreadableError."""
    return {name: _whole_numbers(name, fields[name], count) for name, count in NUMBERS.items() if name in fields}


def _whole_numbers(name: str, value: object, count: int) -> list[int]:
    values = value.ravel().tolist() if isinstance(value, np.ndarray) else value if isinstance(value, list) else [value]
    if not values:
        raise UnreadableError(f"there is no {name}")
    whole = [each for each in values if type(each) is int and -(1 << 63) <= each < 1 << 63]
    if not len(values) == len(whole) == count:
        plain = len(values) == 1 and isinstance(values[0], int | float | str | bytes)
        given = f"{values[0]!r:.40}" if plain else f"{len(values)} values"
        raise UnreadableError(f"the {name} is {given}; expected {count} whole number{'s' * (count > 1)}")
    return whole


def decode_image(data: bytes | np.ndarray) -> np.ndarray:
    """A record's image as uint8 [3, H, W]. Raises UnreadableError."""
    if isinstance(data, bytes):
        return np.asarray(_decode_picture(data, "image")).transpose(2, 0, 1).copy()
    shape = data.shape[sum(side == 1 for side in data.shape[:-3]) :]  # without batch dimensions of 1
    if len(shape) != 3 or 3 not in (shape[0], shape[2]) or data.dtype.kind not in "uf":
        raise UnreadableError(f"the image is {data.dtype} of shape {data.shape}; expected [H, W, 3] or [3, H, W]")
    _check_sides("image", shape[:2] if shape[2] == 3 else shape[1:])
    image = data.reshape(shape).transpose(2, 0, 1) if shape[2] == 3 else data.reshape(shape)
    return image.copy() if image.dtype == np.uint8 else _scale_to_uint8(image)


def _scale_to_uint8(image: np.ndarray) -> np.ndarray:
    """An image with the range [0, 1] or [0, 255] as uint8."""
    low, high = float(image.min()), float(image.max())
    white = 1.0 if high <= MAX_OF_UNIT_IMAGE else 255.0
    if not -OVERSHOOT * white <= low <= high <= (1 + OVERSHOOT) * white:
        raise UnreadableError(f"the image has values from {low:g} to {high:g}; expected 0 to 1 or 0 to 255")
    return np.rint(image.astype(np.float32) * (255 / white)).clip(0, 255).astype(np.uint8)


def decode_heatmap(data: bytes | np.ndarray) -> np.ndarray:
    """A record's map as float32 [H', W'], at least 0. Raises UnreadableError."""
    if isinstance(data, bytes):
        picture = _decode_picture(data, "map")
        return np.asarray(picture if picture.mode in ("L", "I;16") else picture.convert("L")).astype(np.float32)
    shape = tuple(side for side in data.shape if side != 1)
    if len(shape) != 2 or data.dtype.kind not in "uif":
        raise UnreadableError(f"the map is {data.dtype} of shape {data.shape}; expected numbers [H, W]")
    _check_sides("map", shape)
    low, high = float(data.min()), float(data.max())
    if not (-OVERSHOOT * abs(high) <= low and high <= MAX_VALUE):
        raise UnreadableError(f"the map has values from {low:g} to {high:g}; expected 0 to {MAX_VALUE:g}")
    return data.reshape(shape).astype(np.float32).clip(0)


def _decode_picture(data: bytes, what: str) -> Image.Image:
    """An image in RGB, a map in its own mode. EXIF data are ignored: nothing says that they would turn the map too."""
    with decoder_errors(f"the {what} cannot be decoded: "):
        opened = Image.open(io.BytesIO(data), formats=("JPEG", "PNG"))
        _check_sides(what, opened.size)
        opened.load()
        return as_rgb(opened) if what == "image" else opened


def _check_sides(what: str, sides: tuple[int, ...]) -> None:
    if not all(1 <= side <= MAX_SIDE for side in sides):
        raise UnreadableError(f"the {what} has sides of {sides[0]} and {sides[1]}; expected 1 to {MAX_SIDE} pixels")
