"""What is in ClickMe's files, and what is wrong with them."""

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.table import Table

from ..clickme_sample import ClickMeSample
from ..errors import UnreadableError
from ..folders import CLASSES
from .convert import Track
from .images import checked_class, class_names
from .samples import open_splits


@dataclass
class Spread:
    """The smallest and the largest of some values; None before there are any."""

    least: float | None = None
    most: float | None = None

    @classmethod
    def of(cls, values: Iterable[float]) -> "Spread":
        spread = cls()
        spread.add(values)
        return spread

    def add(self, values: Iterable[float]) -> None:
        for value in values:
            self.least = value if self.least is None else min(self.least, value)
            self.most = value if self.most is None else max(self.most, value)

    def __str__(self) -> str:
        if self.least is None or self.most is None:
            return "-"
        return f"{self.least:.4g}" if self.least == self.most else f"{self.least:.4g} to {self.most:.4g}"


@dataclass
class Split:
    """Counts and ranges of a split's readable records, and the names of the others."""

    records: int
    formats: dict[str, int] = field(default_factory=dict)
    with_map: int = 0
    without_map: int = 0
    classes: dict[int, int] = field(default_factory=dict)
    image_sides: Spread = field(default_factory=Spread)
    image_values: Spread = field(default_factory=Spread)
    map_sides: Spread = field(default_factory=Spread)
    map_values: Spread = field(default_factory=Spread)  # of those that are there
    duplicates: dict[str, str] = field(default_factory=dict)  # by name: the first record with the same image
    broken: dict[str, str] = field(default_factory=dict)  # by name: why

    def add(self, sample: ClickMeSample) -> None:
        self.with_map += bool(sample.has_map)
        self.without_map += not sample.has_map
        label = int(sample.label)
        self.classes[label] = self.classes.get(label, 0) + 1
        self.image_sides.add(sample.image.shape[1:])
        self.image_values.add(map(float, sample.image.aminmax()))
        if sample.has_map:
            self.map_sides.add(sample.heatmap.shape[1:])
            self.map_values.add(map(float, sample.heatmap.aminmax()))


def check(folder: Path, track: Track) -> dict[str, Split]:
    """Reads every record of every split of ``folder``.

    Broken are those that a training would skip, also for a label outside ``folder``/classes.txt. An image that is in
    two records, of one split or of two, is told; it is no fault.

    Raises FileNotFoundError where there are no ClickMe files.
    """
    splits = open_splits(folder)
    classes = len(class_names(folder, [])) if (folder / CLASSES).is_file() else None
    report, first = dict[str, Split](), dict[bytes, str]()
    for split, samples in splits.items():
        report[split] = found = Split(len(samples))
        for index in track(samples, split):
            name = samples.name(index)
            format = samples.format(index)
            found.formats[format] = found.formats.get(format, 0) + 1
            try:
                sample = checked_class(samples.read(index), classes)
            except UnreadableError as error:
                found.broken[name] = str(error)
                continue
            found.add(sample)
            digest = hashlib.blake2b(sample.image.numpy().tobytes(), digest_size=16).digest()
            if digest in first:
                found.duplicates[name] = first[digest]
            else:
                first[digest] = name
    return report


def print_report(report: dict[str, Split], console: Console) -> None:
    """A table with a column for each split, then a line for each broken record."""
    table = Table("", *report, box=None, pad_edge=False)
    rows: dict[str, Callable[[Split], object]] = {
        "records": lambda split: f"{split.records:,}",
        "format": lambda split: ", ".join(split.formats),
        "with a map": lambda split: f"{split.with_map:,}",
        "without": lambda split: f"{split.without_map:,}",
        "broken": lambda split: f"{len(split.broken):,}",
        "classes": lambda split: f"{len(split.classes):,}",
        "images of a class": lambda split: Spread.of(split.classes.values()),
        "image: sides": lambda split: split.image_sides,
        "image: values": lambda split: split.image_values,
        "map: sides": lambda split: split.map_sides,
        "map: values": lambda split: split.map_values,
        "duplicate images": lambda split: f"{len(split.duplicates):,}",
    }
    for name, value in rows.items():
        table.add_row(name, *(str(value(split)) for split in report.values()))
    console.print(table)
    for split in report.values():
        for name, why in split.broken.items():
            console.print(f"broken: {name}: {why}", markup=False, highlight=False, soft_wrap=True)
