"""Finished rounds of the game, made by hand."""

from dataclasses import replace

import numpy as np
from PIL import Image

from gala_cuda.game.records import Round

ROUND = Round(
    id="r", image="cat/0.png", label="cat", kind="play", participant="ann", attempt=1, started=1.0, finished=5.0,
    outcome="recognised", recognised_n=10, score=50.0, points=(), untimed=False, pointer="mouse", ratio=1.0,
    screen_width=1280, screen_height=800, width=64, height=48,
)  # fmt: skip
CLASSES = ("cat", "dog")


def line(x, y, dx=2, dy=0, count=20):
    """Bubbles from (x, y) on, in pixels of the image, each ``dx``, ``dy`` after the last."""
    return tuple((16 * (x + dx * k), 16 * (y + dy * k), 50 * k) for k in range(count))


def made(number, points=None, **fields):
    """A round with an id of its own."""
    drawn = line(10, 10) if points is None else points
    return replace(ROUND, id=f"r{number}", started=float(number), points=drawn, **fields)


def write_images(folder, per_class=5, split="", size=(64, 48)):
    """CLASS/N.png below ``folder``/``split``, or .jpg for the fifth of each class."""
    rng = np.random.default_rng(len(split))
    for name in CLASSES:
        place = folder / split / name
        place.mkdir(parents=True)
        for number in range(per_class):
            pixels = rng.integers(0, 255, (size[1], size[0], 3), np.uint8)
            Image.fromarray(pixels).save(place / f"{number}.{'jpg' if number == 4 else 'png'}")
    return folder
