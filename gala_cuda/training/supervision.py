"""Supervision by human maps in a training step: what a loss asks of the network, and what it makes of its output."""

from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ..clickme.loss import GalaMapLoss, HarmonizationLoss
from ..models.with_maps import gala_layers
from . import distributed
from .recipe import Recipe, RecipeError


class Supervision(Protocol):
    """A map loss around the call of a network: `model(images, **options)` of what `prepare` gives, then `losses`."""

    def prepare(self, images: Tensor) -> tuple[Tensor, dict[str, bool]]:
        """(images [n, C, H, W] to call the network with, further arguments of that call)."""

    def losses(
        self, output: Any, images: Tensor, labels: Tensor, heatmap: Tensor, has_map: Tensor
    ) -> tuple[Tensor, Tensor]:
        """(logits float32 [n, K], map loss of each image before its weight [n], 0 where `has_map` [n] is False).

        `output` is the network's, `images` are those of `prepare`, `labels` [n], `heatmap` [n, 1, H, W].
        """


class AttentionSupervision:
    """Teaches the attention maps of the network's GALA layers."""

    def __init__(self, loss: GalaMapLoss):
        self.loss = loss

    def prepare(self, images: Tensor) -> tuple[Tensor, dict[str, bool]]:
        return images, {"return_maps": True}

    def losses(
        self, output: Any, images: Tensor, labels: Tensor, heatmap: Tensor, has_map: Tensor
    ) -> tuple[Tensor, Tensor]:
        logits, maps = output
        return logits.float(), self.loss.per_image(maps, heatmap, has_map)


class GradientSupervision:
    """Teaches the gradient of the true class's logit by the image, of any network."""

    def __init__(self, loss: HarmonizationLoss):
        self.loss = loss

    def prepare(self, images: Tensor) -> tuple[Tensor, dict[str, bool]]:
        return images.detach().requires_grad_(), {}

    def losses(
        self, output: Any, images: Tensor, labels: Tensor, heatmap: Tensor, has_map: Tensor
    ) -> tuple[Tensor, Tensor]:
        logits = output.float()
        return logits, self.loss.per_image(logits, images, labels, heatmap, has_map)


def build_supervision(model: nn.Module, recipe: Recipe, device: torch.device) -> Supervision:
    """The supervision that `recipe` asks for, of `model`, which is on `device`.

    Raises:
        RecipeError: this network, or another setting of the recipe, does not go with that loss.
    """
    for name in ("mixup", "cutmix"):
        if value := getattr(recipe, name):
            raise RecipeError(
                name, f"is {value}; expected 0 with human maps, each of which is of one image", ["clickme"]
            )
    if recipe.clickme_loss == "harmonization":
        _refuse_without_double_backward(recipe)
        return GradientSupervision(HarmonizationLoss().to(device))
    layers = gala_layers(model)
    if not layers:
        raise RecipeError(
            "clickme_loss",
            f"is {recipe.clickme_loss!r}, but {type(model).__name__} has no GALA; expected a gala_resnet, layers to "
            "put GALA into, harmonization, or clickme_weight 0",
            ["model", "clickme"],
        )
    channels = [layer.channels for _, layer in layers]
    return AttentionSupervision(GalaMapLoss(recipe.clickme_loss, channels=channels).to(device))


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
