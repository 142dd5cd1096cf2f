"""One step of a training: forward and backward in parts, the optimizer, averaged weights; and the state of all that."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..clickme.score import MapScoreMeter, returns_maps
from ..data.batches import Batch
from . import distributed
from .evaluate import autocast, on
from .meters import Meter, training_flops
from .optimize import Average, mix, optimizer
from .recipe import Recipe, RecipeError
from .supervision import Supervision


class Stepper:
    """Trains ``model``, which it moves to ``device``; ``shape`` (channels, height, width) is that of an image.

    Attributes:
        model: the network itself, by whose names weights are saved.
        flops: of one image, forward and backward.
        lr: of the last step.

    Raises:
        RecipeError: BatchNorm is to be synchronised on a CPU, or the map loss does not go with network or recipe.
    """

    def __init__(
        self, model: nn.Module, recipe: Recipe, device: torch.device, classes: int, shape: tuple[int, int, int]
    ):
        self.recipe, self.device, self.lr = recipe, device, 0.0
        if recipe.sync_batchnorm:
            if device.type == "cpu":
                raise RecipeError("sync_batchnorm", "is True; expected False on a CPU, where torch has none")
            model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
        layout = torch.channels_last if recipe.channels_last else torch.contiguous_format
        self.model = model.to(device).to(memory_format=layout)
        self.flops = training_flops(self.model, torch.zeros(1, *shape, device=device))
        self.called = distributed.parallel(self.model, recipe, device)
        if recipe.compile:
            self.called.compile()
        self.optimizer = optimizer(self.model, recipe)
        self.scaler = torch.amp.GradScaler(device.type, enabled=recipe.precision == "float16")
        self.average = None if recipe.ema is None else Average(self.model, recipe.ema)
        self.mix = mix(recipe, classes, distributed.world().rank)
        self._supervision = Supervision(self.model, recipe, device) if recipe.clickme and recipe.map_weight else None

    def __call__(self, parts: list[Batch], lr: float, step: int, meter: Meter) -> Tensor:
        """Step number ``step`` on this rank's ``parts``; the mean loss, on the device. ``meter`` counts the images.

        Where parts hold human maps and their weight is not 0, the map loss is added.

        Raises:
            RecipeError: the map loss does not go with this network or recipe; nothing is trained.
        """
        recipe = self.recipe
        self.lr = lr
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        count, mean = sum(len(labels) for _, labels, *_ in parts), torch.zeros((), device=self.device)
        for number, part in enumerate(parts):
            images, labels, *maps = part
            images, labels = on(images, labels, self.device, recipe.channels_last)
            targets = labels
            if self.mix is not None:
                images, targets = self.mix(images, labels, step * recipe.accumulate + number)
            distributed.synchronised(self.called, number == len(parts) - 1)
            taught = [tensor.to(self.device, non_blocking=True) for tensor in maps if recipe.map_weight]
            if taught:
                logits, distances = self.supervision(self._forward, images, labels, *taught)
            else:
                logits = self._forward(images).float()
            loss = F.cross_entropy(logits, targets, label_smoothing=recipe.label_smoothing)
            meter.add(loss, logits, labels)
            if taught:
                meter.add_maps(distances, taught[1])
                loss = loss + recipe.map_weight * distances.mean()
            share = len(labels) / count
            self.scaler.scale(loss * share).backward()
            mean += loss.detach() * share
        if recipe.clip is not None:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.model.parameters(), recipe.clip)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad()
        if self.average is not None:
            self.average.update()
        return mean

    def _forward(self, images: Tensor, **options: bool) -> Any:
        with autocast(self.device, self.recipe.precision):
            return self.called(images, **options)

    def record(self) -> MapScoreMeter | None:
        """For test images with human maps: of attention, or of input gradients where those are taught; else None."""
        saliency = self._supervision is not None and self._supervision.by_gradients
        return MapScoreMeter(saliency) if saliency or returns_maps(self.model) else None

    @property
    def supervision(self) -> Supervision:
        """Made for the first part with human maps, unless the recipe has told of them before."""
        if self._supervision is None:
            self._supervision = Supervision(self.model, self.recipe, self.device)
        return self._supervision

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """The model has meanwhile the weights that count: the averaged ones, where there are some."""
        if self.average is None:
            yield
        else:
            with self.average.applied():
                yield

    def weights(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """(the model's, those that count) on the CPU; every rank has to call."""
        own = distributed.whole(self.model.state_dict())
        return own, own if self.average is None else distributed.whole(self.average.state)

    def state(self) -> dict[str, Any]:
        """Everything else that the next steps depend on; every rank has to call."""
        return {
            "optimizer": distributed.whole_optimizer(self.model, self.optimizer),
            "scaler": self.scaler.state_dict(),
            "average_updates": 0 if self.average is None else self.average.updates,
            "random": distributed.from_all(_random_state(self.device)),
        }

    def load(self, weights: dict[str, Tensor], averaged: dict[str, Tensor], state: dict[str, Any]) -> None:
        """Goes back to what ``weights`` and ``state`` gave; random numbers only for as many ranks."""
        distributed.fill(self.model.state_dict(), weights)
        distributed.fill_optimizer(self.model, self.optimizer, state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        if self.average is not None:
            self.average.load(averaged, state["average_updates"])
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
