"""Pictures named by a table, a CSV or TSV file of paths and labels: one label for each picture, or any number."""

import csv
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ..errors import SettingError
from .choices import USUAL, Columns
from .folders import SPLITS, canonical_split, split_folder
from .hold_out import hold_out
from .picture_files import ListedPictures

SUFFIXES = (".csv", ".tsv")
IMAGE_COLUMNS = ("image", "path", "file", "filename", "file_name", "filepath", "file_path", "image_path")
LABEL_COLUMNS = ("label", "labels", "class", "classes", "target", "category")
SPLIT_COLUMN = "split"
_YES, _NO = ("1", "1.0", "true", "yes"), ("0", "0.0", "false", "no", "")
_LOOKED_AT = 10  # files, of which one has to be there


@dataclass
class _Row:
    """A picture, the names of its labels, its split or "", and where the table says so."""

    path: str
    labels: list[str]
    split: str
    place: str


def tables_of(source: Path) -> dict[str, Path]:
    """The tables of a source of images: {"": FILE.csv}, or by split {"train": FOLDER/train.csv, ...}; else {}."""
    if source.suffix.lower() in SUFFIXES and not source.is_dir():
        return {"": source}
    if not source.is_dir() or split_folder(source, "train"):
        return {}
    named = {canonical_split(path.stem): path for path in source.iterdir() if path.suffix.lower() in SUFFIXES}
    return {split: path for split, path in named.items() if split in SPLITS} if "train" in named else {}


def open_table(
    tables: dict[str, Path],
    columns: Columns = USUAL,
    tell: Callable[[str], object] = lambda line: None,
    val_share: float | None = None,
    seed: int = 0,
) -> tuple[ListedPictures, ListedPictures, tuple[str, ...]]:
    """(train, val, names of the classes) of the pictures in ``tables``, as ``tables_of`` gives them.

    Paths are relative to the folder of their table. A column "split" says which are which; without one, ``val_share``
    and ``seed`` decide, as for ``hold_out``. Where there is no val, test takes its place.

    Raises:
        FileNotFoundError: a table, or its pictures, are not there.
        ValueError: a column is missing, a value cannot be understood, or a split has no pictures.
        SettingError: ``columns`` or ``val_share`` do not go with the tables.
    """
    rows = [row for split, path in tables.items() for row in _rows(path, split, columns)]
    source = Path(os.path.commonpath([path.parent for path in tables.values()]))
    if columns.multi_label:
        rows = _merged(rows)
    else:
        _refuse_contradictions(rows)
    classes = tuple(sorted({label for row in rows for label in row.labels}, key=in_order))
    _refuse_missing(rows)
    if val_share is not None:
        if any(row.split for row in rows):
            raise SettingError(("val_share",), f"val_share is {val_share}, and {rows[0].place} has a split; "
                               "expected one of them")  # fmt: skip
        pictures = _pictures(source, classes, rows, columns.multi_label)
        held_out = hold_out(pictures, val_share, seed)
        return pictures.take(~held_out), pictures.take(held_out), classes
    parts = {split: [row for row in rows if row.split == split] for split in SPLITS}
    if not parts["val"] and parts["test"]:
        tell(f"tested on the split test of {source}, which has no val")
        parts["val"] = parts["test"]
    for split in ("train", "val"):
        if not parts[split]:
            raise ValueError(f"{source} has no pictures of the split {split}; expected a column {SPLIT_COLUMN!r} "
                             "of train and val, files train.csv and val.csv, or val_share")  # fmt: skip
    _refuse_both(parts["train"], parts["val"])
    train, val = (_pictures(source, classes, parts[split], columns.multi_label) for split in ("train", "val"))
    known = {label for row in parts["train"] for label in row.labels}
    if new := [label for label in classes if label not in known]:
        raise ValueError(f"{source} has classes without pictures to train on: {', '.join(new)}; expected some of each")
    return train, val, classes


def _rows(path: Path, split: str, columns: Columns) -> list[_Row]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            heading = file.readline()
            file.seek(0)
            delimiter = "\t" if path.suffix.lower() == ".tsv" else ";" if "," not in heading and ";" in heading else ","
            lines = csv.DictReader(file, delimiter=delimiter, strict=True)
            names = list(lines.fieldnames or [])
            image = _column(path, names, columns.image, IMAGE_COLUMNS, "image_column")
            assert image is not None
            label = _column(path, names, columns.label, LABEL_COLUMNS, "label_column", columns.multi_label)
            marks = [] if label else [name for name in names if name not in (image, SPLIT_COLUMN)]
            if not label and not marks:
                raise ValueError(f"{path} has the columns {', '.join(names)}; expected one for each label too")
            found = [
                _row(path.parent, f"{path}, line {lines.line_num},", line, image, label, marks, split, columns)
                for line in lines
            ]
    except FileNotFoundError:
        raise FileNotFoundError(f"there is no file {path}; expected a table of paths and labels") from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path} cannot be read as a table: {error}") from error
    if not found:
        raise ValueError(f"{path} has no rows; expected one for each picture")
    return found


