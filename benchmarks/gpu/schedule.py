"""Divides the time of a call of the suite among its parts, the most important first."""

import time
from collections.abc import Callable, Iterator

from .records import Step

PARTS = {  # in order of worth; of the time left a part may take its weight over the weights of all that are still to do
    "prepare": 40,  # always done: on another machine there may be neither extension nor compiled kernels
    "kernels": 20,
    "machine": 20,
    "operators": 60,
    "correctness": 50,
    "networks": 50,
    "robustness": 30,
    "shapes": 10,
}
MEASURED = tuple(PARTS)[1:]


def portion(part: str, parts: list[str]) -> float:
    """The share of `part` among `parts`, those that are still to do."""
    return PARTS[part] / sum(PARTS[name] for name in parts)


def started(
    todo: dict[str, list[Step]], seconds: float, clock: Callable[[], float] = time.monotonic
) -> Iterator[tuple[str, Step, float]]:
    """(part, step, the seconds that are left for its part) of every step, when its turn has come.

    A step is to be done if more time is left than it is expected to take.
    """
    end, parts = clock() + seconds, [part for part in todo if todo[part]]
    for i, part in enumerate(parts):
        now = clock()
        limit = now + max(0.0, end - now) * portion(part, parts[i:])
        for step in todo[part]:
            yield part, step, max(0.0, limit - clock())


def expected(todo: dict[str, list[Step]], seconds: float) -> dict[str, list[Step]]:
    """The steps that are done within `seconds` if each takes as long as expected."""
    found: dict[str, list[Step]] = {part: [] for part in todo}

    def now() -> float:
        return sum(step.seconds for done in found.values() for step in done)

    for part, step, left in started(todo, seconds, now):
        if left > step.seconds:
            found[part].append(step)
    return found
