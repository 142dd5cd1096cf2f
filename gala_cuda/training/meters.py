"""Measures a training: loss and accuracy, time spent in waiting for data, memory, floating-point operations."""

import resource
import time
from collections.abc import Iterable, Iterator
from typing import NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from ..models.mode import in_mode
from .distributed import all_reduce

Item = TypeVar("Item")

# Dense 16-bit peak of tensor cores in FLOP/s by GPU, as the makers' data sheets give it; the first name that fits.
PEAKS = {
    "H100 PCIe": 756e12, "H100": 989e12, "H200": 989e12, "B200": 2250e12, "A100": 312e12, "A10": 125e12,
    "L40S": 362e12, "L4": 121e12, "V100": 125e12, "T4": 65e12,
}  # fmt: skip

MIN_TIMED = 5  # steps before a forecast


class Means(NamedTuple):
    """What a meter has measured so far: means over the images, accuracies as fractions in [0, 1]."""

    images: int
    loss: float
    top1: float | None  # None where images have any number of labels
    top5: float | None
    map_loss: float | None  # of the images with a human map; None where there were none


class Meter:
    """Sums over the images of one epoch, on the device until they are asked for.

    They are of the loss, of right answers among the best 1 and 5, and of images, and of those with a human map the map
    loss and number: [6] float64. Of images with any number of labels no answers are counted.
    """

    def __init__(self, device: torch.device, sums: Tensor | None = None, multi_label: bool = False):
        self._multi_label = multi_label
        start = torch.zeros(0, dtype=torch.float64) if sums is None else sums
        self._sums = F.pad(start, (0, 6 - len(start))).to(device)  # of this rank; former checkpoints have 4

    @torch.no_grad()
    def add(self, loss: Tensor, logits: Tensor, labels: Tensor) -> None:
        """Counts a batch: `loss` is the mean of its images, `logits` [n, K], `labels` [n] or [n, K]."""
        self._sums[:4] += batch_sums(loss, logits, labels)

    @torch.no_grad()
    def add_maps(self, losses: Tensor, has_map: Tensor) -> None:
        """Counts the map losses of a batch: `losses` [n], 0 where `has_map` [n] is False."""
        self._sums[4:] += torch.stack([losses.sum(dtype=torch.float64), has_map.sum(dtype=torch.float64)])

    def sums(self) -> Tensor:
        """The sums over all ranks; every rank has to call."""
        return all_reduce(self._sums)

    @property
    def images(self) -> int:
        """How many there were, over all ranks; every rank has to call."""
        return int(self.sums()[3])

    def means(self) -> Means:
        """The means over all ranks; every rank has to call."""
        loss, top1, top5, images, map_loss, maps = self.sums().tolist()
        means = Means(int(images), loss / images, top1 / images, top5 / images, map_loss / maps if maps else None)
        return means._replace(top1=None, top5=None) if self._multi_label else means


def batch_sums(loss: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
    """[4] float64: loss times images, right answers, right answers among the best five, images."""
    if labels.dim() == 2:
        best = logits.new_zeros(len(logits), 1)
    else:
        best = logits.topk(min(5, logits.shape[1]), dim=1).indices == labels[:, None]  # [n, 5]
    count = torch.tensor(float(len(labels)), dtype=torch.float64, device=logits.device)
    weighted = loss.detach().double() * count if len(labels) else count
    return torch.stack([weighted, best[:, :1].sum().double(), best.sum().double(), count])


def format_loss(loss: float) -> str:
    """A loss with four decimals where they tell something, else with three digits and a power of ten."""
    return f"{loss:.4f}" if loss == 0 or 1e-3 <= abs(loss) < 1e4 else f"{loss:.2e}"


class Waiting:
    """Measures the `seconds` that an iteration spends in waiting for the next item."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def over(self, items: Iterable[Item]) -> Iterator[Item]:
        """`items` one by one."""
        iterator = iter(items)
        while True:
            began = time.perf_counter()
            try:
                item = next(iterator)
            except StopIteration:
                return
            finally:
                self.seconds += time.perf_counter() - began
            yield item


class Forecast:
    """Tells once how long the rest of a training takes, by the steps of this process after its first, slower one."""

    def __init__(self) -> None:
        self._start: tuple[int, float] | None = None
        self._told = False

    def begin(self, step: int) -> None:
        """Starts the clock after this process's first step, number `step`; later calls do nothing."""
        if self._start is None:
            self._start = step, time.perf_counter()

    def seconds(self, step: int, steps: int) -> float | None:
        """Seconds from step number `step` to the last, `steps`: once, as soon as `MIN_TIMED` were timed, else None."""
        if self._told or self._start is None or step - self._start[0] < MIN_TIMED:
            return None
        self._told = True
        return (time.perf_counter() - self._start[1]) / (step - self._start[0]) * (steps - step)


def peak_memory(device: torch.device) -> int:
    """The most bytes that torch had allocated on the GPU, or that this process had in memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def training_flops(model: nn.Module, image: Tensor) -> int:
    """Floating-point operations of forward and backward for one `image` [1, C, H, W], a product and a sum as two.

    Counted are matrix products and convolutions, GALA's included; backward as twice forward.
    """
    with in_mode(model, training=False), torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(image)
    return 3 * counter.get_total_flops()


def peak_flops(device: torch.device, precision: str) -> float | None:
    """The GPU's 16-bit peak in FLOP/s; None for devices that are not in the table, and for float32."""
    if device.type != "cuda" or precision == "float32":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for known, peak in PEAKS.items() if known in name), None)
