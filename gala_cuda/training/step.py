"""One step of a training: forward and backward on micro-batches, then the optimizer; and the state that it changes."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..clickme.score import MapScoreMeter
from ..data.batches import Batch
from ..models.with_maps import gala_layers
from . import distributed
from .criterion import Criterion
from .ema import ModelEma
from .evaluate import autocast, to_device
from .freeze import freeze
from .grad_checkpointing import checkpoint_blocks
from .meters import Meter, training_flops
from .mixing import build_mixing
from .optimizer import LR_SCALE, build_optimizer
from .recipe import Recipe, RecipeError
from .supervision import GradientSupervision, Supervision, build_supervision


class Stepper:
    """A network, which it moves to `device`, with all that trains it.

    Args:
        classes: number of them.
        shape: (channels, height, width) of an image.
        criterion: the loss, where it is not the recipe's without weights of classes.

    Attributes:
        model: the network itself, by whose names weights are saved.
        parallel_model: what is called in its place; the same where there is one process.
        flops: floating-point operations for one image, forward and backward.
        lr: the last step's learning rate.

    Raises:
        RecipeError: BatchNorm is to be synchronised on a CPU, the map loss does not go with network or recipe, there is
            no such optimizer, what is to be frozen is not there or is all, or there are no blocks to checkpoint.
    """

    def __init__(
        self,
        model: nn.Module,
        recipe: Recipe,
        device: torch.device,
        classes: int,
        shape: tuple[int, int, int],
        criterion: Criterion | None = None,
    ):
        self.recipe, self.device, self.lr = recipe, device, 0.0
        self.criterion = criterion or Criterion(
            recipe.criterion, recipe.label_smoothing, multi_label=recipe.multi_label
        )
        if recipe.sync_batchnorm:
            if device.type == "cpu":
                raise RecipeError("sync_batchnorm", "is True; expected False on a CPU, where torch has none")
            model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
        layout = torch.channels_last if recipe.channels_last else torch.contiguous_format
        self.model = model.to(device).to(memory_format=layout)
        self.flops = training_flops(self.model, torch.zeros(1, *shape, device=device))
        self._frozen = freeze(self.model, recipe.freeze)
        if recipe.grad_checkpointing:
            checkpoint_blocks(self.model)
        self.parallel_model = distributed.parallelize(self.model, recipe, device)
        if recipe.compile:
            self.parallel_model.compile(mode=recipe.compile_mode)
        self.optimizer = build_optimizer(self.model, recipe)
        self.scaler = torch.amp.GradScaler(device.type, enabled=recipe.precision == "float16")
        self.ema = None if recipe.ema is None else ModelEma(self.model, recipe.ema)
        self.mix = build_mixing(recipe, classes, distributed.world().rank)
        self._supervision: Supervision | None = None
        if recipe.clickme and recipe.map_weight:
            self._supervision = build_supervision(self.model, recipe, device)

    def __call__(self, micro_batches: list[Batch], lr: float, step: int, meter: Meter) -> Tensor:
        """Makes the step that `step` others came before; the mean loss of this rank's images, on the device.

        Where batches hold human maps and their weight is not 0, the map loss is added. `meter` counts all of it.

        Raises:
            RecipeError: the map loss does not go with this network or recipe; nothing is trained.
        """
        recipe, self.lr = self.recipe, lr
        mean_loss, count = torch.zeros((), device=self.device), sum(len(labels) for _, labels, *_ in micro_batches)
        for number, (images, labels, *maps) in enumerate(micro_batches):
            distributed.set_gradient_sync(self.parallel_model, number == len(micro_batches) - 1)
            images, labels = to_device(images, labels, self.device, recipe.channels_last)
            targets, options = labels, dict[str, bool]()
            if self.mix is not None:
                images, targets = self.mix(images, labels, step * recipe.accumulate + number)
            supervision = self.supervision if maps and recipe.map_weight else None
            if supervision is not None:
                heatmap, has_map = (tensor.to(self.device, non_blocking=True) for tensor in maps)
                images, options = supervision.prepare(images)
            with autocast(self.device, recipe.precision):
                output = self.parallel_model(images, **options)
            if supervision is None:
                logits, map_losses = output.float(), None
            else:
                logits, map_losses = supervision.losses(output, images, labels, heatmap, has_map)
            loss = self.criterion(logits, targets)
            meter.add(loss, logits, labels)
            if map_losses is not None:
                meter.add_maps(map_losses, has_map)
                loss = loss + recipe.map_weight * map_losses.mean()
            fraction = len(labels) / count
            self.scaler.scale(loss * fraction).backward()
            mean_loss += loss.detach() * fraction
        self._update()
        return mean_loss

    def train(self) -> None:
        """Brings the network to training mode, but for what is frozen."""
        self.model.train()
        for module in self._frozen:
            module.eval()

    def _update(self) -> None:
        """Changes the weights by their gradients."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr * group.get(LR_SCALE, 1.0)
        if self.recipe.clip is not None:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.clip)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad()
        if self.ema is not None:
            self.ema.update()

    @property
    def supervision(self) -> Supervision:
        """Made for the first batch with human maps, unless the recipe has told of them before."""
        if self._supervision is None:
            self._supervision = build_supervision(self.model, self.recipe, self.device)
        return self._supervision

    def map_meter(self) -> MapScoreMeter | None:
        """For test images with human maps: of attention, or of input gradients where those are taught; else None."""
        saliency = isinstance(self._supervision, GradientSupervision)
        return MapScoreMeter(saliency) if saliency or gala_layers(self.model) else None

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """The model has inside the weights that are tested: the averaged ones, if the recipe has them."""
        if self.ema is None:
            yield
        else:
            with self.ema.applied():
                yield

    def weights(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """(the model's, those that are tested), whole and on the CPU; every rank has to call."""
        own = distributed.full_state_dict(self.model.state_dict())
        return own, own if self.ema is None else distributed.full_state_dict(self.ema.state)

    def state(self) -> dict[str, Any]:
        """Everything else that the next steps depend on; every rank has to call."""
        return {
            "optimizer": distributed.full_optimizer_state(self.model, self.optimizer),
            "scaler": self.scaler.state_dict(),
            "average_updates": 0 if self.ema is None else self.ema.updates,
            "random": distributed.all_gather(_random_state(self.device)),
        }

    def load(self, weights: dict[str, Tensor], averaged: dict[str, Tensor], state: dict[str, Any]) -> None:
        """Goes back to what `weights` and `state` gave; to the random numbers only with as many ranks as then."""
        distributed.load_full_state_dict(self.model.state_dict(), weights)
        distributed.load_full_optimizer_state(self.model, self.optimizer, state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        if self.ema is not None:
            self.ema.load(averaged, state["average_updates"])
        world = distributed.world()
        if len(state["random"]) == world.size:
            _set_random_state(state["random"][world.rank], self.device)


def _random_state(device: torch.device) -> dict[str, Tensor]:
    states = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return states


def _set_random_state(states: dict[str, Tensor], device: torch.device) -> None:
    torch.set_rng_state(states["cpu"])
    if device.type == "cuda" and "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"], device)
