"""How good the rounds of a study are: which of them count, and who paints without looking.

All is computed from finished rounds; nothing here reads or writes files.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np
import torch
import torch.nn.functional as F

from ..clickme.score import human_ceiling, spearman
from .records import CATCH, PLAY, RECOGNISED, SKIP, TIMEOUT, Round
from .rules import Points, click_map

ENDED = (RECOGNISED, TIMEOUT)  # outcomes of rounds that were played to their end
COMPARED_SIDE = 64  # pixels of the longer side at which people's maps are compared while a study runs
FEW_BUBBLES = 10  # paths of fewer are alike by chance
PATH_POINTS = 32  # that a path is compared by
ALIKE = 0.02  # mean distance of the points of near-duplicate paths, as a share of the image's sides
# Below these, and from so many on, a person is worth a look.
LOW_CATCH, LOW_AGREEMENT, MANY_ALIKE, ENOUGH = 0.5, 0.1, 3, 3


@dataclass(frozen=True)
class Filters:
    """Which rounds make maps: by default as in the paper, those recognised or timed out, and never skips.

    Attributes:
        outcomes: of rounds that count.
        min_bubbles: a round with fewer does not count.
        people: codes of participants whose rounds do not count.
        images: paths of images whose rounds do not count.
        untimed: rounds played without the clock count too.
        repeats: rounds of an image that the person had before count too.
    """

    outcomes: tuple[str, ...] = ENDED
    min_bubbles: int = 1
    people: frozenset[str] = frozenset()
    images: frozenset[str] = frozenset()
    untimed: bool = False
    repeats: bool = False

    def why_not(self, round: Round) -> str | None:
        """The reason why a round does not count; None where it does."""
        reasons = {
            f"a {round.kind} round": round.kind != PLAY,
            "its person is excluded": round.participant in self.people,
            "its image is excluded": round.image in self.images,
            f"its outcome is {round.outcome}": round.outcome not in self.outcomes,
            "played without the clock": round.untimed and not self.untimed,
            "the person had the image before": round.attempt > 1 and not self.repeats,
            f"fewer than {self.min_bubbles} bubbles": len(round.points) < self.min_bubbles,
        }
        return next((reason for reason, applies in reasons.items() if applies), None)


@dataclass(frozen=True)
class Person:
    """What a participant did. Shares and correlations are None where there is nothing to tell them by.

    Attributes:
        rounds: finished ones but practice and catch rounds; ``counted`` of them make maps.
        recognised: share of the rounds with ``ENDED`` that the partner recognised.
        catch: share of the bubbles of catch rounds that lie inside the mask; ``by_chance`` of the pixels do.
        agreement: mean over images of the rank correlation with the others' mean map; ``compared`` images.
        alike: rounds whose strokes are nearly those of another image's round.
        doubts: reasons to look at this person's rounds before they are used.
    """

    participant: str
    rounds: int
    counted: int
    skips: int
    recognised: float | None
    bubbles: float | None  # median
    catch: float | None
    by_chance: float | None
    agreement: float | None
    compared: int
    alike: int
    doubts: tuple[str, ...]


@dataclass(frozen=True)
class ImageQuality:
    """What is known of an image: ``agreement`` is the mean over people of each one's with the others."""

    image: str
    label: str
    rounds: int  # that count
    people: int
    recognised: float | None
    agreement: float | None
    ceiling: float | None


@dataclass(frozen=True)
class Quality:
    """A study's rounds at a glance.

    Attributes:
        outcomes: number of finished rounds of the game with each outcome, without practice and catch rounds.
        left_out: number of rounds for each reason why they do not count.
        ceiling: mean split-half correlation between people over ``shared`` images, which two or more painted.
    """

    outcomes: dict[str, int]
    counted: int
    left_out: dict[str, int]
    recognised: float | None
    ceiling: float | None
    shared: int
    people: list[Person]
    images: list[ImageQuality]


