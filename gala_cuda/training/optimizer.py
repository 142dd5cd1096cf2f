"""The optimizer of a recipe: what it is, and the weight decay and learning rate of each parameter."""

from collections.abc import Iterable

import torch
from torch import nn

from ..layer import GALA
from ..models import SqueezeExcite
from .recipe import OPTIMIZERS, Recipe, RecipeError

LR_SCALE = "lr_scale"  # key of a group of parameters: factor of the learning rate


def build_optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """SGD, AdamW or one of timm's over all parameters that are trained, in groups of one weight decay and LR_SCALE.

    Raises:
        RecipeError: there is no such optimizer, or timm, which has it, is not installed.
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    attention = {
        parameter
        for layer in model.modules()
        if isinstance(layer, (GALA, SqueezeExcite))
        for parameter in layer.parameters()
    }
    depths = layer_depths(name for name, _ in model.named_parameters())
    last = max(depths.values())
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        decays = (recipe.decay_vectors or parameter.dim() > 1) and (
            recipe.decay_attention or parameter not in attention
        )
        key = recipe.weight_decay if decays else 0.0, recipe.layer_decay ** (last - depths[name])
        groups.setdefault(key, []).append(parameter)
    options = [
        {"params": parameters, "weight_decay": decay, LR_SCALE: scale}
        for (decay, scale), parameters in sorted(groups.items(), reverse=True)
    ]
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(options, lr=recipe.peak_lr, momentum=recipe.momentum, nesterov=recipe.momentum > 0)
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(options, lr=recipe.peak_lr, betas=(recipe.momentum, 0.999))
    return _of_timm(options, recipe)


def layer_depths(names: Iterable[str]) -> dict[str, int]:
    """The depth of the layer that each parameter is in, by the parameters' `names` in the network's order, from 0.

    Numbered blocks, such as layer3.0 and blocks.7, are layers; so is what stands before, between or after them.
    """
    found, depth, last = dict[str, int](), 0, None
    for name in names:
        first, _, rest = name.partition(".")
        number, _, inside = rest.partition(".")
        block = f"{first}.{number}" if number.isdecimal() and inside else ""
        if last is not None and block != last:
            depth += 1
        found[name], last = depth, block
    return found


def _of_timm(options: list[dict], recipe: Recipe) -> torch.optim.Optimizer:
    known = f"expected {', '.join(OPTIMIZERS)} or the name of one of timm's"
    try:
        from timm.optim import create_optimizer_v2
    except ModuleNotFoundError as error:
        raise RecipeError("optimizer", f"is {recipe.optimizer!r}; {known}, and timm is not installed") from error
    try:
        found = create_optimizer_v2(options, recipe.optimizer, lr=recipe.peak_lr, momentum=recipe.momentum)
    except (AssertionError, ImportError, TypeError, ValueError) as error:
        raise RecipeError("optimizer", f"is {recipe.optimizer!r}; {known}: {error}") from error
    if getattr(found, "is_second_order", False):
        raise RecipeError("optimizer", f"is {recipe.optimizer!r}, which takes second derivatives; {known} without them")
    return found
