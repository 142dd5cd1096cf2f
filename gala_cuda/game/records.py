"""What a game's database holds, as its readers see it."""

import json
from dataclasses import dataclass

from .rules import Points

PLAY, PRACTICE, CATCH = KINDS = ("play", "practice", "catch")
RECOGNISED, TIMEOUT, SKIP, INTERRUPTED = OUTCOMES = ("recognised", "timeout", "skip", "interrupted")
POINTERS = ("mouse", "touch", "pen", "keyboard")


@dataclass(frozen=True)
class Picture:
    """An image of a study.

    Attributes:
        id: in the database; 0 before it is there.
        kind: "play", "practice" or "catch": the folder images, practice or catch that it lies in.
        path: below that folder, with "/" between the parts.
        label: its class.
        digest: of the file's content.
        people: how many are to play it before others come first.
        checked_by: what checked it: a digest of the network and its settings, "admin", or None.
        excluded: why it is not played; None where it is.
    """

    id: int
    kind: str
    path: str
    label: str
    width: int
    height: int
    digest: str
    people: int = 1
    checked_by: str | None = None
    excluded: str | None = None


@dataclass(frozen=True)
class Participant:
    """A player. Times are seconds of UTC.

    Attributes:
        recruit: a number that is the same for all participants with one recruiter's id; None without such an id.
        excluded: why their rounds do not count; None where they do.
    """

    code: str
    name: str
    joined: float
    consent_hash: str
    recruit: int | None
    excluded: str | None = None


@dataclass(frozen=True)
class Round:
    """A finished round. Times are seconds of UTC, sizes pixels.

    Attributes:
        image: path of the image below the folder of its `kind` (see `Picture`).
        label: its class.
        participant: code of the player.
        attempt: 1 where the player saw the image for the first time.
        outcome: "recognised", "timeout", "skip" or "interrupted".
        recognised_n: bubbles after which the partner recognised the image, or None.
        points: all bubbles; `recognised_points` are the first `recognised_n`.
        untimed: whether it was played without a timer.
        pointer: "mouse", "touch", "pen" or "keyboard".
        ratio, screen_width, screen_height: of the screen: device pixels per CSS pixel, and the window in CSS pixels.
        width, height: of the image.
    """

    id: str
    image: str
    label: str
    kind: str
    participant: str
    attempt: int
    started: float
    finished: float
    outcome: str
    recognised_n: int | None
    score: float
    points: Points
    untimed: bool
    pointer: str
    ratio: float
    screen_width: int
    screen_height: int
    width: int
    height: int


@dataclass(frozen=True)
class OpenRound:
    """A round as the server plays it; `finished` is None until it is over."""

    id: str
    participant: str
    picture: Picture
    attempt: int
    untimed: bool
    started: float
    recognised_n: int | None
    recognised_points: Points
    finished: float | None

    @property
    def scores(self) -> bool:
        """Whether it counts: practice does not, and an image that the player has seen before does not."""
        return self.picture.kind != PRACTICE and self.attempt == 1


@dataclass(frozen=True)
class Device:
    """What a round was played on; see `Round`."""

    pointer: str
    ratio: float
    width: int
    height: int


def points_to_text(points: Points) -> str:
    return json.dumps(points, separators=(",", ":"))


def points_from_text(text: str | None) -> Points:
    return tuple((x, y, ms) for x, y, ms in json.loads(text or "[]"))
