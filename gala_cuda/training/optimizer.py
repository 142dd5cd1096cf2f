"""The optimizer of a recipe: what it is, and the weight decay and learning rate of each parameter."""

import inspect
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from ..layer import GALA
from ..models import SqueezeExcite
from .recipe import Recipe, RecipeError

LR_SCALE = "lr_scale"  # key of a group of parameters: factor of the learning rate
# torch's by name. LBFGS, Rprop and SparseAdam, which are not for steps of dense gradients of some images each, take no
# weight decay; Muon takes matrices alone, where timm's takes convolutions too.
TORCH: dict[str, type[Any]] = {
    name.lower(): found
    for name, found in sorted(vars(torch.optim).items(), key=lambda item: item[0].lower())
    if name != "Muon" and inspect.isclass(found) and "weight_decay" in inspect.signature(found).parameters
}


def build_optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """One of `TORCH` or of timm's over all parameters that are trained, in groups of one weight decay and LR_SCALE.

    The recipe's momentum is that of an optimizer that has one, or the first beta of torch's.

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
    found = TORCH.get(recipe.optimizer.lower())
    return _of_timm(options, recipe) if found is None else _of_torch(found, options, recipe)


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


def _of_torch(kind: type[Any], options: list[dict], recipe: Recipe) -> torch.optim.Optimizer:
    taken, given = inspect.signature(kind).parameters, dict[str, Any]()
    if "momentum" in taken:
        given["momentum"] = recipe.momentum
    if "nesterov" in taken:
        given["nesterov"] = recipe.momentum > 0
    if "betas" in taken:
        given["betas"] = recipe.momentum, *taken["betas"].default[1:]
    return kind(options, lr=recipe.peak_lr, **given)


def _of_timm(options: list[dict], recipe: Recipe) -> torch.optim.Optimizer:
    known = f"expected {', '.join(TORCH)} or the name of one of timm's"
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
