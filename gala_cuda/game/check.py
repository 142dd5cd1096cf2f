"""The check at import: an image that is won while hidden, or lost while shown, is no game."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from ..networks.classes import match_classes
from .partner import MAX_BATCH, Answer, Knows
from .records import Picture
from .rules import noise_seed
from .store import ADMIN, Store
from .study import Study, StudyError
from .view import Request

SAVED_EVERY = 64 * MAX_BATCH  # images, so that a check that is interrupted goes on from there
UNCHECKED = "has not been checked yet"


def check_labels(study: Study, classes: Sequence[str], partner: str) -> None:
    """Raises StudyError where the partner, called `partner` in the message, does not know a class of the study."""
    labels = sorted({each.label for each in study.pictures})
    if unknown := [label for label in labels if label not in classes]:
        try:
            match_classes(unknown, classes)
            problem = "has other names for the classes"
        except ValueError as error:
            problem = str(error)
        raise StudyError(
            f"{study.folder / 'images'} {problem}. The network is that of {partner}; expected --partner with a network "
            "of the study's classes, or folders, or labels in study.yaml, named as it names them"
        )


def check_images(
    study: Study, store: Store, ask: Callable[[Sequence[Request]], list[Answer]], knows: Knows, top: int
) -> Iterator[int]:
    """Puts the study's images into the database, each with why it is excluded, if it is.

    Those that the same network has checked before are not shown to it again, nor those that a person has decided about.
    The number of images that remain to be checked is yielded before each step.
    """
    checker = f"{knows.fingerprint[:48]} top {top}"
    pictures = [_undecided(each, checker) for each in study.pictures]
    waiting = [index for index, each in enumerate(pictures) if each.excluded == UNCHECKED]
    store.add_images(pictures)
    for start in range(0, len(waiting), SAVED_EVERY):
        chunk = waiting[start : start + SAVED_EVERY]
        for first in range(0, len(chunk), MAX_BATCH // 2):
            yield len(waiting) - start - first
            few = chunk[first : first + MAX_BATCH // 2]
            hidden = [Request(str(study.file(pictures[i])), (), noise_seed(pictures[i].digest, 0)) for i in few]
            answers = ask([*hidden, *(each._replace(points=None) for each in hidden)])
            for index, dark, shown in zip(few, answers[: len(few)], answers[len(few) :], strict=True):
                reason = _why_no_game(pictures[index].label, dark, shown, top)
                pictures[index] = replace(pictures[index], excluded=reason, checked_by=checker)
        store.add_images(pictures)


def _undecided(picture: Picture, checker: str) -> Picture:
    """`picture` as one to check, unless it has been checked or cannot be."""
    if picture.checked_by in (checker, ADMIN) or (picture.checked_by is None and picture.excluded is not None):
        return picture
    return replace(picture, excluded=UNCHECKED, checked_by=None)


def _why_no_game(label: str, hidden: Answer, shown: Answer, top: int) -> str | None:
    if shown.error:
        return f"cannot be read: {shown.error}"
    if label in hidden.names[:top]:
        return "the partner recognises it while all of it is hidden"
    if label not in shown.names[:top]:
        return f"the partner does not recognise it, but {', '.join(shown.names[:top])}, when all of it is shown"
    return None
