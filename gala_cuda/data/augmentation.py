"""The augmentations of pictures that a training chooses from, and the centre crop for testing."""

from torchvision.transforms import v2

from .choices import AUGMENTS
from .preprocessing import IMAGENET, Preprocessing

ERASE_PROBABILITY = 0.1  # of an image to lose a rectangle


def augmentation(augment: str, size: int, preprocessing: Preprocessing = IMAGENET) -> v2.Transform:
    """From a picture to a normalised tensor [3, size, size]. Random numbers come from torch's global generator alone.

    "paper" crops at random (8 to 100 % of the area) and flips; "modern" adds TrivialAugment (Müller and Hutter, 2021)
    and random erasing (Zhong et al., 2020), "randaugment" RandAugment (Cubuk et al., 2020) and erasing; "none" crops
    the centre.

    Raises ValueError for any other name.
    """
    check_augment(augment)
    if augment == "none":
        return centre_crop(size, preprocessing)
    crop = v2.RandomResizedCrop(size, interpolation=v2.InterpolationMode(preprocessing.interpolation))
    steps: list[v2.Transform] = [crop, v2.RandomHorizontalFlip()]
    bilinear = v2.InterpolationMode.BILINEAR
    if augment == "modern":
        steps.append(v2.TrivialAugmentWide(interpolation=bilinear))
    if augment == "randaugment":
        steps.append(v2.RandAugment(interpolation=bilinear))
    steps += [v2.ToImage(), *preprocessing.normalisation()]
    if augment != "paper":
        steps.append(v2.RandomErasing(ERASE_PROBABILITY))
    return v2.Compose(steps)


def centre_crop(size: int, preprocessing: Preprocessing = IMAGENET) -> v2.Transform:
    """The centre of a picture as a normalised tensor [3, size, size]; for ImageNet, 224 of 256 pixels."""
    return v2.Compose([preprocessing.resize(size), v2.CenterCrop(size), v2.ToImage(), *preprocessing.normalisation()])


def check_augment(augment: str) -> None:
    """Raises ValueError where there is no such augmentation."""
    if augment not in AUGMENTS:
        raise ValueError(f"augment is {augment!r}; expected one of {', '.join(AUGMENTS)}")
