"""Prepares a training: loads the images of its recipe and builds the network for them."""

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import nn

from ..data.choices import DIGITS
from ..data.load import Data, load
from ..data.preprocessing import IMAGENET, Preprocessing
from ..errors import SettingError
from ..networks.classes import match_classes
from ..networks.loading import initial_model
from ..networks.network import Network
from . import distributed
from .preparation import size_and_preprocessing
from .recipe import Recipe, RecipeError
from .trial import check, check_training

SMALL_IMAGE = 64  # pixels; below, the stem keeps the resolution

Say = Callable[[str], object]  # shows a line to the user


class Start(NamedTuple):
    """A network before its first step, its description, the images, and the recipe with their size and its width.

    The size of the description is that of the images to test on.
    """

    model: nn.Module
    network: Network
    data: Data
    recipe: Recipe


def start(recipe: Recipe, device: torch.device, say: Say) -> Start:
    """Reads the images of `recipe`, and builds its network, which is tried on an empty one; nothing is written.

    Raises:
        SettingError: the images cannot be had, there is no such network, or the two do not go together.
    """
    if recipe.keep_output and not recipe.weights:
        raise RecipeError("keep_output", "is True, but weights is None; expected --weights FILE", ["weights"])
    if recipe.keep_output and recipe.init != "half":
        raise RecipeError("init", f"is {recipe.init!r}; expected 'half' with keep_output", ["keep_output"])
    size, preprocessing = size_and_preprocessing(recipe)
    data = load_images(recipe, recipe.micro_batch_size(distributed.world().size), size, preprocessing, device, say)
    say(
        f"data: {recipe.source}: {data.train.total:,} images of {len(data.classes):,} classes to train on, "
        f"{data.test.total:,} held out"
    )
    network = network_of(recipe, data.classes, data.channels, data.size, preprocessing)
    recipe = replace(recipe, image_size=network.size, width=network.width)
    torch.manual_seed(recipe.seed)
    model = initial_model(network, recipe.weights, say)
    check_training(model, network, recipe, data.train.images // len(data.train) // distributed.world().size)
    if recipe.test_size:
        network = replace(network, size=recipe.test_size)
        check(model, network, "test_size")
    return Start(model, network, data, recipe)


def load_images(
    recipe: Recipe,
    batch_size: int,
    size: int | None,
    preprocessing: Preprocessing,
    device: torch.device,
    say: Say,
    tta: str | None = None,
) -> Data:
    """This process's share of the images of `recipe`, in batches: `size` pixels, after `preprocessing`.

    `tta` is that of `gala_cuda.data.load.load`.

    Raises:
        SettingError: they cannot be had.
    """
    world = distributed.world()
    blurred = recipe.clickme_loss == "harmonization"  # gala_tpu's loss blurs them itself, after the crop
    map_mode = None if recipe.clickme is None else "harmonization" if blurred else "paper"
    try:
        data = load(
            recipe.source, batch_size, recipe.seed, size, recipe.workers, rank=world.rank, world=world.size,
            augment=recipe.augment, erasing=recipe.erasing, repeats=recipe.repeats, preprocessing=preprocessing,
            test_size=recipe.test_size, tta=tta, map_mode=map_mode, val_share=recipe.val_share,
            columns=recipe.columns, stream=recipe.stream, pin_memory=device.type == "cuda",
        )  # fmt: skip
    except SettingError:
        raise
    except (FileNotFoundError, ValueError) as error:
        raise SettingError([recipe.source_field, "val_share"], str(error)) from error
    for note in data.notes:
        say(note)
    return data


def network_of(
    recipe: Recipe, classes: tuple[str, ...], channels: int, size: int, preprocessing: Preprocessing = IMAGENET
) -> Network:
    """The network of `recipe` for images of `channels` and `size` pixels, after `preprocessing`."""
    stem = "small" if size < SMALL_IMAGE else "imagenet"
    width = recipe.width or (16 if recipe.source == DIGITS else 64)
    return Network(
        recipe.model, recipe.layers, width, recipe.keep_output, stem, classes, channels, size, preprocessing,
        init=recipe.init, multi_label=recipe.multi_label,
    )  # fmt: skip


def class_numbers(recipe: Recipe, data: Data, network: Network, say: Say) -> list[int]:
    """The number that `network` has for each class of `data`, the images of `recipe`, by the classes' names.

    Raises:
        SettingError: the network has other classes, or takes images of other channels.
    """
    try:
        if data.channels != network.channels:
            raise ValueError(
                f"has images of {data.channels} channels; expected {network.channels}, as the network takes"
            )
        if network.multi_label and not recipe.multi_label:
            raise RecipeError("multi_label", "is False; expected True, as the weights' training had it")
        numbers, note = match_classes(data.classes, network.classes)
    except RecipeError:
        raise
    except ValueError as error:
        raise SettingError([recipe.source_field], f"{recipe.source} {error}") from error
    if note is not None:
        say(note)
    return numbers
