"""A study to try the game with: photographs that ship with scikit-image and scikit-learn, nothing downloaded."""

import importlib.util
from pathlib import Path

from PIL import Image, ImageOps

from ..errors import GalaError

SIDE = 160  # pixels of the images: small enough that a round's brush reaches all that matters, and a beginner wins
CONSENT = (
    "This is a trial of the game. What you paint is kept in the study's folder on the computer that runs it, and "
    "nowhere else: the places and times of your strokes, on which images, whether the partner recognised them, and the "
    "size of your window.\n\nYou can delete it at any time.\n"
)
SETTINGS = """\
title: ClickMe, a trial
people: 10
ceiling_share: 0
repeats: true
"""
# ImageNet's names, and the photographs: the package and the file in it.
_PICTURES = {
    "Egyptian cat": ("skimage", "data/chelsea.png"),
    "missile": ("skimage", "data/rocket.jpg"),
    "moped": ("skimage", "data/motorcycle_left.png"),
    "palace": ("sklearn", "datasets/images/china.jpg"),
    "daisy": ("sklearn", "datasets/images/flower.jpg"),
}
# Where squares are taken: the left and upper border and the side, as shares of the picture's shorter side. The check at
# import leaves out those in which the partner recognises nothing, or all too much.
_SQUARES = ((0.25, 0, 1), (0.05, 0, 0.9), (0.35, 0.05, 0.85), (0.4, 0.1, 0.8), (0.3, 0.2, 0.7))


def write_demo(folder: Path) -> None:
    """Makes the study in `folder`; what is there already stays. Raises GalaError where a photograph is missing."""
    for label, (package, path) in _PICTURES.items():
        place = folder / "images" / label
        place.mkdir(parents=True, exist_ok=True)
        with Image.open(_file(package, path)) as picture:
            photograph = picture.convert("RGB")
        shorter = min(photograph.size)
        for number, (left, top, side) in enumerate(_SQUARES):
            x, y, length = (round(share * shorter) for share in (left, top, side))
            square = photograph.resize((SIDE, SIDE), Image.Resampling.LANCZOS, (x, y, x + length, y + length))
            for name, image in ((f"{number}.png", square), (f"{number}-mirrored.png", ImageOps.mirror(square))):
                if not (place / name).exists():
                    image.save(place / name)
    for name, content in (("consent.txt", CONSENT), ("study.yaml", SETTINGS)):
        if not (folder / name).exists():
            (folder / name).write_text(content, "utf-8")


def _file(package: str, path: str) -> Path:
    found = importlib.util.find_spec(package)
    if found is None or found.origin is None:
        raise GalaError(f"{package} is not installed; pip install 'gala-cuda[game]'")
    file = Path(found.origin).parent / path
    if not file.is_file():
        raise GalaError(f"there is no {file}; expected {package} with its photographs")
    return file
