"""The augmentations of pictures that a training chooses from, and the crops for testing."""

import torch
from torch import Tensor
from torchvision.transforms import v2

from ..errors import SettingError
from .choices import AUGMENTS, VIEWS
from .preprocessing import IMAGENET, Preprocessing

_ERASING = {"modern": 0.1, "randaugment": 0.1}  # probability of an image to lose a rectangle


def augmentation(
    augment: str, size: int, preprocessing: Preprocessing = IMAGENET, erasing: float | None = None
) -> v2.Transform:
    """From a picture to a normalised tensor [channels, size, size], by torch's global generator alone.

    "paper" crops at random (8 to 100 % of the area) and flips; "modern" adds TrivialAugment (Müller and Hutter, 2021)
    and random erasing (Zhong et al., 2020), "randaugment" RandAugment (Cubuk et al., 2020) and erasing; "none" crops
    the centre. ``erasing`` is the probability of erasing, where it is not what ``augment`` says.

    Raises:
        ValueError: there is no such ``augment``.
        SettingError: it is not for four channels.
    """
    check_augment(augment)
    erase = random_erasing(augment, erasing)
    if augment == "none":
        return v2.Compose([centre_crop(size, preprocessing), *erase])
    bilinear = v2.InterpolationMode.BILINEAR
    colours: dict[str, v2.Transform] = {
        "modern": v2.TrivialAugmentWide(interpolation=bilinear), "randaugment": v2.RandAugment(interpolation=bilinear)
    }  # fmt: skip
    if augment in colours and preprocessing.channels == 4:
        raise SettingError(
            ("augment", "channels"), f"augment is {augment!r}; expected paper or none with pictures of four channels"
        )
    crop = v2.RandomResizedCrop(size, interpolation=v2.InterpolationMode(preprocessing.interpolation))
    steps = [*preprocessing.opening(), crop, v2.RandomHorizontalFlip()]
    steps += [colours[augment]] if augment in colours else []
    return v2.Compose([*steps, v2.ToImage(), *preprocessing.normalisation(), *erase])


def random_erasing(augment: str, probability: float | None = None) -> list[v2.Transform]:
    """The last step of an augmentation: random erasing of normalised images, if there is any."""
    chosen = _ERASING.get(augment, 0.0) if probability is None else probability
    return [v2.RandomErasing(chosen)] if chosen else []


def centre_crop(size: int, preprocessing: Preprocessing = IMAGENET) -> v2.Transform:
    """The centre of a picture as a normalised tensor [channels, size, size]; for ImageNet, 224 of 256 pixels."""
    return v2.Compose([preprocessing.resize(size), v2.CenterCrop(size), v2.ToImage(), *preprocessing.normalisation()])


def several_views(views: str, size: int, preprocessing: Preprocessing = IMAGENET) -> v2.Transform:
    """Several views of a picture as one tensor [views, channels, size, size], normalised.

    "flip" is the centre and its mirror image, "five-crops" the corners and the centre of the scaled picture,
    "ten-crops" these and their mirror images (Krizhevsky et al., 2012).

    Raises ValueError for any other name.
    """
    if views not in VIEWS:
        raise ValueError(f"views is {views!r}; expected one of {', '.join(VIEWS)}")
    if views == "flip":
        return v2.Compose([centre_crop(size, preprocessing), _with_mirror_image])
    crops = v2.FiveCrop(size) if views == "five-crops" else v2.TenCrop(size)
    return v2.Compose([
        preprocessing.resize(size), v2.ToImage(), crops, *preprocessing.normalisation(), torch.stack
    ])  # fmt: skip


def _with_mirror_image(image: Tensor) -> Tensor:
    return torch.stack([image, image.flip(-1)])


def check_augment(augment: str) -> None:
    """Raises ValueError where there is no such augmentation."""
    if augment not in AUGMENTS:
        raise ValueError(f"augment is {augment!r}; expected one of {', '.join(AUGMENTS)}")
