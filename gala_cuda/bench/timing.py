"""Times of several calls, measured in turn, and the bytes that a call keeps for its backward pass."""

import ctypes
import itertools
import math
import sys
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

SAMPLE_SECONDS = 0.02  # a sample repeats its call this long, far above the clock's resolution; less in a short run
WARM_UP_SECONDS = 0.1  # at most
ROUNDS = (7, 101)  # at least, at most


@dataclass(frozen=True)
class Timing:
    """Seconds for one call: the median over the rounds and the quartiles."""

    median: float
    first_quartile: float
    third_quartile: float
    rounds: int
    calls_per_round: int

    @property
    def spread(self) -> float:
        """Half the interquartile range over the median."""
        return (self.third_quartile - self.first_quartile) / (2 * self.median)


Clock = Callable[[dict[str, Callable[[], object]], float, torch.device], dict[str, Timing]]  # `alternate` is one


def pin_allocator() -> bool:
    """Keep freed memory in the process; False where the C library is not glibc.

    By default glibc returns large blocks to the system and pays page faults for each new tensor, or not, by thresholds
    that move while it runs: times of the same code swing twofold.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    trim_threshold, mmap_max = -1, -4
    return mallopt is not None and mallopt(mmap_max, 0) == 1 and mallopt(trim_threshold, -1) == 1


def alternate(calls: Mapping[str, Callable[[], object]], seconds: float, device: torch.device) -> dict[str, Timing]:
    """Times `calls` in turn, round after round within about `seconds`, so that the machine's drift hits all alike.

    Each round starts with another call. Caches are warm: each sample repeats its call.
    """
    repeats, round_seconds = {}, 0.0
    sample_seconds, warm_up_seconds = min(SAMPLE_SECONDS, seconds / ROUNDS[0]), min(WARM_UP_SECONDS, seconds)
    for name, call in calls.items():
        per_call = _warm_up(call, device, warm_up_seconds)
        repeats[name] = max(1, math.ceil(sample_seconds / per_call))
        round_seconds += repeats[name] * per_call
    rounds = rounds_within(seconds, round_seconds)
    samples: dict[str, list[float]] = {name: [] for name in calls}
    for name in in_turn(list(calls), rounds):
        samples[name].append(_sample(calls[name], repeats[name], device))
    return {name: summary(samples[name], repeats[name]) for name in calls}


def rounds_within(seconds: float, round_seconds: float) -> int:
    return min(max(ROUNDS[0], int(seconds / round_seconds)), ROUNDS[1])


def in_turn(names: list[str], rounds: int) -> Iterator[str]:
    """`rounds` times every name, each round starting with another."""
    for i in range(rounds):
        yield from itertools.islice(itertools.cycle(names), i % len(names), i % len(names) + len(names))


def summary(samples: list[float], calls_per_round: int) -> Timing:
    """The quartiles of `samples`, each the seconds for one call in one round."""
    quartiles = torch.tensor(samples, dtype=torch.float64).quantile(
        torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64)
    )
    first, median, third = quartiles.tolist()
    return Timing(median, first, third, len(samples), calls_per_round)


def saved_bytes(call: Callable[[Tensor], Tensor], x: Tensor, parameters: Iterable[Tensor]) -> int:
    """Bytes that autograd keeps for the backward of `call(x)`, beyond x and the parameters themselves."""
    own = {t.untyped_storage().data_ptr() for t in (x, *parameters)}
    held: weakref.WeakSet[_Held] = weakref.WeakSet()

    def pack(tensor: Tensor) -> _Held:
        held.add(holder := _Held(tensor.detach()))  # attached, an output would keep its own graph alive
        return holder

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda holder: holder.tensor):
        out = call(x)
    storages = {holder.tensor.untyped_storage().data_ptr(): holder.tensor.untyped_storage().nbytes() for holder in held}
    del out
    return sum(size for pointer, size in storages.items() if pointer not in own)


class _Held:
    """A saved tensor; dies with the graph that needs it."""

    def __init__(self, tensor: Tensor):
        self.tensor = tensor


def _warm_up(call: Callable[[], object], device: torch.device, seconds: float) -> float:
    """Seconds of the fastest call."""
    end = time.perf_counter() + seconds
    call()
    fastest = _sample(call, 1, device)
    while time.perf_counter() < end:
        fastest = min(fastest, _sample(call, 1, device))
    return fastest


def _sample(call: Callable[[], object], repeats: int, device: torch.device) -> float:
    _synchronize(device)
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    _synchronize(device)
    return (time.perf_counter() - start) / repeats


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
