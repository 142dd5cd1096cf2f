"""How pictures are prepared: as weights or the network's library say, but for what the recipe gives."""

from dataclasses import replace
from pathlib import Path

from ..data.choices import DIGITS, PREFIX
from ..data.preprocessing import Preprocessing
from ..errors import SettingError
from ..networks.loading import read_weights
from ..networks.network import default_preprocessing
from .recipe import Recipe, RecipeError

_FIELDS = ("channels", "mean", "std", "interpolation")


def size_and_preprocessing(recipe: Recipe) -> tuple[int | None, Preprocessing]:
    """(pixels of an image, None for the data's own; how pictures are prepared) of a training by `recipe`.

    Raises:
        SettingError: the weights cannot be read, there is no such network, or a field does not go with the others.
    """
    size, usual = default_preprocessing(recipe.model, recipe.image_size, recipe.weights and Path(recipe.weights).name)
    former = None if recipe.weights is None else read_weights(recipe.weights)[1]
    if former is not None:
        size, usual = recipe.image_size or former.size, former.preprocessing
    if recipe.source.startswith(PREFIX):
        if given := [name for name in _FIELDS if getattr(recipe, name)]:
            raise RecipeError(
                given[0], f"is {getattr(recipe, given[0])}, and {recipe.source} is taken as it is; expected none"
            )
        return recipe.image_size if recipe.source == DIGITS else size, usual
    if recipe.clickme and recipe.channels not in (None, 3):
        raise RecipeError("channels", f"is {recipe.channels}; expected 3 with human maps", ["clickme"])
    return size, prepared(recipe, usual)


def prepared(recipe: Recipe, usual: Preprocessing) -> Preprocessing:
    """`usual`, with the channels, mean, std and interpolation that `recipe` gives.

    Raises:
        SettingError: mean or std are for another number of channels, or interpolation is not for that.
    """
    channels = recipe.channels or usual.channels
    for name in ("mean", "std"):
        values = getattr(recipe, name)
        if values and len(values) != channels:
            expected = "one number" if channels == 1 else f"{channels} numbers, one for each channel"
            raise RecipeError(name, f"is {' '.join(map(str, values))}; expected {expected}", ["channels"])
    interpolation = recipe.interpolation or usual.interpolation
    try:
        found = replace(usual, interpolation=interpolation).of_channels(channels)
    except ValueError as error:
        raise SettingError(("interpolation", "channels"), str(error)) from error
    return replace(found, mean=recipe.mean or found.mean, std=recipe.std or found.std)
