"""Finished rounds and the study's images as a folder that ``gala-cuda train --clickme`` reads."""

import json
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from ..clickme.score import human_ceiling
from ..data.folders import CLASSES, SPLITS, split_folder
from ..data.hold_out import held_out_count, hold_out
from ..data.human_maps.convert import LeftOut, Track, check_new, new_folder, write_splits
from ..data.human_maps.formats import WRITERS
from ..data.human_maps.people import read_people, write_people
from ..data.picture_files import ListedPictures
from ..data.picture_folder import PictureFolder
from ..errors import GalaError
from ..version import __version__
from .maps import MapOptions, StudyRecords
from .quality import Filters, grouped
from .records import Round

ROUNDS, REPORT = "rounds.jsonl", "collect.json"


class CollectError(GalaError):
    """There is nothing to collect; the message says why."""


@dataclass(frozen=True)
class FileOptions:
    """How files are written and images divided.

    Attributes:
        kind: one of ``WRITERS``.
        per_shard: samples in a TFRecord or tar file.
        val_share: share of each class that is held out where the study has no split val; 0 holds out none.
        seed: decides which images are held out.
    """

    kind: str = "webdataset"
    per_shard: int = 1000
    val_share: float = 0.2
    seed: int = 0


@dataclass(frozen=True)
class Collected:
    """What was written.

    Attributes:
        rounds: finished rounds, ``counted`` of them in the maps, of ``people``.
        uncounted: number of rounds for each reason why they do not count.
        images: number of images of each split; ``mapped`` of all have a map.
        undivided: classes with too few images to hold some out, which are in train as a whole.
        ceiling: mean split-half correlation between people; None where no image has maps of two.
        shared: images with maps of two people or more.
        left_out: (image, reason) of what cannot be read or written.
    """

    rounds: int
    counted: int
    people: int
    uncounted: dict[str, int]
    images: dict[str, int]
    mapped: int
    undivided: tuple[str, ...]
    ceiling: float | None
    shared: int
    left_out: LeftOut


def collect(
    images: Path, target: Path, rounds: Sequence[Round], track: Track, filters: Filters | None = None,
    map_options: MapOptions | None = None, file_options: FileOptions | None = None,
) -> Collected:  # fmt: skip
    """Writes the images of STUDY/images with the maps of ``rounds`` to the new folder ``target``: whole, or not at all.

    Beside the records lie classes.txt, rounds.jsonl with every stroke of every round, collect.json, which says how all
    was made, and people/ with single people's maps of images that several painted.

    Raises:
        CollectError: no round counts.
        FileNotFoundError: ``images`` has no pictures, or a split val and no train.
        FileExistsError: ``target`` has something in it, or lies in ``images``.
        OSError: the disk is full, ...
    """
    filters, files = filters or Filters(), file_options or FileOptions()
    check_new(target, images)
    reasons = [filters.why_not(round) for round in rounds]
    numbers = Counter(reason for reason in reasons if reason)
    uncounted = dict(sorted(numbers.items(), key=lambda each: (-each[1], each[0])))
    counting = [round for round, reason in zip(rounds, reasons, strict=True) if reason is None]
    if not counting:
        listed = "; ".join(f"{reason} ({number:,})" for reason, number in uncounted.items())
        raise CollectError(f"none of {len(rounds):,} finished rounds counts{': ' * bool(listed)}{listed}")
    pictures, undivided = open_pictures(images, files.val_share, files.seed)
    classes = sorted({name for each in pictures.values() for name in each.classes})
    by_image = grouped(counting, "image")
    splits = {
        split: StudyRecords(each, images, classes, by_image, map_options or MapOptions())
        for split, each in pictures.items()
    }
    gone = by_image.keys() - {name for split in splits.values() for name in split.all_names}
    with new_folder(target) as folder:
        _, left_out = write_splits(folder, splits, WRITERS[files.kind], files.per_shard, track)
        (folder / CLASSES).write_text("\n".join(classes) + "\n", "utf-8", "surrogateescape")
        shared = _write_people(folder, splits, {name for name, _ in left_out})
        _write_rounds(folder / ROUNDS, rounds, reasons)
        collected = Collected(
            len(rounds), len(counting), len({round.participant for round in counting}), uncounted,
            {split: len(each) for split, each in splits.items()},
            sum(each.has_map(each.name(index)) for each in splits.values() for index in range(len(each))),
            undivided, _ceiling(folder) if shared else None, shared,
            [*left_out, *((name, f"the image of {len(by_image[name])} rounds is not there") for name in sorted(gone))],
        )  # fmt: skip
        _write_report(folder / REPORT, collected, filters, map_options or MapOptions(), files, splits)
    return collected


