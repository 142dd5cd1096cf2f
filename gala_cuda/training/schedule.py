"""The learning rate in the course of a training."""

import math

from .recipe import Recipe


def learning_rate(recipe: Recipe, progress: float) -> float:
    """The learning rate of the next step when `progress`, a fraction in [0, 1], of the training is done.

    It rises from almost zero to `recipe.peak_lr` during the warm-up, then falls by the recipe's schedule. It is a
    function of the progress alone, so that a schedule fits any number of epochs.
    """
    return recipe.peak_lr * _factor(recipe, progress)


def _factor(recipe: Recipe, progress: float) -> float:
    if progress < recipe.warm_up:
        return max(progress / recipe.warm_up, 0.01)
    if recipe.schedule == "steps":
        return 0.1 ** sum(progress >= fraction for fraction in recipe.decay_at)
    if recipe.schedule != "cosine":
        raise NotImplementedError(f"no learning rate for the schedule {recipe.schedule!r}")
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (progress - recipe.warm_up) / (1 - recipe.warm_up))))
