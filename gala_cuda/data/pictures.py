"""Pictures: decoding, augmentation, and what counts as unreadable."""

import io
import logging
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from PIL import ExifTags, Image, UnidentifiedImageError
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional

from .choices import AUGMENTS
from .errors import UnreadableError
from .picture_files import FORMATS
from .picture_modes import as_rgb, check_brightness, is_deep

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
ERASED = 0.1  # share of the images that lose a rectangle
MAX_PIXELS, MAX_SIDE = 89_478_485, 1_000_000  # of a picture: Pillow's own limit; each row costs Pillow a pointer too
LONGEST = 32  # times its shorter side: of a longer picture that is scaled, the middle is taken first
_BOMBS = (Image.DecompressionBombError, Image.DecompressionBombWarning)
BROKEN = UnreadableError  # what decode raises
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # fmt: skip
logging.getLogger("PIL").addHandler(logging.NullHandler())  # or else its errors would be printed


@dataclass(frozen=True)
class Preprocessing:
    """How a picture becomes what a network takes, at any size in pixels.

    Args:
        mean, std: of red, green and blue on a scale of 0 to 1, which the network is to see as 0 and 1.
        interpolation: a value of torchvision's InterpolationMode.
        crop: (a, b): the picture's shorter side is scaled to b pixels for each a of the network's size, and the centre
            is taken.
        squash: both sides are scaled so, whatever the picture's proportions.

    Raises:
        ValueError: a value is out of range.
    """

    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    interpolation: str = "bilinear"
    crop: tuple[int, int] = (7, 8)  # 224 of 256
    squash: bool = False

    def __post_init__(self) -> None:
        for name in ("mean", "std"):
            value = getattr(self, name)
            if len(value) != 3 or not all(0 <= number < math.inf for number in value) or not all(self.std):
                raise ValueError(f"{name} is {value}; expected three numbers of at least 0, of std above 0")
        if len(self.crop) != 2 or min(self.crop) < 1:
            raise ValueError(f"crop is {self.crop}; expected two whole numbers of at least 1")
        if self.interpolation not in (known := [mode.value for mode in v2.InterpolationMode]):
            raise ValueError(f"interpolation is {self.interpolation!r}; expected one of {', '.join(known)}")

    def described(self, size: int) -> str:
        """For a user to read."""
        mean, std = (" ".join(f"{number:.3g}" for number in numbers) for numbers in (self.mean, self.std))
        what = "both sides" if self.squash else "the shorter side"
        scaled = f"{what} scaled to {self._side(size)} ({self.interpolation})"
        return f"{size} x {size} pixels, {scaled}; mean {mean}, std {std}"

    def _side(self, size: int) -> int:
        return size * self.crop[1] // self.crop[0]

    def resize(self, size: int) -> v2.Transform:
        """A picture scaled, so that a network of ``size`` pixels takes its centre."""
        side = self._side(size)
        how = v2.InterpolationMode(self.interpolation)
        return v2.Resize((side, side), how) if self.squash else v2.Compose([Middle(), v2.Resize(side, how)])

    def normalise(self) -> v2.Transform:
        return v2.Normalize(self.mean, self.std)


class Middle(v2.Transform):
    """The middle of an image more than ``LONGEST`` times as long as wide, which would fill the memory when scaled."""

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        height, width = functional.get_size(inpt)
        longest = LONGEST * min(height, width)
        if max(height, width) <= longest:
            return inpt
        return functional.center_crop(inpt, [min(height, longest), min(width, longest)])


IMAGENET = Preprocessing()


class Files(Protocol):
    """A numbered set of labelled files."""

    labels: Tensor  # [n] int64

    def name(self, index: int) -> str: ...

    def load(self, index: int) -> bytes:
        """Raises OSError where the file cannot be read."""

    def prepare(self, indices: list[int]) -> None:
        """Says which are loaded next."""


