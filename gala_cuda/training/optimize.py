"""What one step is made of: parameter groups, mixed images, averaged weights."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torchvision.transforms import v2

from ..data.batches import derive_seed
from ..layer import GALA
from ..models import SqueezeExcite
from .distributed import fill
from .recipe import Recipe


def optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """Of all parameters, in a group with and a group without weight decay."""
    spared = set() if recipe.decay_attention else {
        parameter for layer in model.modules() if isinstance(layer, (GALA, SqueezeExcite))
        for parameter in layer.parameters()
    }  # fmt: skip
    groups: dict[bool, list[nn.Parameter]] = {True: [], False: []}
    for parameter in model.parameters():
        groups[parameter not in spared and (recipe.decay_vectors or parameter.dim() > 1)].append(parameter)
    decayed = [
        {"params": parameters, "weight_decay": recipe.weight_decay if decays else 0.0}
        for decays, parameters in groups.items()
        if parameters
    ]
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(decayed, lr=recipe.peak_lr, betas=(recipe.momentum, 0.999))
    return torch.optim.SGD(decayed, lr=recipe.peak_lr, momentum=recipe.momentum, nesterov=recipe.momentum > 0)


Mix = Callable[[Tensor, Tensor, int], tuple[Tensor, Tensor]]


def mix(recipe: Recipe, classes: int, rank: int) -> Mix | None:
    """Mixup and cutmix: (images, labels [n], part's number) to (images, targets [n, classes]); None where both are off.

    What is drawn depends on the recipe's seed, the rank and the number alone.
    """
    chosen: list[nn.Module] = []
    if recipe.mixup:
        chosen.append(v2.MixUp(alpha=recipe.mixup, num_classes=classes))
    if recipe.cutmix:
        chosen.append(v2.CutMix(alpha=recipe.cutmix, num_classes=classes))
    if not chosen:
        return None
    transform = v2.RandomChoice(chosen)

    def mixed(images: Tensor, labels: Tensor, number: int) -> tuple[Tensor, Tensor]:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(derive_seed(recipe.seed, rank, number))
            return transform(images, labels)

    return mixed


class Average:
    """The exponential moving average of a network's state, its integers copied.

    Early on the decay is smaller, (1 + n) / (10 + n) at update n, so that the random start is soon forgotten.
    """

    def __init__(self, model: nn.Module, decay: float):
        self.model, self.decay, self.updates = model, decay, 0
        self.state = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}

    @torch.no_grad()
    def update(self) -> None:
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        self.updates += 1
        own = self.model.state_dict()
        floats = [name for name, tensor in self.state.items() if tensor.is_floating_point()]
        torch._foreach_lerp_([self.state[name] for name in floats], [own[name] for name in floats], 1 - decay)
        for name, tensor in self.state.items():
            if not tensor.is_floating_point():
                tensor.copy_(own[name])

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The network has the averaged weights meanwhile."""
        own = self.model.state_dict()
        kept = {name: tensor.detach().clone() for name, tensor in own.items()}
        fill_local(own, self.state)
        try:
            yield
        finally:
            fill_local(own, kept)

    def load(self, state: dict[str, Tensor], updates: int) -> None:
        fill(self.state, state)
        self.updates = updates


@torch.no_grad()
def fill_local(into: dict[str, Tensor], state: dict[str, Tensor]) -> None:
    """Copies a state dict into another of the same network, shard by shard."""
    for name, target in into.items():
        target.copy_(state[name])
