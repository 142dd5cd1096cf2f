"""The network that a recipe starts from."""

from ..data.choices import DIGITS
from ..data.pictures import IMAGENET, Preprocessing
from ..networks.network import Network
from .recipe import Recipe

SMALL_IMAGE = 64  # pixels; below, the stem keeps the resolution


def network_of(
    recipe: Recipe, classes: tuple[str, ...], channels: int, size: int, how: Preprocessing = IMAGENET
) -> Network:
    """The network of ``recipe`` for images of ``channels`` and ``size`` pixels, prepared as ``how`` says."""
    stem = "small" if size < SMALL_IMAGE else "imagenet"
    width = recipe.width or (16 if recipe.source == DIGITS else 64)
    return Network(recipe.model, recipe.layers, width, recipe.keep_output, stem, classes, channels, size, how)
