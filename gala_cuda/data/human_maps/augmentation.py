"""The augmentations of images with human maps: image and map are cropped and flipped alike."""

from dataclasses import dataclass

from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2

from ..augmentation import check_augment, random_erasing
from ..clickme_sample import ClickMeSample
from ..preprocessing import IMAGENET, Preprocessing
from .map_modes import check_map_mode, process_map, resize_map


@dataclass(frozen=True)
class ClickMeTransform:
    """A sample as it is read to what a network takes: float32, the image normalised.

    ``augmentation`` and ``centre_crop`` make it.
    """

    geometric: v2.Transform  # of image and map alike
    photometric: v2.Transform  # of the image alone
    map_mode: str

    def __call__(self, sample: ClickMeSample) -> ClickMeSample:
        """Random numbers come from torch's global generator alone. Where the crop has no map above 0, there is none."""
        heatmap = resize_map(sample.heatmap, sample.image.shape[1:])
        if sample.has_map:
            heatmap = process_map(heatmap, self.map_mode)
        image, heatmap = self.geometric(tv_tensors.Image(sample.image), tv_tensors.Image(heatmap))
        heatmap = heatmap.as_subclass(Tensor)
        return ClickMeSample(self.photometric(image), sample.label, heatmap, sample.has_map & (heatmap > 0).any())


def augmentation(
    augment: str, size: int, map_mode: str, preprocessing: Preprocessing = IMAGENET, erasing: float | None = None
) -> ClickMeTransform:
    """To train on: image [3, size, size] and map [1, size, size], augmented by the name ``augment``.

    "paper" is ClickMe's own: images of 256 pixels, a random square of 224 of them (8 to 7 for other sizes), a flip
    (paper's released code). "modern" and "randaugment" crop 8 to 100 % of the area, flip, then change the image by one
    or two of the operations on colours that TrivialAugment draws from, and erase; they neither rotate nor shear.
    "none" crops the centre. ``erasing`` is the probability of erasing, where it is not what ``augment`` says, and
    ``map_mode`` is as for ``process_map``.

    Raises ValueError where there is no such ``augment`` or ``map_mode``.
    """
    check_augment(augment)
    check_map_mode(map_mode)
    last = [*preprocessing.normalisation(), *random_erasing(augment, erasing)]
    flip = v2.RandomHorizontalFlip()
    if augment in ("none", "paper"):
        random = [v2.RandomCrop(size, pad_if_needed=True), flip] if augment == "paper" else [v2.CenterCrop(size)]
        return ClickMeTransform(v2.Compose([preprocessing.resize(size), *random]), v2.Compose(last), map_mode)
    colours = [_random_colour_operation() for _ in range(1 if augment == "modern" else 2)]
    return ClickMeTransform(
        v2.Compose([v2.RandomResizedCrop(size), flip]),
        v2.Compose([*colours, *last]),
        map_mode,
    )


def centre_crop(size: int, map_mode: str, preprocessing: Preprocessing = IMAGENET) -> ClickMeTransform:
    """The centre of image and map. Raises ValueError where there is no such ``map_mode``."""
    check_map_mode(map_mode)
    crop = v2.Compose([preprocessing.resize(size), v2.CenterCrop(size)])
    return ClickMeTransform(crop, v2.Compose(preprocessing.normalisation()), map_mode)


def _random_colour_operation() -> v2.Transform:
    """One of the operations on colours of TrivialAugment (Müller and Hutter, 2021)."""
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
