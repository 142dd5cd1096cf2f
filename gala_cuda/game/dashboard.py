"""What the admin's page shows of a study: numbers, people, and images with their maps as they grow."""

import io
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from PIL import Image

from ..data.picture_decoding import decode_picture
from .quality import Filters, ImageQuality, Meter, Quality
from .records import PLAY, Picture
from .rules import click_map
from .store import Store

FRESH, REST = 5.0, 10  # numbers are shown again for so many seconds, or times as long as they took to compute
SHOWN_SIDE = 480  # pixels of the longer side of a map
PAGE = 24  # images on a page

Order = Callable[[Picture, ImageQuality | None], Any]


def _least(value: float | None) -> float:
    """For sorting: what is not known comes last."""
    return 2.0 if value is None else value


ORDERS: dict[str, Order] = {
    "rounds": lambda picture, known: -(known.rounds if known else 0),
    "agreement": lambda picture, known: _least(known.agreement if known else None),
    "recognised": lambda picture, known: _least(known.recognised if known else None),
    "excluded": lambda picture, known: picture.excluded is None,
    "name": lambda picture, known: 0,
}


class Dashboard:
    """Numbers and pictures of the study in the folder ``study``.

    Args:
        masks: image of a catch round, its path below STUDY/catch, to where its object is, bool [H, W].
    """

    def __init__(self, store: Store, study: Path, masks: Mapping[str, np.ndarray]):
        self.store, self.study = store, study
        self._meter, self._lock = Meter(masks), threading.Lock()
        self._made: tuple[float, Quality] | None = None  # until when it is shown again

    def forget(self) -> None:
        """Has the numbers computed anew, for what is excluded has changed."""
        with self._lock:
            self._made = None

    def quality(self) -> Quality:
        with self._lock:
            if self._made is None or self._made[0] < time.monotonic():
                began = time.monotonic()
                quality = self._meter.measure(self.store.rounds(), self.filters())
                now = time.monotonic()
                self._made = now + max(FRESH, REST * (now - began)), quality
            return self._made[1]

    def filters(self) -> Filters:
        """Which rounds count: as in the paper, without what is excluded."""
        people, images = self.store.excluded()
        return Filters(people=people, images=images)

    def summary(self) -> dict[str, Any]:
        """All but the images, ready for JSON."""
        quality, pictures = self.quality(), self.store.images()
        played = [picture for picture in pictures if picture.kind == PLAY and picture.excluded is None]
        people = {image.image: image.people for image in quality.images}
        known = {person.participant: asdict(person) for person in quality.people}
        shown = asdict(quality) | {
            "images": {
                "played": len(played),
                "excluded": sum(picture.kind == PLAY for picture in pictures) - len(played),
                "painted": sum(people.get(picture.path, 0) > 0 for picture in played),
                "wanted": sum(picture.people for picture in played),
                "had": sum(min(people.get(picture.path, 0), picture.people) for picture in played),
            },
            "people": [
                known.get(person.code, {}) | {"participant": person.code, "name": person.name, "joined": person.joined,
                                              "excluded": person.excluded}
                for person in self.store.participants()
            ],
        }  # fmt: skip
        return shown

    def pictures(self, order: str, page: int) -> dict[str, Any]:
        """``PAGE`` of the images that are played or excluded, ready for JSON. ``order`` is one of ``ORDERS``."""
        quality = {image.image: image for image in self.quality().images}
        pictures = [picture for picture in self.store.images() if picture.kind == PLAY]
        pictures.sort(key=lambda picture: (ORDERS[order](picture, quality.get(picture.path)), picture.path))
        return {
            "total": len(pictures),
            "page": PAGE,
            "images": [
                {
                    "id": picture.id, "path": picture.path, "label": picture.label, "wanted": picture.people,
                    "excluded": picture.excluded, "width": picture.width, "height": picture.height,
                }
                | (asdict(quality[picture.path]) if picture.path in quality else {"rounds": 0, "people": 0})
                for picture in pictures[page * PAGE : (page + 1) * PAGE]
            ],
        }  # fmt: skip

    def map_of(self, number: int) -> bytes | None:
        """The image with id ``number`` under the map of its rounds that count, as PNG; None where there is no such.

        Raises UnreadableError, OSError: the image cannot be read.
        """
        picture = self.store.picture(number)
        if picture is None or picture.kind != PLAY:
            return None
        filters = self.filters()
        rounds = [round for round in self.store.rounds(number) if filters.why_not(round) is None]
        points = tuple(point for round in rounds for point in round.points)
        image = decode_picture((self.study / "images" / picture.path).read_bytes())
        return overlay(image, click_map(points, image.height, image.width))


def overlay(image: Image.Image, heatmap: np.ndarray) -> bytes:
    """A PNG of ``image`` with a map [H, W] of 0 to 1 over it; the picture is dark where nobody painted."""
    shown = image.copy()
    shown.thumbnail((SHOWN_SIDE, SHOWN_SIDE))
    heat = np.asarray(Image.fromarray(heatmap).resize(shown.size, Image.Resampling.BOX))[..., None]
    painted = heatmap.any()
    below = np.asarray(shown, np.float32) / 255 * (0.55 + 0.45 * np.sqrt(heat) if painted else 1)
    colour = colormaps["inferno"](0.25 + 0.75 * heat[..., 0])[..., :3]
    mixed = below * (1 - 0.6 * np.sqrt(heat)) + colour * 0.6 * np.sqrt(heat)
    stream = io.BytesIO()
    Image.fromarray((255 * mixed.clip(0, 1)).astype(np.uint8)).save(stream, "PNG")
    return stream.getvalue()