class Pictures:
    """Images of [3, size, size], decoded and transformed as they are read."""

    def __init__(self, files: Files, transform: v2.Transform, size: int) -> None:
        self.files, self.transform = files, transform
        self.labels, self.shape = files.labels, (3, size, size)

    def name(self, index: int) -> str:
        return self.files.name(index)

    def prepare(self, indices: list[int]) -> None:
        self.files.prepare(indices)

    def read(self, index: int, seed: int) -> Tensor:
        try:
            data = self.files.load(index)
        except OSError as error:
            raise UnreadableError(str(error)) from error
        picture = decode(data)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed CUDA too, for good
            return self.transform(picture)


def decode(data: bytes) -> Image.Image:
    """The first frame of a picture file in RGB, as :func:`modes.as_rgb` has it, turned as its EXIF data say.

    Raises UnreadableError (``BROKEN``): it is no picture, damaged, too large, or of values that cannot be shown.
    """
    with decoding():
        opened = Image.open(io.BytesIO(data), formats=FORMATS)
        width, height = opened.size
        if width * height > MAX_PIXELS or max(width, height) > MAX_SIDE:
            raise UnreadableError(
                f"the picture has {width} x {height} pixels; expected at most {MAX_PIXELS} in all, {MAX_SIDE} a side"
            )
        warnings.simplefilter("error", Image.DecompressionBombWarning)  # of pictures inside of pictures
        deep = is_deep(opened)
        opened.load()
        if deep:
            check_brightness(opened)
        picture, turn = as_rgb(opened), _UPRIGHT.get(_orientation(opened))
        return picture if turn is None else picture.transpose(turn)


@contextmanager
def decoding(prefix: str = "") -> Iterator[None]:
    """Turns what a decoder raises inside into UnreadableError, its message after ``prefix``; hides its warnings."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except UnreadableError:
        raise
    # Decoders raise whatever a damaged file makes them stumble over: KeyError, struct.error, TypeError, RuntimeError
    # of a plug-in; MemoryError where a header asks for too much, no sign of a full machine: memory is bounded before.
    except Exception as error:
        raise UnreadableError(prefix + _reason(error)) from error


def _orientation(opened: Image.Image) -> Any:
    try:
        return opened.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # as decoders do; a whole picture with damaged EXIF data is taken as it lies
        return None


def _reason(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):  # whose text is an address in memory
        return "no image of a known format"
    if isinstance(error, (OSError, ValueError, SyntaxError, *_BOMBS)) and str(error):
        return str(error)
    return f"its decoder fails: {type(error).__name__} {error}".rstrip()


def augmentation(augment: str, size: int, how: Preprocessing = IMAGENET) -> v2.Transform:
    """From a picture to a normalised tensor [3, size, size]. Each draws from torch's generator alone.

    "paper" crops at random (8 to 100 % of the area) and flips; "modern" adds TrivialAugment (Müller and Hutter, 2021)
    and random erasing (Zhong et al., 2020), "randaugment" RandAugment (Cubuk et al., 2020) and erasing; "none" crops
    the centre.
    """
    if augment not in AUGMENTS:
        raise ValueError(f"augment is {augment!r}; expected one of {', '.join(AUGMENTS)}")
    if augment == "none":
        return centre_crop(size, how)
    crop = v2.RandomResizedCrop(size, interpolation=v2.InterpolationMode(how.interpolation))
    steps: list[v2.Transform] = [crop, v2.RandomHorizontalFlip()]
    bilinear = v2.InterpolationMode.BILINEAR
    if augment == "modern":
        steps.append(v2.TrivialAugmentWide(interpolation=bilinear))
    if augment == "randaugment":
        steps.append(v2.RandAugment(interpolation=bilinear))
    steps += _to_tensor(how)
    if augment != "paper":
        steps.append(v2.RandomErasing(ERASED))
    return v2.Compose(steps)


def centre_crop(size: int, how: Preprocessing = IMAGENET) -> v2.Transform:
    """The centre of the picture; as ImageNet has it, of 256 pixels for 224."""
    return v2.Compose([how.resize(size), v2.CenterCrop(size), *_to_tensor(how)])


def _to_tensor(how: Preprocessing) -> list[v2.Transform]:
    return [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), how.normalise(), v2.ToPureTensor()]
