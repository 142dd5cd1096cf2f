"""A forward pass of empty images before anything is written, so that a setting that cannot work is refused by name."""

import torch
from torch import Tensor, nn

from ..models.mode import in_mode
from ..networks.errors import NetworkError
from ..networks.network import Network
from .recipe import Recipe, RecipeError

# What networks raise, theirs and ours, on images that they cannot take.
_REFUSALS = (AssertionError, IndexError, RuntimeError, TypeError, ValueError)


def check(model: nn.Module, network: Network, name: str = "image_size") -> None:
    """`model`, on the CPU and the network that `network` describes, gives logits of an image in evaluation mode.

    Its mode is restored. `name` is the field that its images' size comes from.

    Raises:
        NetworkError: it does not, for images of that size or for any.
    """
    try:
        logits = _logits(model, network, 1, training=False)
    except _REFUSALS as error:
        raise NetworkError(
            name, f"{network.model} takes no images of {network.size} x {network.size} pixels: {_line(error)}"
        ) from error
    _expect_logits(logits, network, 1, "")


def check_training(model: nn.Module, network: Network, recipe: Recipe, images: int) -> None:
    """As `check`, and in training mode of micro-batches of `images`; buffers and random numbers stay as they were.

    Raises:
        NetworkError: as `check` does, or there are several outputs in training.
        RecipeError: micro-batches of one image are too few.
    """
    check(model, network)
    count = min(images, 2)
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    try:
        with torch.random.fork_rng(devices=[]):
            logits = _logits(model, network, count, training=True)
    except _REFUSALS as error:
        if count > 1:
            raise NetworkError("model", f"{network.model} cannot be trained: {_line(error)}") from error
        raise _too_few(network, recipe) from error
    finally:
        with torch.no_grad():
            for buffer, before in buffers:
                buffer.copy_(before)
    _expect_logits(logits, network, count, " in training")


def _too_few(network: Network, recipe: Recipe) -> RecipeError:
    why = (
        f"and so a micro-batch of one image; {network.model} needs at least 2 with images of {network.size} pixels, "
        "since BatchNorm would have one value per channel"
    )
    if recipe.accumulate > 1:
        return RecipeError(
            "accumulate", f"is {recipe.accumulate} with batch_size {recipe.batch_size}, {why}", ["batch_size"]
        )
    if recipe.batch_size == 1:
        return RecipeError("batch_size", f"is 1, {why}")
    return RecipeError(recipe.source_field, f"{recipe.source} has one image to train on for each process, {why}")


@torch.no_grad()
def _logits(model: nn.Module, network: Network, count: int, training: bool) -> Tensor:
    with in_mode(model, training=training):
        return model(torch.zeros(count, network.channels, network.size, network.size))


def _expect_logits(logits: Tensor, network: Network, count: int, when: str) -> None:
    expected = (count, len(network.classes))
    if not isinstance(logits, Tensor) or logits.shape != expected:
        found = list(logits.shape) if isinstance(logits, Tensor) else f"a {type(logits).__name__}"
        raise NetworkError("model", f"{network.model} gives {found}{when}; expected logits {list(expected)}")


def _line(error: Exception) -> str:
    """The first line of what torch or a library says."""
    return (str(error).splitlines() or [type(error).__name__])[0]
