"""A study's folder: its images, classes, consent and settings.

STUDY/images/[SPLIT/]CLASS/*   what is played
STUDY/consent.txt              what players agree to
STUDY/practice/CLASS/*         optional: what everybody plays first
STUDY/catch/CLASS/*            optional: images whose object is plain, each NAME.* with a mask NAME.mask.png
STUDY/study.yaml               optional: the fields of `Settings`
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..data.errors import UnreadableError
from ..data.folders import SPLITS, split_folder
from ..data.picture_decoding import decode_picture
from ..data.picture_files import describe_left_out, read_file
from ..data.picture_folder import PictureFolder
from ..errors import GalaError
from .records import CATCH, PLAY, PRACTICE, Picture
from .rules import REVEALED

CONSENT, SETTINGS, MASK = "consent.txt", "study.yaml", ".mask.png"
FOLDERS = {PLAY: "images", PRACTICE: "practice", CATCH: "catch"}
LARGE = 512  # pixels of an image's shorter side, from where on bubbles are small for it


class StudyError(GalaError):
    """A study's folder lacks something, or holds what cannot be played."""


@dataclass(frozen=True)
class Settings:
    """What study.yaml may say.

    Attributes:
        title: of the study; the folder's name unless given.
        people: how many are to play each image before others come first.
        ceiling_share, ceiling_people: this share of the images is to be played by at least so many people, so that the
            agreement between people can be measured.
        catch_every: one of so many rounds is a catch trial, where there are any; 0 for none.
        repeats: begin again with images that a player has seen, once there are no others; such rounds score 0.
        labels: the name of the class that a folder has, as players read it and as the network knows it.
    """

    title: str = ""
    people: int = 1
    ceiling_share: float = 0.1
    ceiling_people: int = 10
    catch_every: int = 10
    repeats: bool = False
    labels: Mapping[str, str] | None = None


@dataclass(frozen=True)
class Study:
    """A study as its folder holds it; see `load_study`."""

    folder: Path
    settings: Settings
    consent: str
    pictures: tuple[Picture, ...]

    @property
    def title(self) -> str:
        return self.settings.title or self.folder.resolve().name

    @property
    def consent_hash(self) -> str:
        return hashlib.sha256(self.consent.encode()).hexdigest()

    def file(self, picture: Picture) -> Path:
        return self.folder / FOLDERS[picture.kind] / picture.path

    def masks(self) -> dict[str, np.ndarray]:
        """Where the object of each catch image is, by the image's path: bool [H, W]."""
        return {each.path: _mask(self.file(each)) for each in self.pictures if each.kind == CATCH and not each.excluded}


def load_study(folder: Path, known: Sequence[Picture] = (), tell: Callable[[str], object] = lambda line: None) -> Study:
    """The study in `folder`.

    Images that cannot be read, or are too small, are excluded with a reason.

    Args:
        known: the images of the study's database; one that has been checked already, and is unchanged, is not decoded
            again.
        tell: is called with a line about files that are left out and about images that are large for the game.

    Raises:
        StudyError: the folder, images or consent are missing, a class has a single image, or a setting is wrong.
    """
    if not folder.is_dir():
        raise StudyError(f"there is no folder {folder}; expected a study: images/CLASS/* and {CONSENT}")
    consent, settings = _consent(folder / CONSENT), read_settings(folder / SETTINGS)
    by_path = {(each.kind, each.path): each for each in known}
    pictures = list[Picture]()
    for kind, name in FOLDERS.items():
        place = folder / name
        if kind != PLAY and not place.is_dir():
            continue
        for path, class_name in _images(place, kind, tell):
            label = (settings.labels or {}).get(class_name, class_name)
            pictures.append(_picture(kind, place, path, label, settings, by_path.get((kind, path))))
    _check_pictures(folder, pictures, tell)
    return Study(folder, settings, consent, tuple(pictures))


def _consent(path: Path) -> str:
    try:
        text = path.read_text("utf-8-sig").strip()
    except OSError as error:
        raise StudyError(f"{path} cannot be read: {error.strerror}; expected what players agree to") from error
    except UnicodeDecodeError as error:
        raise StudyError(f"{path} is not written in UTF-8: {error}") from error
    if not text:
        raise StudyError(f"{path} is empty; expected what players agree to")
    return text


