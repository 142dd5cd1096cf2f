"""What a test counts of a network's answers: images by class and answer, or how well scores rank those with a label."""

from typing import Any

import numpy as np
import torch
from sklearn.metrics import average_precision_score
from torch import Tensor

from .distributed import all_gather, all_reduce


class Confusion:
    """Counts images by their class and the network's answer."""

    def __init__(self, device: torch.device):
        self._counts = torch.zeros(0, 0, dtype=torch.int64, device=device)

    def add(self, logits: Tensor, labels: Tensor) -> None:
        """Counts a batch: `logits` [n, K], `labels` [n]."""
        classes = logits.shape[1]
        if not len(self._counts):
            self._counts = self._counts.new_zeros(classes, classes)
        pairs = torch.bincount(labels * classes + logits.argmax(1), minlength=classes * classes)
        self._counts += pairs.view(classes, classes)

    def result(self) -> dict[str, Any]:
        """{"confusion": [K, K] int64 over all ranks}; every rank has to call."""
        return {"confusion": all_reduce(self._counts).cpu()}


class Scores:
    """Keeps scores and labels of all images, of any number of labels each."""

    def __init__(self) -> None:
        self._scores, self._labels = list[Tensor](), list[Tensor]()

    def add(self, logits: Tensor, labels: Tensor) -> None:
        """Keeps a batch: `logits` [n, K], `labels` [n, K] bool."""
        self._scores.append(logits.cpu())
        self._labels.append(labels.cpu())

    def result(self) -> dict[str, Any]:
        """{"average_precision": [K] float64, as of `average_precisions`, over all ranks}; every rank has to call."""
        parts = all_gather((torch.cat(self._labels), torch.cat(self._scores)))
        labels, scores = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
        return {"confusion": None, "average_precision": average_precisions(labels, scores)}


def average_precisions(labels: Tensor, scores: Tensor) -> Tensor:
    """[K] float64 in [0, 1], the area below the steps of precision over recall of each class; NaN where none has it.

    `labels` [n, K] bool and `scores` [n, K] are on the CPU.
    """
    return torch.tensor([
        average_precision_score(have, rank) if have.any() else np.nan
        for have, rank in zip(labels.T.numpy(), scores.T.numpy(), strict=True)
    ], dtype=torch.float64)  # fmt: skip
