"""The loss of a training: cross-entropy, or binary cross-entropy of each class by itself, with weights of classes."""

import csv
import math
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from ..data.batches import count_labels
from ..data.load import Data
from .recipe import BALANCED, Recipe, RecipeError


@dataclass(frozen=True)
class Criterion:
    """The mean loss of logits [n, K] by targets: labels [n] int64, shares of classes [n, K], or yes and no [n, K] bool.

    Args:
        loss: "cross_entropy", or "bce", the mean over classes of the binary cross-entropy (Wightman et al., 2021).
        smoothing: fraction of every target that is spread over all classes, or with `multi_label` over yes and no.
        weights: [K] of the classes. Cross-entropy of an image is multiplied by that of its class, and that of all
            images divided by their number; of binary cross-entropy the part of targets of 1 is multiplied.
    """

    loss: str = "cross_entropy"
    smoothing: float = 0.0
    weights: Tensor | None = None
    multi_label: bool = False

    def __call__(self, logits: Tensor, targets: Tensor) -> Tensor:
        if self.loss == "bce":
            return F.binary_cross_entropy_with_logits(logits, self._shares(logits, targets), pos_weight=self.weights)
        if self.weights is None:
            return F.cross_entropy(logits, targets, label_smoothing=self.smoothing)
        total = F.cross_entropy(logits, targets, self.weights, reduction="sum", label_smoothing=self.smoothing)
        return total / len(logits)

    def _shares(self, logits: Tensor, targets: Tensor) -> Tensor:
        classes = logits.shape[1]
        shares = (F.one_hot(targets, classes) if targets.dim() == 1 else targets).to(logits.dtype)
        return shares * (1 - self.smoothing) + self.smoothing / (2 if self.multi_label else classes)


def build_criterion(recipe: Recipe, data: Data, device: torch.device) -> Criterion:
    """The loss of `recipe`, with its weights of classes for the images of `data` to train on.

    Raises:
        RecipeError: these weights are not those of the classes.
    """
    weights = class_weights(recipe, data.train.labels, data.classes)
    weights = None if weights is None else weights.to(device)
    return Criterion(recipe.criterion, recipe.label_smoothing, weights, recipe.multi_label)


def class_weights(recipe: Recipe, labels: Tensor, classes: tuple[str, ...]) -> Tensor | None:
    """[K] float32, None where the recipe has none; `labels` [n] int64 or [n, K] bool are those to train on.

    "balanced" gives all classes the same part in the loss; in binary cross-entropy, yes and no of each class. Other
    weights of cross-entropy are scaled so that their mean over the images is 1, as that of balanced ones is.

    Raises:
        RecipeError: they are not one for each class, or one is no number above 0.
    """
    given = recipe.class_weights
    if not given:
        return None
    counts = count_labels(labels, len(classes)).double()
    binary = recipe.criterion == "bce"
    if given == (BALANCED,):
        full = len(labels)
        if alone := [name for name, count in zip(classes, counts, strict=True) if count in (0, full)]:
            raise RecipeError("class_weights", f"is balanced, and {alone[0]!r} is the label of none or of all images")
        weights = (full - counts) / counts if binary else full / (len(classes) * counts)
        return weights.float()
    found = _from_file(Path(given[0]), classes) if len(given) == 1 and not _is_number(given[0]) else given
    if len(found) != len(classes) or not all(map(_is_number, found)):
        named = ", ".join(classes[:5]) + (", ..." if len(classes) > 5 else "")
        raise RecipeError(
            "class_weights", f"is {' '.join(given)}; expected {BALANCED}, a CSV file of class,weight, or a number "
            f"above 0 for each of {len(classes)} classes: {named}",
        )  # fmt: skip
    weights = torch.tensor([float(weight) for weight in found], dtype=torch.float64)
    return (weights if binary else weights * len(labels) / (weights * counts).sum()).float()


def _from_file(path: Path, classes: tuple[str, ...]) -> list[str]:
    """The second column of a CSV file whose first has the names of the classes; a first line may say class,weight."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = [row for row in csv.reader(file) if row]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        reason = getattr(error, "strerror", None) or error
        raise RecipeError(
            "class_weights", f"is {str(path)!r}; expected {BALANCED}, numbers, or a CSV file of class,weight ({reason})"
        ) from error
    if rows and rows[0] and rows[0][-1].strip() == "weight":
        rows = rows[1:]
    of = {row[0].strip(): row[1].strip() for row in rows if len(row) == 2}
    if of.keys() != set(classes):
        wrong = sorted(of.keys() ^ set(classes))
        raise RecipeError(
            "class_weights", f"{path} has not one weight for each class; {wrong[0]!r} is on one side only"
        )
    return [of[name] for name in classes]


def _is_number(text: str) -> bool:
    try:
        return 0 < float(text) < math.inf
    except ValueError:
        return False
