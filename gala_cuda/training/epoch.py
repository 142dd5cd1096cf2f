"""What the log says about an epoch, and which epoch was the best."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

MAP_FIELDS = {"map loss": "map_loss", "map rho": "map_similarity"}  # by their titles


@dataclass(frozen=True, kw_only=True)
class Epoch:
    """One line of the log. Accuracies are fractions in [0, 1], losses are means over the images.

    Attributes:
        epoch: its number, from 1.
        step: number of steps of the training when the epoch was done.
        lr: learning rate of the last step.
        loss, train_accuracy, train_top5: of the training images, during the epoch; the loss is cross-entropy alone.
        test_loss, test_accuracy, test_top5: of the held-out images, after the epoch.
        images_per_second: of training, over all processes.
        data_wait: the fraction of that time in which rank 0 waited for images.
        peak_memory: of rank 0, in bytes.
        flops_per_second: floating-point operations of training, over all processes.
        mfu: these over the devices' 16-bit peak; None where that is not known.
        skipped: number of images that could not be read so far.
        seconds: since the start of the training.
        map_loss: mean map loss of the training images with a human map, before its weight; None without such images.
        map_similarity: mean rank correlation of maps with human ones on the test images; None without.
        test_map: mean average precision of the held-out images, where images have any number of labels; then there are
            no accuracies.
    """

    epoch: int
    step: int
    lr: float
    loss: float
    train_accuracy: float | None
    train_top5: float | None
    test_loss: float
    test_accuracy: float | None
    test_top5: float | None
    images_per_second: float
    data_wait: float
    peak_memory: int
    flops_per_second: float
    mfu: float | None
    skipped: int
    seconds: float
    map_loss: float | None = None
    map_similarity: float | None = None
    test_map: float | None = None

    def figures(self) -> dict[str, float]:
        """All that there are by their names, but for the numbers of epoch and step."""
        values = asdict(self)
        return {name: value for name, value in values.items() if value is not None and name not in ("epoch", "step")}

    @property
    def tested(self) -> float:
        """What epochs are compared by: accuracy or mean average precision in the test."""
        figure = self.test_accuracy if self.test_map is None else self.test_map
        assert figure is not None
        return figure


def epochs_since_best(log: Sequence[Epoch]) -> int:
    """How many epochs there were after `best_epoch`; 0 of an empty log."""
    return len(log) - best_epoch(log).epoch if log else 0


def best_epoch(log: Sequence[Epoch]) -> Epoch:
    """The epoch of the highest accuracy, or mean average precision, in the test.

    Of equal ones it is that of the lowest test loss, then the earliest.

    An epoch whose test loss is no finite number comes after all others.
    """

    def rank(epoch: Epoch) -> tuple[bool, float, float]:
        finite = math.isfinite(epoch.test_loss)
        return finite, epoch.tested, -epoch.test_loss if finite else 0.0

    return max(log, key=rank)
