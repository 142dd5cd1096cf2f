"""Opens networks that are trained already, by the file of their weights."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ..models.blocks import select_blocks
from ..networks import weights_file
from ..networks.errors import NetworkError, WeightsError
from ..networks.loading import infer_network, rebuild
from ..networks.network import Network, default_preprocessing
from .preparation import prepared
from .recipe import Recipe, RecipeError
from .recipe_file import resolve
from .trial import check

_IN_FOLDERS = ("best.safetensors", "weights.safetensors")  # of a training; of a checkpoint
_OF_NETWORK = ("model", "layers", "keep_output")


def open_network(
    place: Path,
    recipe: Recipe,
    given: Mapping[str, Any],
    say: Callable[[str], object],
    fixed: Collection[str] = _OF_NETWORK,
) -> tuple[nn.Module, Network]:
    """The network of the weights at `place`, a file or the folder of a training, tried on an empty image.

    Where the file names its network, the fields `fixed` of the recipe may only repeat it, if they are among those
    that are `given`; the images' size, mean, std and interpolation may differ. Where it does not, `recipe` says which
    network it is.

    Raises:
        NetworkError: a field does not go with the weights.
        WeightsError: they cannot be read, or are of another network.
    """
    path = weights_in(place)
    file = weights_file.read(path)
    if file.entry is not None:
        averaged = " (averaged)" if file.entry.split(".")[-1] in weights_file.AVERAGED else ""
        say(f"weights: {file.entry} of {path}{averaged}")
    network = Network.from_metadata(file.metadata, path)
    if network is None:
        network = infer_network(
            path, file.tensors, given.get("model"), recipe.layers, recipe.keep_output, recipe.image_size
        )
        say(f"pictures, as is usual for {network.model}: {network.preprocessing.describe(network.size)}")
    else:
        _refuse_others(path, network, file.tensors, {name: given[name] for name in fixed if name in given})
    size = recipe.image_size or network.size
    try:
        model = rebuild(replace(network, size=size), file.tensors)
    except WeightsError as error:
        usual, _ = default_preprocessing(network.model, None)
        if recipe.image_size and _fit(replace(network, size=usual or network.size), file.tensors):
            raise NetworkError(
                "image_size", f"image_size is {size}, and {path} is for other images: {error}"
            ) from error
        raise
    network = replace(network, size=size, preprocessing=prepared(recipe, network.preprocessing))
    check(model, network)
    return model, network


def _fit(network: Network, weights: Mapping[str, Tensor]) -> bool:
    try:
        rebuild(network, weights)
    except (NetworkError, WeightsError):
        return False
    return True


def weights_in(place: Path) -> Path:
    """The file of weights at `place`, which may be the folder of a training. Raises WeightsError."""
    if not place.is_dir():
        return place
    found = [place / name for name in _IN_FOLDERS if (place / name).is_file()]
    if not found:
        raise WeightsError(f"{place} holds none of {', '.join(_IN_FOLDERS)}")
    return found[0]


def trained_on(place: Path) -> tuple[dict[str, Any], Path]:
    """(the fields that say which images, of the recipe beside the weights at `place`, or none; that recipe's file).

    Raises:
        RecipeError: the recipe cannot be read.
    """
    beside = (place if place.is_dir() else place.parent) / "recipe.yaml"
    if not beside.is_file():
        return {}, beside
    try:
        recipe = resolve(str(beside), {})
    except RecipeError as error:
        raise RecipeError("data", f"is not given, and is not known from {beside}: {error}") from error
    given = {} if recipe.val_share is None else {"val_share": recipe.val_share, "seed": recipe.seed}
    for name in ("image_column", "label_column", "multi_label", "stream", "loss"):
        if value := getattr(recipe, name):
            given[name] = value
    return {"data": recipe.data, "clickme": recipe.clickme, **given}, beside


def _refuse_others(path: Path, network: Network, weights: Collection[str], given: dict[str, Any]) -> None:
    """Raises NetworkError for a field that contradicts what `path` says of its network."""
    for name, field in given.items():
        value = tuple(field) if isinstance(field, list) else field
        own = network.gala_layers if name == "layers" else getattr(network, name)
        if value == own or (name == "layers" and _blocks(weights, value) == _blocks(weights, own)):
            continue
        here, there = (" ".join(entry) if isinstance(entry, tuple) else entry for entry in (value, own))
        raise NetworkError(name, f"{name} is {here}, but {path} holds a network with {name} {there or 'none'}")


def _blocks(weights: Collection[str], layers: tuple[str, ...]) -> list[str]:
    """The residual blocks, among those whose `weights` there are, that `layers` lead to."""
    names = [name.removesuffix(".conv1.weight") for name in weights if name.endswith(".conv1.weight")]
    try:
        return select_blocks(names, layers, "layers") if layers else []
    except ValueError as error:
        raise NetworkError("layers", str(error)) from error
