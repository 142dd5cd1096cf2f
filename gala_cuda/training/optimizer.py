"""The optimizer of a recipe, and which parameters its weight decay is for."""

import torch
from torch import nn

from ..layer import GALA
from ..models import SqueezeExcite
from .recipe import Recipe


def build_optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """SGD or AdamW over all parameters, in one group with weight decay and one without."""
    groups: dict[bool, list[nn.Parameter]] = {True: [], False: []}
    attention = {
        parameter
        for layer in model.modules()
        if isinstance(layer, (GALA, SqueezeExcite))
        for parameter in layer.parameters()
    }
    for parameter in model.parameters():
        decays = (recipe.decay_vectors or parameter.dim() > 1) and (
            recipe.decay_attention or parameter not in attention
        )
        groups[decays].append(parameter)
    options = [
        {"params": parameters, "weight_decay": recipe.weight_decay if decays else 0.0}
        for decays, parameters in groups.items()
        if parameters
    ]
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(options, lr=recipe.peak_lr, betas=(recipe.momentum, 0.999))
    return torch.optim.SGD(options, lr=recipe.peak_lr, momentum=recipe.momentum, nesterov=recipe.momentum > 0)
