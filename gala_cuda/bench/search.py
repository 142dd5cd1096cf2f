"""The search for the fastest tiles of one row of the table.

It goes kernel by kernel. Of the tiles one step from the best so far (`candidates`), those that compile, keep to the
registers and agree with float64 are timed within the whole pass that the kernel is part of, in turn with the best so
far, and replace it where they are faster by more than the spread, until no step helps.
"""

import math
from dataclasses import replace

import torch

from ..backends.triton.config import KERNELS, Config
from ..testing import exact
from .candidates import Shape, candidates
from .passes import PARTS, Example, Pass, attempt, check, refuse_spills
from .timing import Clock
from .tuned_row import Say, TileError, TunedRow

CHECKED_IMAGES = 16  # at most, in float64


class Search:
    """The search for one row with the `problems` that fall in it; `run` fills `tuned`."""

    def __init__(
        self,
        tuned: TunedRow,
        layout: str,
        problems: list[tuple[Shape, torch.dtype]],
        seconds: float,
        device: torch.device,
        say: Say,
        time: Clock,
    ):
        self.tuned, self.seconds, self.device, self.say, self.time = tuned, seconds, device, say, time
        self.shapes = [shape for shape, _ in problems]
        self.examples = [Example(shape, dtype, layout, device) for shape, dtype in problems]
        images = min(CHECKED_IMAGES, *(shape.images for shape in self.shapes))
        small = dict.fromkeys((shape._replace(images=images), dtype) for shape, dtype in problems)
        checked = [Example(shape, dtype, layout, device, full=True) for shape, dtype in small]
        self.checked = [(example, exact(example.drawn)) for example in checked]

    def run(self) -> None:
        """Raises TileError where a kernel runs with no tile."""
        for kernel in KERNELS:
            self._climb(kernel)
        for name in ("forward", "backward"):
            self.tuned.speedup[name] = self._overall(name)

    def _climb(self, kernel: str) -> None:
        """Goes from the tile in use, step by step, to one that no single step makes faster."""
        best, gain = self._usable(kernel, self.tuned.after, present=True), 1.0
        tried, improved = {getattr(self.tuned.after, kernel)}, True
        while improved:
            improved = False
            for tile in candidates(kernel, getattr(self.tuned.after, kernel), self.shapes):
                if tile in tried:
                    continue
                tried.add(tile)
                self.say(f"{kernel}: {tile}", False)
                config = replace(self.tuned.after, **{kernel: tile})
                passes = self._usable(kernel, config)
                faster = self._faster(best, passes)
                if faster is not None:
                    self.tuned.after, best, improved = config, passes, True
                    gain *= faster
        if best is None:
            raise TileError(
                f"{self.tuned.name}: {kernel} runs with no tile that was tried; {self.tuned.dropped[-1][2]}"
            )
        self.tuned.gains[kernel] = gain
        self.say(f"  {kernel}: {getattr(self.tuned.after, kernel)}, {gain:.3f}x", True)

    def _usable(self, kernel: str, config: Config, present: bool = False) -> list[Pass] | None:
        """The passes that `kernel` is part of, one for each example; None where a tile is unfit, which is noted.

        The tile that is `present` may spill.
        """
        made: list[Pass] = []

        def make() -> None:
            for example, want in self.checked:
                plan = check(example, want, kernel, config)
                if not present:
                    refuse_spills(plan, kernel)
            for example in self.examples:
                made.append(Pass(example, config, PARTS[kernel].kind))
                if not present:
                    refuse_spills(made[-1].plan, kernel)

        try:
            attempt(make, self.device)
        except TileError as error:
            self.tuned.dropped.append((kernel, str(getattr(config, kernel)), str(error)))
            return None
        return made

    def _faster(self, before: list[Pass] | None, after: list[Pass] | None) -> float | None:
        """The speed-up over all examples where it is beyond the spread, else None; 1 where only `after` runs."""
        if after is None or before is None:
            return None if after is None else 1.0
        compared = [self._compare(*pair) for pair in zip(before, after, strict=True)]
        gain, spread = _mean([gain for gain, _ in compared]), max(spread for _, spread in compared)
        return gain if gain > 1 + spread else None

    def _compare(self, before: Pass, after: Pass) -> tuple[float, float]:
        """(speed-up, the larger spread) of one example's passes."""
        timings = self.time({"before": before, "after": after}, self.seconds, self.device)
        return timings["before"].median / timings["after"].median, max(t.spread for t in timings.values())

    def _overall(self, name: str) -> float | None:
        """The speed-up of whole passes from the row before to the row found; None where the former does not run."""
        if self.tuned.before == self.tuned.after:
            return 1.0
        gains: list[float] = []

        def compare() -> None:
            for example in self.examples:
                before, after = (Pass(example, config, name) for config in (self.tuned.before, self.tuned.after))
                gains.append(self._compare(before, after)[0])

        try:
            attempt(compare, self.device)
        except TileError as error:
            self.tuned.dropped.append((name, "the row before", str(error)))
            return None
        return _mean(gains)


def _mean(ratios: list[float]) -> float:
    """The geometric mean."""
    return math.prod(ratios) ** (1 / len(ratios))