def read_settings(path: Path) -> Settings:
    """The settings of a study.yaml; the default ones where there is no such file. Raises StudyError."""
    if not path.exists():
        return Settings()
    import yaml

    try:
        read = yaml.safe_load(path.read_text("utf-8-sig"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise StudyError(f"{path} cannot be read: {error}") from error
    given = {} if read is None else read
    known = [each.name for each in fields(Settings)]
    if not isinstance(given, dict) or (unknown := sorted(str(name) for name in given if name not in known)):
        wrong = ", ".join(unknown) if isinstance(given, dict) else type(given).__name__
        raise StudyError(f"{path} holds {wrong}; expected {', '.join(known)}")
    for name, value in given.items():
        _check_setting(path, name, value)
    return Settings(**given)


def _check_setting(path: Path, name: str, value: Any) -> None:
    expected = {
        "title": ("a text", isinstance(value, str)),
        "people": ("a whole number of at least 1", type(value) is int and value >= 1),
        "ceiling_people": ("a whole number of at least 1", type(value) is int and value >= 1),
        "ceiling_share": ("a number from 0 to 1", type(value) in (int, float) and 0 <= value <= 1),
        "catch_every": ("0 or a whole number of at least 2", type(value) is int and (value == 0 or value >= 2)),
        "repeats": ("true or false", isinstance(value, bool)),
        "labels": (
            "a name for each folder's name",
            isinstance(value, dict) and all(isinstance(each, str) for pair in value.items() for each in pair),
        ),
    }
    text, holds = expected[name]
    if not holds:
        raise StudyError(f"{path}: {name} is {value!r}; expected {text}")


def _images(place: Path, kind: str, tell: Callable[[str], object]) -> list[tuple[str, str]]:
    """(path below `place`, class) of each image in it, whether in folders of splits or not."""
    try:
        splits = [each for split in SPLITS if (each := split_folder(place, split)) is not None]
        opened = [PictureFolder(each) for each in splits or [place]]
    except (FileNotFoundError, ValueError) as error:
        raise StudyError(
            f"{error}" if place.is_dir() else f"there is no folder {place}; expected CLASS/* in it"
        ) from error
    found, left_out = list[tuple[str, str]](), list[str]()
    for pictures in opened:
        left_out += pictures.left_out
        for index, label in enumerate(pictures.labels.tolist()):
            path = Path(pictures.name(index)).relative_to(place).as_posix()
            if kind == CATCH and path.endswith(MASK):
                continue
            if not path.isprintable() or not _is_utf8(path):
                raise StudyError(f"{path!r} in {place} has no plain name; expected printable characters in UTF-8")
            found.append((path, pictures.classes[label]))
    if line := describe_left_out(left_out):
        tell(line)
    return found


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _picture(kind: str, place: Path, path: str, label: str, settings: Settings, known: Picture | None) -> Picture:
    people = settings.ceiling_people if kind == PLAY and _is_of_ceiling(path, settings) else settings.people
    made = Picture(0, kind, path, label, 0, 0, "", people)
    try:
        data = read_file(str(place / path))
        made = replace(made, digest=hashlib.sha256(data).hexdigest())
        if known is not None and known.digest == made.digest and known.checked_by is not None:
            return replace(
                known, label=label, people=people, checked_by=known.checked_by if known.label == label else None
            )
        width, height = decode_picture(data).size
    except OSError as error:
        return replace(made, excluded=f"cannot be read: {error.strerror or error}")
    except UnreadableError as error:
        return replace(made, excluded=f"cannot be read: {error}")
    made = replace(made, width=width, height=height)
    if min(width, height) < REVEALED:
        return replace(made, excluded=f"has {width} x {height} pixels; expected at least {REVEALED} a side")
    if kind == CATCH and (problem := _why_no_mask(place / path, (height, width))):
        raise StudyError(problem)
    return made


def _is_of_ceiling(path: str, settings: Settings) -> bool:
    """Whether an image is one of the share that many people play: by a digest, so that adding images changes few."""
    number = int.from_bytes(hashlib.blake2b(path.encode(), digest_size=8).digest(), "big")
    return number < settings.ceiling_share * 2**64


def mask_file(image: Path) -> Path:
    """The mask of a catch image: NAME.mask.png beside NAME.jpg."""
    return image.with_name(image.stem + MASK)


def _mask(image: Path) -> np.ndarray:
    return np.asarray(decode_picture(read_file(str(mask_file(image)))).convert("L")) > 127


def _why_no_mask(image: Path, shape: tuple[int, int]) -> str | None:
    try:
        mask = _mask(image)
    except (OSError, UnreadableError) as error:
        return f"{mask_file(image)} cannot be read: {error}; expected a mask, white where the object of {image.name} is"
    if mask.shape != shape:
        return f"{mask_file(image)} has {mask.shape[1]} x {mask.shape[0]} pixels; expected {shape[1]} x {shape[0]}"
    return None if mask.any() and not mask.all() else f"{mask_file(image)} is of one colour; expected a mask"


def _check_pictures(folder: Path, pictures: Sequence[Picture], tell: Callable[[str], object]) -> None:
    counts = Counter(each.label for each in pictures if each.kind == PLAY)
    single = sorted(label for label, count in counts.items() if count < 2)
    if single:
        raise StudyError(
            f"{folder / 'images'} has a single image of {', '.join(single)}; expected at least 2 of each class"
        )
    playable = [each for each in pictures if each.kind == PLAY and each.excluded is None]
    if not playable and all(each.excluded.startswith("cannot be read") for each in pictures if each.excluded):
        first = next(each for each in pictures if each.excluded)
        raise StudyError(f"none of the images in {folder / 'images'} can be read; {first.path} {first.excluded}")
    large = [each for each in playable if min(each.width, each.height) > LARGE]
    if large:
        tell(
            f"{len(large)} images, such as {large[0].path} of {large[0].width} x {large[0].height} pixels, are large "
            "for bubbles of 14 pixels; expected a shorter side of about 256"
        )
