"""Measures the time that a GPU takes for calls that are already queued, with a warm or a cold L2 cache.

Launching a call takes the host some time. So that it is not counted, the GPU first spins for as long as the host needs
to submit the call, and every sample is checked for whether it was still spinning then. Times are those of CUDA events;
on the CPU a wall clock takes their place.
"""

import itertools
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from gala_cuda.bench.timing import Timing, in_turn, rounds_within, summary

Stages = Sequence[Callable[[], object]]
WARM_UP_CALLS = 3
SLACK = 50e-6  # seconds that the GPU spins beyond the host's time
LONGEST_LEAD = 1.0  # seconds: a call whose submission takes longer waits for the GPU itself
CALIBRATION_CYCLES = 10_000_000
FLUSHED = 2**28  # bytes at least


class WallClock:
    """Time on the CPU: nothing is queued, and caches stay as they are."""

    def lead(self, seconds: float, cold: bool) -> None:
        pass

    def mark(self) -> Any:
        return time.perf_counter()

    def was_queued(self, first: Any) -> bool:
        return True

    def between(self, start: Any, end: Any) -> float:
        return end - start

    def wait(self) -> None:
        pass


class EventClock(WallClock):
    """Time on a GPU, by events on the current stream."""

    def __init__(self, device: torch.device):
        self._device = device
        level_2 = torch.cuda.get_device_properties(device).L2_cache_size
        self._buffer = torch.empty(max(FLUSHED, 4 * level_2) // 4, dtype=torch.float32, device=device)
        self._sum = torch.empty((), dtype=torch.float32, device=device)
        self._cycles_per_second = self._calibrate()

    def lead(self, seconds: float, cold: bool) -> None:
        """Queues `seconds` of spinning; where `cold`, also a flush of L2.

        The buffer is written, then read back, so that the timed call finds no dirty lines that it would have to evict.
        """
        torch.cuda._sleep(int(seconds * self._cycles_per_second))
        if cold:
            self._buffer.zero_()
            torch.sum(self._buffer, dim=0, out=self._sum)

    def mark(self) -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def was_queued(self, first: torch.cuda.Event) -> bool:
        return not first.query()

    def between(self, start: torch.cuda.Event, end: torch.cuda.Event) -> float:
        return 1e-3 * start.elapsed_time(end)

    def wait(self) -> None:
        torch.cuda.synchronize(self._device)

    def _calibrate(self) -> float:
        torch.cuda._sleep(CALIBRATION_CYCLES)
        start = self.mark()
        torch.cuda._sleep(CALIBRATION_CYCLES)
        end = self.mark()
        self.wait()
        return CALIBRATION_CYCLES / self.between(start, end)


def clock_of(device: torch.device) -> WallClock:
    return EventClock(device) if device.type == "cuda" else WallClock()


def device_times(calls: Mapping[str, Stages], seconds: float, clock: WallClock, cold: bool) -> dict[str, list[Timing]]:
    """Times each stage of each call, and all its stages together; the calls take turns, within about `seconds`.

    Args:
        calls: by name, the stages that are submitted one after the other, such as (forward, backward).
        cold: flush L2 before each call. Otherwise it holds what the same call left there.

    Raises:
        RuntimeError: a call waits for the GPU, so that its device time cannot be told from the host's.
    """
    leads = {name: _submission(stages, clock) for name, stages in calls.items()}
    start = time.perf_counter()
    for name, stages in calls.items():
        leads[name], _ = _sample(name, stages, leads[name], clock, cold)
    rounds = rounds_within(seconds, time.perf_counter() - start)
    samples: dict[str, list[list[float]]] = {name: [] for name in calls}
    for name in in_turn(list(calls), rounds):
        leads[name], sample = _sample(name, calls[name], leads[name], clock, cold)
        samples[name].append(sample)
    return {name: [summary(list(times), 1) for times in zip(*found, strict=True)] for name, found in samples.items()}


def _submission(stages: Stages, clock: WallClock) -> float:
    """Seconds that the host takes to submit the stages, the least of a few calls."""
    fastest = math.inf
    for _ in range(WARM_UP_CALLS):
        clock.wait()
        start = time.perf_counter()
        for stage in stages:
            stage()
        fastest = min(fastest, time.perf_counter() - start)
    clock.wait()
    return fastest


def _sample(name: str, stages: Stages, lead: float, clock: WallClock, cold: bool) -> tuple[float, list[float]]:
    """(the lead that sufficed, the time of each stage and of all)."""
    while True:
        clock.wait()
        if not cold:
            for stage in stages:
                stage()
        clock.lead(lead + SLACK, cold)
        marks = [clock.mark()]
        for stage in stages:
            stage()
            marks.append(clock.mark())
        queued = clock.was_queued(marks[0])
        clock.wait()
        if queued:
            each = [clock.between(start, end) for start, end in itertools.pairwise(marks)]
            return lead, [*each, clock.between(marks[0], marks[-1])]
        lead *= 2
        if lead > LONGEST_LEAD:
            raise RuntimeError(f"{name} waits for the GPU while it is submitted: its device time cannot be told")
