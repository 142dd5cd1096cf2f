"""Converts pictures of any of Pillow's modes to grey, RGB or RGBA with their contrast kept, or refuses them."""

import numpy as np
from PIL import Image, ImageCms, ImageFile

from .errors import UnreadableError

LARGEST = 65_535  # value of a grey picture of more than 8 bits
DARK = 32  # of 255: a picture with all values below is as good as black


def as_channels(picture: Image.Image, channels: int) -> Image.Image:
    """A decoded picture in grey (1), which is the luma of colours, in RGB (3), or in RGBA (4).

    In RGBA all four channels stay as they are, so that the fourth may be anything, such as infrared; where there is
    none it is 255. Otherwise as ``as_rgb``, which says what is raised.
    """
    if channels != 4:
        return as_rgb(picture) if channels == 3 else as_rgb(picture).convert("L")
    if picture.mode.endswith(("A", "a")) or "transparency" in picture.info:
        return picture.convert("RGBA")
    return as_rgb(picture).convert("RGBA")


def as_rgb(picture: Image.Image) -> Image.Image:
    """A decoded picture in RGB.

    - Grey of 16 or 32 bits or floating point is scaled by ``to_eight_bits``.
    - Transparent pixels become white, whether an alpha channel, a palette or a single colour marks them.
    - Colour profiles are not applied. CMYK, YCbCr, LAB, palettes and black-and-white are converted by Pillow.

    Raises UnreadableError where hardly any of the picture's contrast would be left, or ValueError for an unknown mode.
    """
    if picture.mode == "F" or picture.mode.startswith("I"):  # I, I;16, I;16B: Pillow would clip at 255
        return Image.fromarray(to_eight_bits(np.asarray(picture))).convert("RGB")
    if picture.mode == "LAB":
        to_rgb = ImageCms.buildTransform(ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB"), "LAB", "RGB")
        return to_rgb.apply(picture)
    if picture.mode.endswith(("A", "a")) or "transparency" in picture.info:
        transparent, background = picture.convert("RGBA"), Image.new("RGB", picture.size, "white")
        background.paste(transparent, (0, 0), transparent)
        return background
    return picture.convert("RGB")


def to_eight_bits(grey: np.ndarray) -> np.ndarray:
    """Whole or floating-point numbers of at least 0, of any shape, as uint8.

    A file does not say how many bits its camera had, so the largest value does: white is the first of 255, 511, 1023,
    ... 65535 that no value exceeds. Of the bits of whole numbers the upper 8 remain: values up to 255 are unchanged.
    If there are fractions, or no value reaches ``DARK``, white may also be 1, 3, 7, ... 127, or a half, a quarter, ...

    Raises UnreadableError: a value is negative, above 65535 or not finite.
    """
    low, high = grey.min(), grey.max()  # both are NaN where one value is
    if not 0 <= low <= high <= LARGEST:
        raise UnreadableError(f"a grey picture of values from {low:g} to {high:g}; expected 0 to {LARGEST}")
    if high < DARK or (grey.dtype.kind == "f" and (grey % 1).any()):
        white = 2.0 ** np.ceil(np.log2(high + 1)) - 1 if high > 1 else 2.0 ** np.ceil(np.log2(high or 1))
        return np.rint(grey * (255 / white)).astype(np.uint8)
    whole = grey.astype(np.int32) if grey.dtype.kind == "f" else grey
    return (whole >> max(0, int(high).bit_length() - 8)).astype(np.uint8)


def is_deep(picture: ImageFile.ImageFile) -> bool:
    """Whether an opened picture, not loaded yet, has several channels of 16 bits, of which Pillow will keep 8."""
    return len(picture.getbands()) > 1 and any(";16" in str(tile[3]) for tile in picture.tile)


def check_brightness(picture: Image.Image) -> None:
    """Checks what is left of a picture that ``is_deep``: of one by a 12-bit camera almost nothing is.

    Raises UnreadableError.
    """
    colours = [np.asarray(picture.getchannel(band)).max() for band in picture.getbands() if band != "A"]
    if max(colours) < DARK:
        raise UnreadableError(
            f"it has 16 bits a channel and no value above {256 * DARK - 1}: almost nothing is left in the upper 8, "
            "which are kept; expected values up to 65535"
        )