class Meter:
    """Measures rounds; an image whose rounds are the same as the last time is not compared again.

    Args:
        masks: image of a catch round to where its object is, bool [H, W].
        side: pixels of the longer side at which maps are compared; None compares them at the images' size.
    """

    def __init__(self, masks: Mapping[str, np.ndarray], side: int | None = COMPARED_SIDE, box: int = 18):
        self.masks, self.side, self.box = masks, side, box
        self._known: dict[str, tuple[tuple[str, ...], dict[str, float], float]] = {}

    def measure(self, rounds: Iterable[Round], filters: Filters = Filters()) -> Quality:
        """The quality of all ``rounds``."""
        rounds = list(rounds)
        played = [round for round in rounds if round.kind == PLAY]
        reasons = [filters.why_not(round) for round in played]
        counting = [round for round, reason in zip(played, reasons, strict=True) if reason is None]
        by_image, correlations = grouped(counting, "image"), dict[str, float]()
        images = []
        for image, own in sorted(by_image.items()):
            rho, ceiling = self._agreement(image, own)
            correlations |= rho
            images.append(
                ImageQuality(
                    image, own[0].label, len(own), len(grouped(own, "participant")), recognition_rate(own),
                    _mean(rho.values()), None if math.isnan(ceiling) else ceiling,
                )
            )  # fmt: skip
        counted, catches = (
            {round.id for round in counting},
            grouped((round for round in rounds if round.kind == CATCH), "participant"),
        )
        people = [
            self._person(own, counted, catches.get(participant, []), correlations)
            for participant, own in sorted(grouped(rounds, "participant").items())
        ]
        ceilings = [image.ceiling for image in images if image.ceiling is not None]
        return Quality(
            dict(Counter(round.outcome for round in played)), len(counting),
            dict(Counter(reason for reason in reasons if reason)), recognition_rate(played),
            _mean(ceilings), sum(image.people > 1 for image in images), people, images,
        )  # fmt: skip

    def _agreement(self, image: str, rounds: Sequence[Round]) -> tuple[dict[str, float], float]:
        """(rank correlation of each round, by id, with the mean of the others' maps; the image's ceiling)."""
        ids = tuple(round.id for round in rounds)
        known = self._known.get(image)
        if known is None or known[0] != ids:
            self._known[image] = known = (ids, *self._compare(rounds))
        return known[1:]

    def _compare(self, rounds: Sequence[Round]) -> tuple[dict[str, float], float]:
        people = grouped(rounds, "participant")
        if len(people) < 2:
            return {}, math.nan
        maps = {person: torch.stack([self._map(round) for round in own]).mean(0) for person, own in people.items()}
        rho = dict[str, float]()
        for person, own in people.items():
            others = torch.stack([heatmap for other, heatmap in maps.items() if other != person]).mean(0)
            value = spearman(maps[person].flatten()[None], others.flatten()[None]).item()
            if not math.isnan(value):
                rho |= {round.id: value for round in own}
        try:
            return rho, human_ceiling([torch.stack(list(maps.values()))])
        except ValueError:  # all maps are constant
            return rho, math.nan

    def _map(self, round: Round) -> torch.Tensor:
        heatmap = torch.from_numpy(click_map(round.points, round.height, round.width, self.box))
        return heatmap if self.side is None else shrink(heatmap, self.side)

    def _person(
        self, rounds: Sequence[Round], counted: Collection[str], catches: Sequence[Round], rho: Mapping[str, float]
    ) -> Person:
        played = [round for round in rounds if round.kind == PLAY]
        seen = [(round.points, self.masks[round.image]) for round in catches if round.image in self.masks]
        inside = [bubbles_inside(points, mask) for points, mask in seen if points]
        catch = sum(number for number, _ in inside) / sum(total for _, total in inside) if inside else None
        compared = [rho[round.id] for round in played if round.id in rho]
        agreement, alike = _mean(compared), len(alike_rounds(played))
        doubts = {
            f"{catch or 0:.0%} of the bubbles on catch images are on the object": catch is not None
            and catch < LOW_CATCH,
            f"agrees with others by {agreement or 0:.2f}": agreement is not None
            and agreement < LOW_AGREEMENT
            and len(compared) >= ENOUGH,
            f"{alike} rounds with nearly the same strokes": alike >= MANY_ALIKE,
        }
        return Person(
            rounds[0].participant, len(played), sum(round.id in counted for round in played),
            sum(round.outcome == SKIP for round in played), recognition_rate(played),
            median(len(round.points) for round in played) if played else None, catch,
            _mean([float(mask.mean()) for points, mask in seen if points]), agreement, len(compared), alike,
            tuple(doubt for doubt, applies in doubts.items() if applies),
        )  # fmt: skip


def recognition_rate(rounds: Iterable[Round]) -> float | None:
    """The share of rounds recognised among those with ``ENDED``; None where there are none."""
    ended = [round.outcome == RECOGNISED for round in rounds if round.outcome in ENDED]
    return sum(ended) / len(ended) if ended else None


def bubbles_inside(points: Points, mask: np.ndarray) -> tuple[int, int]:
    """(bubbles whose centre lies on True of ``mask`` [H, W], all bubbles)."""
    x, y = np.array(points, np.int64).reshape(-1, 3)[:, :2].T // 16
    height, width = mask.shape
    return int(mask[y.clip(0, height - 1), x.clip(0, width - 1)].sum()), len(points)


def alike_rounds(rounds: Iterable[Round]) -> set[str]:
    """The ids of one person's rounds whose strokes are nearly those of a round of another image.

    Strokes are compared by ``PATH_POINTS`` points at even shares of their bubbles, in shares of the image's sides.
    """
    own = [round for round in rounds if len(round.points) >= FEW_BUBBLES]
    if len(own) < 2:
        return set()
    paths = np.stack([_path(round) for round in own])  # [n, PATH_POINTS, 2]
    images = np.array([round.image for round in own])
    alike = set[str]()
    for number, round in enumerate(own):
        distance = np.hypot(*np.moveaxis(paths - paths[number], 2, 0)).mean(1)
        if ((distance < ALIKE) & (images != round.image)).any():
            alike.add(round.id)
    return alike


def shrink(heatmap: torch.Tensor, side: int) -> torch.Tensor:
    """A map [H, W] averaged to at most ``side`` pixels of its longer side."""
    longest = max(heatmap.shape)
    if longest <= side:
        return heatmap
    height, width = (max(1, round(length * side / longest)) for length in heatmap.shape)
    return F.adaptive_avg_pool2d(heatmap[None], (height, width))[0]


def _path(round: Round) -> np.ndarray:
    points = np.array(round.points, np.float64)[:, :2] / (16 * round.width, 16 * round.height)
    at = np.linspace(0, len(points) - 1, PATH_POINTS)
    return np.stack([np.interp(at, np.arange(len(points)), column) for column in points.T], 1)


def grouped(rounds: Iterable[Round], field: str) -> dict[str, list[Round]]:
    """Rounds by the value of a field, as "image" and "participant"."""
    groups = defaultdict[str, list[Round]](list)
    for round in rounds:
        groups[getattr(round, field)].append(round)
    return groups


def _mean(values: Iterable[float]) -> float | None:
    values = list(values)
    return sum(values) / len(values) if values else None
