"""The weights that a command is given: where they are, which network, and what a flag may change about them."""

import argparse
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ..models.blocks import select
from ..networks import network as networks
from ..networks import weights_file
from ..networks.network import Network, NetworkError, WeightsError
from ..training.recipe import Recipe, RecipeError, resolve
from ..training.trial import check
from .training_arguments import given_flags

_IN_FOLDERS = ("best.safetensors", "weights.safetensors")  # of a training; of a checkpoint
_OF_NETWORK = ("model", "layers", "keep_output")
Say = Callable[[str], None]


def open_network(
    args: argparse.Namespace, recipe: Recipe, say: Say, fixed: Collection[str] = _OF_NETWORK
) -> tuple[nn.Module, Network]:
    """The network of ``args.weights_file`` with its weights, tried on an empty image.

    Where the file names its network, flags of the names ``fixed`` may only repeat it; the image size may differ.

    Raises:
        NetworkError: a flag does not go with the weights.
        WeightsError: they cannot be read, or are of another network.
    """
    path = weights_in(args.weights_file)
    file = weights_file.read(path)
    if file.entry is not None:
        averaged = " (averaged)" if file.entry.split(".")[-1] in weights_file.AVERAGED else ""
        say(f"weights: {file.entry} of {path}{averaged}")
    network, given = networks.named_in(file.metadata, path), given_flags(args)
    if network is None:
        network = networks.described_by(
            path, file.tensors, given.get("model"), recipe.layers, recipe.keep_output, recipe.image_size
        )
        say(f"pictures, as is usual for {network.model}: {network.how.described(network.size)}")
    else:
        _refuse_others(path, network, file.tensors, {name: given[name] for name in fixed if name in given})
    size = recipe.image_size or network.size
    try:
        model = networks.rebuilt(replace(network, size=size), file.tensors)
    except WeightsError as error:
        usual, _ = networks.prepared(network.model, None)
        if recipe.image_size and _fit(replace(network, size=usual or network.size), file.tensors):
            raise NetworkError(
                "image_size", f"image_size is {size}, and {path} is for other images: {error}"
            ) from error
        raise
    network = replace(network, size=size)
    check(model, network)
    return model, network


def _fit(network: Network, weights: Mapping[str, Tensor]) -> bool:
    try:
        networks.rebuilt(network, weights)
    except (NetworkError, WeightsError):
        return False
    return True


def weights_in(path: Path) -> Path:
    """The file of weights at ``path``, which may be the folder of a training. Raises WeightsError."""
    if not path.is_dir():
        return path
    found = [path / name for name in _IN_FOLDERS if (path / name).is_file()]
    if not found:
        raise WeightsError(f"{path} holds none of {', '.join(_IN_FOLDERS)}")
    return found[0]


def trained_on(path: Path) -> tuple[dict[str, Any], Path]:
    """(the fields data and clickme of the recipe beside the weights at ``path``, or none; that recipe's file).

    Raises:
        RecipeError: the recipe cannot be read.
    """
    beside = (path if path.is_dir() else path.parent) / "recipe.yaml"
    if not beside.is_file():
        return {}, beside
    try:
        recipe = resolve(str(beside), {})
    except RecipeError as error:
        raise RecipeError("data", f"is not given, and is not known from {beside}: {error}") from error
    return {"data": recipe.data, "clickme": recipe.clickme}, beside


def _refuse_others(path: Path, network: Network, weights: Collection[str], given: dict[str, Any]) -> None:
    """Raises NetworkError for a flag that contradicts what ``path`` says of its network."""
    for name, flag in given.items():
        value = tuple(flag) if isinstance(flag, list) else flag
        own = network.attended if name == "layers" else getattr(network, name)
        if value == own or (name == "layers" and _blocks(weights, value) == _blocks(weights, own)):
            continue
        shown = [" ".join(entry) if isinstance(entry, tuple) else entry for entry in (value, own)]
        raise NetworkError(name, f"{name} is {shown[0]}, but {path} holds a network with {name} {shown[1] or 'none'}")


def _blocks(weights: Collection[str], layers: tuple[str, ...]) -> list[str]:
    """The residual blocks, among those whose ``weights`` there are, that ``layers`` lead to."""
    names = [name.removesuffix(".conv1.weight") for name in weights if name.endswith(".conv1.weight")]
    try:
        return select(names, layers, "layers") if layers else []
    except ValueError as error:
        raise NetworkError("layers", str(error)) from error