def open_pictures(images: Path, val_share: float, seed: int) -> tuple[dict[str, ListedPictures], tuple[str, ...]]:
    """(the pictures of each split, classes that are in train as a whole because a share of them would be all).

    The splits are those of ``images``/SPLIT/CLASS/*; where there is none val, a share of each class of train, or of
    ``images``/CLASS/*, is held out for it, as ``train --val-share`` does.

    Raises FileNotFoundError where there are no pictures, or a split val and no train.
    """
    if not images.is_dir():
        raise FileNotFoundError(f"there is no folder {images}; expected {images}/[SPLIT/]CLASS/*")
    folders = {split: folder for split in SPLITS if (folder := split_folder(images, split)) is not None}
    if folders and "train" not in folders:
        raise FileNotFoundError(f"there is no folder {images / 'train'} beside {' and '.join(folders)}; expected one")
    found: dict[str, ListedPictures] = {
        split: PictureFolder(folder) for split, folder in (folders or {"train": images}).items()
    }
    if "val" in found or not val_share:
        return found, ()
    whole = found["train"]
    divided = torch.tensor([held_out_count(n, val_share) < n for n in whole.labels.bincount().tolist()])
    undivided = tuple(name for name, is_divided in zip(whole.classes, divided, strict=True) if not is_divided)
    if not divided.any():
        return found, undivided
    held_out = divided[whole.labels]
    held_out[held_out.clone()] = hold_out(whole.take(held_out), val_share, seed)
    rest = {split: found[split] for split in found if split != "train"}
    return {"train": whole.take(~held_out), "val": whole.take(held_out), **rest}, undivided


def _write_people(folder: Path, splits: Mapping[str, StudyRecords], left_out: Collection[str]) -> int:
    """Writes single people's maps of the images that two or more painted; the number of these images."""
    shared = 0
    for split, records in splits.items():
        for index in range(len(records)):
            maps, participants = records.people(index)
            if len(maps) > 1 and records.name(index) not in left_out:
                write_people(folder, f"{split}/{records.key(index)}", np.stack(maps), participants)
                shared += 1
    return shared


def _ceiling(folder: Path) -> float | None:
    try:
        return human_ceiling(maps for _, maps in read_people(folder))
    except ValueError:  # all maps are constant
        return None


def _write_rounds(path: Path, rounds: Sequence[Round], reasons: Sequence[str | None]) -> None:
    """Every round as a line of JSON, with ``counts`` and, where it does not, ``why_not``."""
    with path.open("w", encoding="utf-8") as file:
        for round, reason in zip(rounds, reasons, strict=True):
            verdict = {"counts": reason is None} | ({"why_not": reason} if reason else {})
            file.write(json.dumps(asdict(round) | verdict) + "\n")


def _write_report(
    path: Path, collected: Collected, filters: Filters, maps: MapOptions, files: FileOptions,
    splits: Mapping[str, StudyRecords],
) -> None:  # fmt: skip
    """How all was made, and which images are in which split."""
    chosen = {name: sorted(value) if isinstance(value, frozenset) else value for name, value in asdict(filters).items()}
    report = {
        "gala_cuda": __version__, "filters": chosen, "maps": asdict(maps), "files": asdict(files),
        "collected": asdict(collected),
        "splits": {split: [each.name(index) for index in range(len(each))] for split, each in splits.items()},
    }  # fmt: skip
    path.write_text(json.dumps(report, indent=1) + "\n", "utf-8")
