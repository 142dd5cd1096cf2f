"""Checks ClickMe's files: reads every record, counts, measures ranges, and names what is broken."""

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
from .dataset import check_class, find_class_names
from .split_reader import open_splits


@dataclass
class ValueRange:
    """The smallest and the largest of some values; None before there are any."""

    least: float | None = None
    most: float | None = None

    @classmethod
    def of(cls, values: Iterable[float]) -> "ValueRange":
        values_range = cls()
        values_range.add(values)
        return values_range

    def add(self, values: Iterable[float]) -> None:
        for value in values:
            self.least = value if self.least is None else min(self.least, value)
            self.most = value if self.most is None else max(self.most, value)

    def __str__(self) -> str:
        if self.least is None or self.most is None:
            return "-"
        return f"{self.least:.4g}" if self.least == self.most else f"{self.least:.4g} to {self.most:.4g}"


@dataclass
class SplitReport:
    """What is in a split: counts and ranges of its readable records, and the names of the broken ones."""

    records: int
    formats: dict[str, int] = field(default_factory=dict)
    with_map: int = 0
    without_map: int = 0
    classes: dict[int, int] = field(default_factory=dict)
    image_sides: ValueRange = field(default_factory=ValueRange)
    image_values: ValueRange = field(default_factory=ValueRange)
    map_sides: ValueRange = field(default_factory=ValueRange)
    map_values: ValueRange = field(default_factory=ValueRange)  # of images with a map
    duplicates: dict[str, str] = field(default_factory=dict)  # name to that of the first record with the same image
    broken: dict[str, str] = field(default_factory=dict)  # name to reason

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


def check(folder: Path, track: Track) -> dict[str, SplitReport]:
    """Reads every record of every split of ``folder``.

    A record counts as broken where a training would skip it, also for a label outside ``folder``/classes.txt. An image
    that is in two records, of one split or of two, is reported and not counted as a fault.

    Raises FileNotFoundError where there are no ClickMe files.
    """
    splits = open_splits(folder)
    num_classes = len(find_class_names(folder, [])) if (folder / CLASSES).is_file() else None
    reports, first = dict[str, SplitReport](), dict[bytes, str]()
    for split, samples in splits.items():
        reports[split] = report = SplitReport(len(samples))
        for index in track(samples, split):
            name, format_name = samples.name(index), samples.format_name(index)
            report.formats[format_name] = report.formats.get(format_name, 0) + 1
            try:
                sample = samples.read(index)
                if num_classes is not None:
                    check_class(sample, num_classes)
            except UnreadableError as error:
                report.broken[name] = str(error)
                continue
            report.add(sample)
            digest = hashlib.blake2b(sample.image.numpy().tobytes(), digest_size=16).digest()
            if digest in first:
                report.duplicates[name] = first[digest]
            else:
                first[digest] = name
    return reports


def print_reports(reports: dict[str, SplitReport], console: Console) -> None:
    """A table with a column for each split, then a line for each broken record."""
    table = Table("", *reports, box=None, pad_edge=False)
    rows: dict[str, Callable[[SplitReport], object]] = {
        "records": lambda split: f"{split.records:,}",
        "format": lambda split: ", ".join(split.formats),
        "with a map": lambda split: f"{split.with_map:,}",
        "without": lambda split: f"{split.without_map:,}",
        "broken": lambda split: f"{len(split.broken):,}",
        "classes": lambda split: f"{len(split.classes):,}",
        "images of a class": lambda split: ValueRange.of(split.classes.values()),
        "image: sides": lambda split: split.image_sides,
        "image: values": lambda split: split.image_values,
        "map: sides": lambda split: split.map_sides,
        "map: values": lambda split: split.map_values,
        "duplicate images": lambda split: f"{len(split.duplicates):,}",
    }
    for name, value in rows.items():
        table.add_row(name, *(str(value(split)) for split in reports.values()))
    console.print(table)
    for split in reports.values():
        for name, reason in split.broken.items():
            console.print(f"broken: {name}: {reason}", markup=False, highlight=False, soft_wrap=True)
