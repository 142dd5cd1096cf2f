"""Decodes picture files to grey, RGB or RGBA, and tells in one line why a file cannot be decoded."""

import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from PIL import ExifTags, Image, UnidentifiedImageError

from .errors import UnreadableError
from .picture_files import FORMATS
from .picture_modes import as_channels, check_brightness, is_deep

MAX_PIXELS, MAX_SIDE = 89_478_485, 1_000_000  # of a picture: Pillow's own limit; each row costs Pillow a pointer too
_BOMBS = (Image.DecompressionBombError, Image.DecompressionBombWarning)
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # fmt: skip
logging.getLogger("PIL").addHandler(logging.NullHandler())  # otherwise its errors would be printed


def decode_picture(data: bytes, channels: int = 3) -> Image.Image:
    """The first frame of a picture file, as ``as_channels`` converts it, turned upright as its EXIF data say.

    Raises UnreadableError: it is no picture, damaged, too large, or its values cannot be shown in 8 bits.
    """
    with decoder_errors():
        opened = Image.open(io.BytesIO(data), formats=FORMATS)
        width, height = opened.size
        if width * height > MAX_PIXELS or max(width, height) > MAX_SIDE:
            raise UnreadableError(
                f"the picture has {width} x {height} pixels; expected at most {MAX_PIXELS} in all, {MAX_SIDE} a side"
            )
        warnings.simplefilter("error", Image.DecompressionBombWarning)  # of pictures inside pictures
        deep = is_deep(opened)
        opened.load()
        if deep:
            check_brightness(opened)
        picture, turn = as_channels(opened, channels), _UPRIGHT.get(_orientation(opened))
        return picture if turn is None else picture.transpose(turn)


@contextmanager
def decoder_errors(prefix: str = "") -> Iterator[None]:
    """Turns what a decoder raises inside into UnreadableError, its message after ``prefix``; hides its warnings."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except UnreadableError:
        raise
    # On a damaged file decoders raise anything: KeyError, struct.error, TypeError, a plug-in's RuntimeError. A
    # MemoryError means that a header asks for too much and not that memory is full, for sizes are limited before.
    except Exception as error:
        raise UnreadableError(prefix + _reason(error)) from error


def _orientation(opened: Image.Image) -> Any:
    try:
        return opened.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # anything, as above; a whole picture with damaged EXIF data is not turned
        return None


def _reason(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):  # whose text is an address in memory
        return "no image of a known format"
    if isinstance(error, (OSError, ValueError, SyntaxError, *_BOMBS)) and str(error):
        return str(error)
    return f"its decoder fails: {type(error).__name__} {error}".rstrip()
