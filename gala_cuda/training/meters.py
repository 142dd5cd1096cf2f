"""What a training is measured by: loss and accuracy on the device, waiting for data, memory, floating-point work."""

import resource
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from .distributed import add_up

Item = TypeVar("Item")

# Dense 16-bit peak of tensor cores in FLOP/s, as the makers' data sheets give it; the first name that fits counts.
PEAKS = {
    "H100 PCIe": 756e12, "H100": 989e12, "H200": 989e12, "B200": 2250e12, "A100": 312e12, "A10": 125e12,
    "L40S": 362e12, "L4": 121e12, "V100": 125e12, "T4": 65e12,
}  # fmt: skip

ENOUGH = 5  # steps to time before a forecast


class Meter:
    """Sums of one epoch, on the device until they are asked for.

    They are loss, right answers among the best 1 and 5, images, and of those with a human map the map loss and number.
    """

    def __init__(self, device: torch.device, totals: Tensor | None = None):
        start = torch.zeros(0, dtype=torch.float64) if totals is None else totals
        self.totals = F.pad(start, (0, 6 - len(start))).to(device)  # of this rank

    @torch.no_grad()
    def add(self, loss: Tensor, logits: Tensor, labels: Tensor) -> None:
        """``loss`` the mean of the images, ``logits`` [n, K], ``labels`` [n]."""
        self.totals[:4] += hits(loss, logits, labels)

    @torch.no_grad()
    def add_maps(self, losses: Tensor, has_map: Tensor) -> None:
        """``losses`` [n], 0 where ``has_map`` [n] is False."""
        self.totals[4:] += torch.stack([losses.sum(dtype=torch.float64), has_map.sum(dtype=torch.float64)])

    def all(self) -> Tensor:
        """The sums over all ranks."""
        return add_up(self.totals)

    @property
    def images(self) -> float:
        return self.all()[3].item()


def hits(loss: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
    """[4] float64: loss times images, right answers, right answers among the best five, images."""
    best = logits.topk(min(5, logits.shape[1]), dim=1).indices == labels[:, None]  # [n, 5]
    count = torch.tensor(float(len(labels)), dtype=torch.float64, device=logits.device)
    weighted = loss.detach().double() * count if len(labels) else count
    return torch.stack([weighted, best[:, :1].sum().double(), best.sum().double(), count])


def format_loss(loss: float) -> str:
    """Four decimals where they tell something, else three digits and a power of ten."""
    return f"{loss:.4f}" if loss == 0 or 1e-3 <= abs(loss) < 1e4 else f"{loss:.2e}"


class Waiting:
    """Iterates, and adds up the ``seconds`` spent in waiting for the next item."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def over(self, items: Iterable[Item]) -> Iterator[Item]:
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
    """How long the rest of a training takes, by the steps of this process after its first, which is slower."""

    def __init__(self) -> None:
        self._start: tuple[int, float] | None = None
        self._told = False

    def first(self, step: int) -> None:
        """Step number ``step`` is done; only the first call counts."""
        if self._start is None:
            self._start = step, time.perf_counter()

    def seconds(self, step: int, steps: int) -> float | None:
        """From ``step`` to ``steps``: once, as soon as ``ENOUGH`` were timed, else None."""
        if self._told or self._start is None or step - self._start[0] < ENOUGH:
            return None
        self._told = True
        return (time.perf_counter() - self._start[1]) / (step - self._start[0]) * (steps - step)


def peak_memory(device: torch.device) -> int:
    """Bytes: the most that torch had allocated on the GPU, or that this process had in memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def training_flops(model: nn.Module, image: Tensor) -> int:
    """Floating-point operations of forward and backward for one ``image`` [1, C, H, W], a product and a sum as two.

    Counted are matrix products and convolutions, GALA's included; backward as twice forward.
    """
    training = model.training
    model.eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(image)
    model.train(training)
    return 3 * counter.get_total_flops()


def peak_flops(device: torch.device, precision: str) -> float | None:
    """Of the device in 16 bits, in FLOP/s; None for others and for float32, whose peak depends on settings."""
    if device.type != "cuda" or precision == "float32":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for known, peak in PEAKS.items() if known in name), None)
