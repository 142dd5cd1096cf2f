"""The rules of the game in NumPy: which strokes there are, what the partner sees of them, scores and maps.

This is the specification. Coordinates are whole sixteenths of an image pixel, so that neither zoom nor the density of a
screen changes them; times are milliseconds since the first bubble.
"""

import functools
import hashlib
import math
import reprlib
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np

from ..errors import GalaError

SIXTEENTHS = 16  # of an image pixel: the unit of coordinates
MOST_BUBBLES = 140
REVEALED = 21  # pixels: the side of the square that a bubble shows to the partner
MAP_BOX = 18  # pixels: the side of the square that a bubble adds to the map
NOISE, DARKER = 0.4, 0.5  # standard deviation and shift of hidden pixels, of values from 0 to 1
_NORMALS = 1 << 16  # values of that noise
FULL_SCORE, SCORED_MS = 100, 7000  # the score of a recognition at once, and when there is none any more
UNTIMED_MS = 600_000  # the limit of a round without a timer
_STEP_SLACK = 2  # sixteenths of a pixel, by which rounding may lengthen a step

Points = tuple[tuple[int, int, int], ...]  # x16, y16 and ms of each bubble


class Rules(NamedTuple):
    """What a player's page has to know.

    Attributes:
        bubble: side of the square that a bubble shows to the player, in image pixels.
        step: the farthest that the brush moves from one bubble to the next, in image pixels.
        interval_ms: least time between two bubbles.
        limit_ms: when a round ends.
        every: the partner guesses after so many bubbles.
    """

    bubble: int = 14
    step: int = 7
    interval_ms: int = 50
    limit_ms: int = SCORED_MS
    every: int = 10


RULES = Rules()
UNTIMED = Rules(limit_ms=UNTIMED_MS)


class PointsError(GalaError, ValueError):
    """Bubbles that the rules do not allow."""


def check_points(points: Any, width: int, height: int, rules: Rules = RULES) -> Points:
    """The bubbles `points`, [[x16, y16, ms], ...] as read from JSON, of an image of `width` x `height` pixels.

    Raises:
        PointsError: they are no such list, too many, off the image, too far or too close to each other, or too late.
    """
    if not isinstance(points, list | tuple):
        raise PointsError(f"points is {_short(points)}; expected a list of [x16, y16, ms]")
    if len(points) > MOST_BUBBLES:
        raise PointsError(f"points has {len(points)} bubbles; expected at most {MOST_BUBBLES}")
    checked = tuple(_bubble(number, point, width, height) for number, point in enumerate(points))
    if checked and checked[0][2] != 0:
        raise PointsError(f"points[0] is at {checked[0][2]} ms; expected 0, for time begins with the first bubble")
    for number in range(1, len(checked)):
        _check_step(number, checked[number - 1], checked[number], rules)
    if checked and checked[-1][2] > rules.limit_ms:
        raise PointsError(f"points ends at {checked[-1][2]} ms; expected at most {rules.limit_ms}")
    return checked


def _bubble(number: int, point: Any, width: int, height: int) -> tuple[int, int, int]:
    if not isinstance(point, list | tuple) or len(point) != 3 or not all(type(each) is int for each in point):
        raise PointsError(f"points[{number}] is {_short(point)}; expected [x16, y16, ms] of whole numbers")
    x, y, ms = point
    if not (0 <= x <= SIXTEENTHS * width and 0 <= y <= SIXTEENTHS * height):
        raise PointsError(
            f"points[{number}] is at {_short([x, y])} sixteenths of a pixel; expected 0 to {SIXTEENTHS * width} "
            f"and 0 to {SIXTEENTHS * height}"
        )
    if not 0 <= ms <= UNTIMED_MS:
        raise PointsError(f"points[{number}] is at {_short(ms)} ms; expected 0 to {UNTIMED_MS}")
    return x, y, ms


def _check_step(number: int, last: tuple[int, int, int], point: tuple[int, int, int], rules: Rules) -> None:
    (x0, y0, ms0), (x1, y1, ms1) = last, point
    if ms1 - ms0 < rules.interval_ms:
        raise PointsError(
            f"points[{number}] comes {ms1 - ms0} ms after the one before; expected at least {rules.interval_ms}"
        )
    length = math.hypot(x1 - x0, y1 - y0) / SIXTEENTHS
    if (x1 - x0) ** 2 + (y1 - y0) ** 2 > (SIXTEENTHS * rules.step + _STEP_SLACK) ** 2:
        raise PointsError(f"points[{number}] is {length:.2f} pixels from the one before; expected at most {rules.step}")
    if length == 0:
        raise PointsError(f"points[{number}] repeats the one before; expected another place")


def _short(value: Any) -> str:
    """`value` as in an error message, however large or deep it is."""
    return reprlib.repr(value)


def squares(points: Points, side: int, height: int, width: int) -> list[tuple[slice, slice]]:
    """The rows and columns of the squares of `side` pixels centred on `points`, clipped at the image's borders."""
    found = []
    for x, y, _ in points:
        # floor(x / 16 - side / 2 + 1 / 2) in whole numbers
        left, top = ((2 * at - SIXTEENTHS * (side - 1)) // (2 * SIXTEENTHS) for at in (x, y))
        rows = slice(max(top, 0), max(min(top + side, height), 0))
        found.append((rows, slice(max(left, 0), max(min(left + side, width), 0))))
    return found


def noise_seed(round_id: str, n: int) -> int:
    """The seed of the noise that the partner sees in a round after `n` bubbles: every view can be made again."""
    return int.from_bytes(hashlib.blake2b(f"{round_id} {n}".encode(), digest_size=8).digest(), "big")


def reveal(image: np.ndarray, points: Points, seed: int) -> np.ndarray:
    """What the partner sees: `image` [H, W, 3] uint8 as [H, W, 3] float32 from 0 to 1.

    Hidden pixels are clip(x + N(0, 0.4) - 0.5, 0, 1); each of `points` shows a square of 21 pixels.
    """
    clear = image.astype(np.float32) / np.float32(255)
    raw = np.random.PCG64(seed).random_raw(-(-image.size // 4))  # which no version of NumPy makes otherwise
    numbers = raw.astype("<u8").view("<u2")[: image.size].reshape(image.shape)
    view = np.clip(clear + (_hiding_noise().take(numbers) - np.float32(DARKER)), 0, 1)
    height, width = image.shape[:2]
    for rows, columns in squares(points, REVEALED, height, width):
        view[rows, columns] = clear[rows, columns]
    return view


@functools.cache
def _hiding_noise() -> np.ndarray:
    """N(0, 0.4) as so many equally likely values, the middles of its quantiles: four times as fast as exact ones."""
    normal = NormalDist(0, NOISE)
    return np.array([normal.inv_cdf((number + 0.5) / _NORMALS) for number in range(_NORMALS)], np.float32)


def score(ms: int) -> float:
    """Points for a recognition `ms` after the first bubble: 100 (1 - t / 7)^3 for t in seconds, 0 from 7 s on."""
    return FULL_SCORE * max(0.0, 1 - ms / SCORED_MS) ** 3


def click_map(points: Points, height: int, width: int, box: int = MAP_BOX) -> np.ndarray:
    """The human map of one round, [H, W] float32 from 0 to 1.

    Every bubble adds 1 on a square of `box` pixels, clipped at the borders; the sum is divided by its maximum.
    """
    total = np.zeros((height, width), np.float32)
    for rows, columns in squares(points, box, height, width):
        total[rows, columns] += 1
    return total / max(total.max(initial=0), 1)