def _column(
    path: Path, names: Sequence[str], given: str | None, usual: Sequence[str], setting: str, may_lack: bool = False
) -> str | None:
    """The column that is ``given``, or the first that has one of the ``usual`` names."""
    if given is not None and given not in names:
        raise SettingError((setting,), f"{setting} is {given!r}, and {path} has {', '.join(names)}")
    found = given or next((name for name in names if name.lower().strip() in usual), None)
    if found is None and not may_lack:
        raise SettingError(("data", setting), f"{path} has the columns {', '.join(names)}; expected one of "
                           f"{', '.join(usual)}, or {setting}")  # fmt: skip
    return found


def _row(
    folder: Path,
    place: str,
    line: dict[str, str | None],
    image: str,
    label: str | None,
    marks: Sequence[str],
    split: str,
    columns: Columns,
) -> _Row:
    missing = [name for name in (image, label, *marks) if name is not None and line.get(name) is None]
    if missing or None in line:
        raise ValueError(f"{place} has other columns than the first line; expected {', '.join(filter(None, line))}")
    path = (line[image] or "").strip()
    if not path:
        raise ValueError(f"{place} names no picture")
    if label is None:
        labels = [name for name in marks if _is_yes(place, name, (line[name] or "").strip().lower())]
    else:
        text = (line[label] or "").strip()
        labels = [part.strip() for part in text.replace(";", "|").split("|")] if columns.multi_label else [text]
        labels = [part for part in labels if part]
        if not labels and not columns.multi_label:
            raise ValueError(f"{place} has no {label}; expected the name of a class")
    own = canonical_split((line.get(SPLIT_COLUMN) or "").strip()) or split
    if own not in ("", *SPLITS):
        raise ValueError(f"{place} is of the split {own!r}; expected one of {', '.join(SPLITS)}")
    return _Row(os.path.join(folder, path), labels, own, place)


def _is_yes(place: str, name: str, value: str) -> bool:
    if value not in (*_YES, *_NO):
        raise ValueError(f"{place} has {value!r} in the column {name}; expected 0 or 1")
    return value in _YES


def _merged(rows: Iterable[_Row]) -> list[_Row]:
    """One row for each picture of a split, with the labels of all its rows."""
    found = dict[tuple[str, str], _Row]()
    for row in rows:
        found.setdefault((row.path, row.split), row).labels += row.labels
    return list(found.values())


def _refuse_contradictions(rows: Iterable[_Row]) -> None:
    found = dict[str, _Row]()
    for row in rows:
        before = found.setdefault(row.path, row)
        if before.labels != row.labels:
            raise SettingError(("data", "multi_label"), f"{row.place} has {row.labels[0]!r} for {row.path}, which was "
                               f"{before.labels[0]!r} before; expected one label, or multi_label")  # fmt: skip


def _refuse_both(train: Iterable[_Row], val: Iterable[_Row]) -> None:
    trained = {row.path for row in train}
    if again := next((row for row in val if row.path in trained), None):
        raise ValueError(f"{again.place} has {again.path} to test on, which is to train on too; expected one of them")


def _refuse_missing(rows: Sequence[_Row]) -> None:
    if not any(os.path.exists(row.path) for row in rows[:_LOOKED_AT]):
        raise FileNotFoundError(f"{rows[0].place} names {rows[0].path}, which is not there; expected paths that are "
                                "absolute or relative to the table's folder")  # fmt: skip


def in_order(name: str) -> tuple[bool, int, str]:
    """Numbers come first, by their size."""
    return not name.isdecimal(), int(name) if name.isdecimal() else 0, name


def _pictures(folder: Path, classes: Sequence[str], rows: Sequence[_Row], multi_label: bool) -> ListedPictures:
    number_of = {name: number for number, name in enumerate(classes)}
    if multi_label:
        labels = torch.zeros(len(rows), len(classes), dtype=torch.bool)
        for i, row in enumerate(rows):
            labels[i, [number_of[label] for label in row.labels]] = True
    else:
        labels = torch.tensor([number_of[row.labels[0]] for row in rows])
    return ListedPictures(folder, classes, np.array([os.fsencode(row.path) for row in rows]), labels)
