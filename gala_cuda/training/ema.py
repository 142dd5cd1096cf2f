"""Averaged weights: the exponential moving average (EMA) of a network over its training."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from .distributed import load_full_state_dict


class ModelEma:
    """The exponential moving average of a network's state dict; integers, such as BatchNorm's counters, are copied.

    Early on the decay is smaller, (1 + n) / (10 + n) at update n, so that the random start is soon forgotten.

    Attributes:
        state: the averages, by the names of the network's state dict; shards where the network is sharded.
        updates: how many there were.
    """

    def __init__(self, model: nn.Module, decay: float):
        self.model, self.decay, self.updates = model, decay, 0
        self.state = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}

    @torch.no_grad()
    def update(self) -> None:
        """Takes the network's present weights into the average."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        self.updates += 1
        current = self.model.state_dict()
        floats = [name for name, tensor in self.state.items() if tensor.is_floating_point()]
        torch._foreach_lerp_([self.state[name] for name in floats], [current[name] for name in floats], 1 - decay)
        for name, tensor in self.state.items():
            if not tensor.is_floating_point():
                tensor.copy_(current[name])

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The network has the averaged weights inside, and its own again afterwards."""
        current = self.model.state_dict()
        own = {name: tensor.detach().clone() for name, tensor in current.items()}
        _copy(current, self.state)
        try:
            yield
        finally:
            _copy(current, own)

    def load(self, state: Mapping[str, Tensor], updates: int) -> None:
        """Goes back to averages that were saved, whole, after so many updates."""
        load_full_state_dict(self.state, state)
        self.updates = updates


@torch.no_grad()
def _copy(into: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> None:
    """Copies a state dict into that of the same network, shard by shard."""
    for name, target in into.items():
        target.copy_(state[name])
