"""Chooses each network's learning rate and weight decay by its trials, on validation images alone."""

import statistics
from typing import Any

from .settings import Choice

Key = tuple[str, str]  # data set, network


def best(trials: list[dict[str, Any]]) -> dict[Key, Choice]:
    """The choices of the lowest error, of equal ones of the lowest cross-entropy, in the mean over trials."""
    by_choice: dict[Key, dict[Choice, list[dict[str, float]]]] = {}
    for trial in trials:
        own = by_choice.setdefault((trial["data"], trial["network"]), {})
        own.setdefault((trial["lr"], trial["decay"]), []).append(trial["val"])

    def rank(results: list[dict[str, float]]) -> tuple[float, float]:
        error, loss = (statistics.mean(result[name] for result in results) for name in ("error", "loss"))
        return error, loss

    return {key: min(own, key=lambda choice: rank(own[choice])) for key, own in by_choice.items()}
