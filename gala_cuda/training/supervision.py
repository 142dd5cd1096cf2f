"""Supervision by human maps in a training step: which loss, what the network is asked for, what cannot go together."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..clickme.loss import GalaMapLoss, HarmonizationLoss
from ..clickme.score import returns_maps
from ..layer import GALA
from . import distributed
from .recipe import Recipe, RecipeError

Call = Callable[..., Any]  # the network: images, and perhaps return_maps=True


class Supervision:
    """The map loss of ``recipe`` for ``model``.

    Attributes:
        by_gradients: whether input gradients are taught, and not attention.

    Raises:
        RecipeError: this network, or another setting of the recipe, does not go with that loss.
    """

    def __init__(self, model: nn.Module, recipe: Recipe, device: torch.device):
        for name in ("mixup", "cutmix"):
            if getattr(recipe, name):
                raise RecipeError(
                    name,
                    f"is {getattr(recipe, name)}; expected 0 with human maps, each of which is of one image",
                    ["clickme"],
                )
        self.by_gradients = recipe.clickme_loss == "harmonization"
        if self.by_gradients:
            _refuse_without_double_backward(recipe)
            self._taught = partial(_of_gradients, HarmonizationLoss().to(device))
        elif returns_maps(model):
            channels = [layer.channels for layer in model.modules() if isinstance(layer, GALA)]
            self._taught = partial(_of_maps, GalaMapLoss(recipe.clickme_loss, channels=channels).to(device))
        else:
            raise RecipeError(
                "clickme_loss",
                f"is {recipe.clickme_loss!r}, but {type(model).__name__} returns no attention maps; expected a "
                "gala_resnet of this package, or harmonization, or clickme_weight 0",
                ["model", "clickme"],
            )

    def __call__(
        self, call: Call, images: Tensor, labels: Tensor, heatmap: Tensor, has_map: Tensor
    ) -> tuple[Tensor, Tensor]:
        """(logits float32 [n, K], each image's loss before the weight [n], 0 where there is no map) by ``call``."""
        return self._taught(call, images, labels, heatmap, has_map)


def _of_maps(
    loss: GalaMapLoss, call: Call, images: Tensor, labels: Tensor, heatmap: Tensor, has_map: Tensor
) -> tuple[Tensor, Tensor]:
    logits, maps = call(images, return_maps=True)
    return logits.float(), loss.per_image(maps, heatmap, has_map)


def _of_gradients(
    loss: HarmonizationLoss, call: Call, images: Tensor, labels: Tensor, heatmap: Tensor, has_map: Tensor
) -> tuple[Tensor, Tensor]:
    images = images.detach().requires_grad_()
    logits = call(images).float()
    return logits, loss.per_image(logits, images, labels, heatmap, has_map)


def _refuse_without_double_backward(recipe: Recipe) -> None:
    twice = "with clickme_loss harmonization, which differentiates twice"
    if recipe.compile:
        raise RecipeError("compile", f"is True; expected False {twice}: compiled code cannot", ["clickme_loss"])
    if recipe.precision == "float16":
        raise RecipeError(
            "precision", f"is 'float16'; expected float32 or bfloat16 {twice}: gradients underflow", ["clickme_loss"]
        )
    if recipe.parallel == "fsdp" and distributed.world().size > 1:
        raise RecipeError("parallel", f"is 'fsdp'; expected 'ddp' {twice}: shards cannot", ["clickme_loss"])
