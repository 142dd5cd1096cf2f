"""From a sample as it is read to what a network takes: image and map cropped and flipped alike."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2

from ..clickme_sample import ClickMeSample
from ..pictures import AUGMENTS, ERASED, IMAGENET, Preprocessing

MAPS = ("paper", "harmonization", "raw")


@dataclass(frozen=True)
class Transform:
    """To float32, the image normalised; see :func:`augmentation` and :func:`centre_crop`."""

    geometric: v2.Transform  # of image and map
    photometric: v2.Transform  # of the image alone
    maps: str

    def __call__(self, sample: ClickMeSample) -> ClickMeSample:
        """Draws from torch's generator alone. A map of which the crop has nothing above 0 is no map."""
        heatmap = _resized(sample.heatmap, sample.image.shape[1:])
        if sample.has_map:
            heatmap = processed(heatmap, self.maps)
        image, heatmap = self.geometric(tv_tensors.Image(sample.image), tv_tensors.Image(heatmap))
        heatmap = heatmap.as_subclass(Tensor)
        return ClickMeSample(self.photometric(image), sample.label, heatmap, sample.has_map & (heatmap > 0).any())


def augmentation(augment: str, size: int, maps: str, how: Preprocessing = IMAGENET) -> Transform:
    """To train on: image [3, size, size] and map [1, size, size], the choices of :func:`pictures.augmentation`.

    "paper" is ClickMe's own: images of 256 pixels, a random square of 224 of them (8 to 7 for other sizes), a flip
    (paper's released code). "modern" and "randaugment" crop 8 to 100 % of the area, flip, then change the image by one
    or two of the operations on colours that TrivialAugment draws from, and erase; not by its rotations and shears.
    "none" crops the centre. ``maps`` is as of :func:`processed`.

    Raises ValueError where there is no such choice.
    """
    if augment not in AUGMENTS:
        raise ValueError(f"augment is {augment!r}; expected one of {', '.join(AUGMENTS)}")
    if augment == "none":
        return centre_crop(size, maps, how)
    if augment == "paper":
        crop = [how.resize(size), v2.RandomCrop(size, pad_if_needed=True)]
        return _transform([*crop, v2.RandomHorizontalFlip()], _normalised(how), maps)
    colours = [_colours() for _ in range(1 if augment == "modern" else 2)]
    return _transform(
        [v2.RandomResizedCrop(size), v2.RandomHorizontalFlip()],
        [*colours, *_normalised(how), v2.RandomErasing(ERASED)],
        maps,
    )


def centre_crop(size: int, maps: str, how: Preprocessing = IMAGENET) -> Transform:
    """The centre of image and map."""
    return _transform([how.resize(size), v2.CenterCrop(size)], _normalised(how), maps)


def processed(heatmap: Tensor, maps: str) -> Tensor:
    """A map [1, H, W] as a loss takes it, before it is cropped.

    "paper" is divided by its maximum; "harmonization" is blurred by 10 x 10 of 64 x 64 pixels, sigma 10, as Fel et al.
    (2022) did, with zeros outside the map; "raw" is as it is stored. Whether the paper blurred its maps is unconfirmed;
    :class:`GalaMapLoss` of "gala_tpu" does so itself, after the crop.
    """
    if maps == "paper":
        return heatmap / heatmap.max()
    if maps == "harmonization":
        return _resized(blurred(_resized(heatmap, (64, 64)), 10, 10.0), heatmap.shape[1:])
    return heatmap


def blurred(heatmap: Tensor, taps: int, sigma: float) -> Tensor:
    """A map [1, H, W] convolved with a Gaussian of ``taps`` x ``taps``, its sum 1, its middle that of the taps."""
    places = torch.arange(taps) - (taps - 1) / 2
    kernel = torch.softmax(-(places**2) / (2 * sigma**2), 0)
    before, after = (taps - 1) // 2, taps // 2
    padded = F.pad(heatmap[None], (before, after, before, after))
    return F.conv2d(F.conv2d(padded, kernel[None, None, :, None]), kernel[None, None, None])[0]


def _transform(geometric: list[v2.Transform], photometric: list[v2.Transform], maps: str) -> Transform:
    if maps not in MAPS:
        raise ValueError(f"maps is {maps!r}; expected one of {', '.join(MAPS)}")
    return Transform(v2.Compose(geometric), v2.Compose(photometric), maps)


def _normalised(how: Preprocessing) -> list[v2.Transform]:
    return [v2.ToDtype(torch.float32, scale=True), how.normalise(), v2.ToPureTensor()]


def _colours() -> v2.Transform:
    """One of what TrivialAugment (Müller and Hutter, 2021) does to colours."""
    return v2.RandomChoice(
        [
            v2.Identity(),
            v2.ColorJitter(brightness=0.99),
            v2.ColorJitter(saturation=0.99),
            v2.ColorJitter(contrast=0.99),
            v2.RandomChoice([v2.RandomAdjustSharpness(0.01, 1.0), v2.RandomAdjustSharpness(1.99, 1.0)]),
            v2.RandomChoice([v2.RandomPosterize(bits, 1.0) for bits in range(2, 8)]),
            v2.RandomChoice([v2.RandomSolarize(threshold, 1.0) for threshold in range(0, 256, 32)]),
            v2.RandomAutocontrast(1.0),
            v2.RandomEqualize(1.0),
        ]
    )


def _resized(heatmap: Tensor, sides: tuple[int, ...] | torch.Size) -> Tensor:
    """A map [1, H, W] at other sides."""
    if heatmap.shape[1:] == tuple(sides):
        return heatmap
    return F.interpolate(heatmap[None], tuple(sides), mode="bilinear", antialias=True)[0]
