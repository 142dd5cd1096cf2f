"""Mixup and cutmix: images and labels of a batch mixed with one another."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torchvision.transforms import v2

from ..data.batches import derive_seed
from .recipe import Recipe

# (images [n, C, H, W], labels [n], the batch's number) to (mixed images, targets [n, classes])
Mixing = Callable[[Tensor, Tensor, int], tuple[Tensor, Tensor]]


def build_mixing(recipe: Recipe, classes: int, rank: int) -> Mixing | None:
    """Mixup, cutmix, or one of both by chance, as the recipe says; None where both are off.

    What is drawn depends on the recipe's seed, the rank and the batch's number alone.
    """
    transforms: list[nn.Module] = []
    if recipe.mixup:
        transforms.append(v2.MixUp(alpha=recipe.mixup, num_classes=classes))
    if recipe.cutmix:
        transforms.append(v2.CutMix(alpha=recipe.cutmix, num_classes=classes))
    if not transforms:
        return None
    transform = v2.RandomChoice(transforms)

    def mix(images: Tensor, labels: Tensor, number: int) -> tuple[Tensor, Tensor]:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(derive_seed(recipe.seed, rank, number))
            return transform(images, labels)

    return mix
