"""How to train: the numbers."""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Recipe:
    """SGD with Nesterov momentum, linear warm-up, then cosine decay to zero.

    Weight decay spares vectors: the scales and shifts of normalisations, biases, and GALA's a, m and v_collapse.
    """

    epochs: int = 20
    lr: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 5e-4
    warm_up: float = 0.1  # share of the training
    time_limit: float | None = None  # seconds; the schedule shrinks to fit, and training ends

    def __post_init__(self) -> None:
        for name in ("epochs", "lr", "time_limit"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"{name} is {value}; expected more than 0")
        for name in ("momentum", "warm_up"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; expected 0 <= {name} < 1")
        if not self.weight_decay >= 0:
            raise ValueError(f"weight_decay is {self.weight_decay}; expected at least 0")

    def lr_share(self, progress: float) -> float:
        """The learning rate over ``lr`` when ``progress``, 0 to 1, of the training is done."""
        if progress < self.warm_up:
            return max(progress / self.warm_up, 0.01)
        return 0.5 * (1 + math.cos(math.pi * min(1.0, (progress - self.warm_up) / (1 - self.warm_up))))
