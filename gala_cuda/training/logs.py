"""Logs of a training, which all take the same: figures of steps, and epochs."""

import csv
import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, Protocol

from .checkpoint import CheckpointError, write_atomically
from .epoch import Epoch
from .tensorboard import TensorBoard
from .weights_and_biases import WeightsAndBiases


class Log(Protocol):
    """A log that goes on after the step that it was opened at: what a former run logged after that step is dropped."""

    def add_step(self, step: int, **values: float) -> None:
        """Figures of step number `step`, by their names."""

    def add_epoch(self, epoch: Epoch) -> None:
        """An epoch that is done."""

    def close(self) -> None:
        """Nothing is added afterwards."""


class JsonLines:
    """log.jsonl, a line for each epoch. Checkpoints know its `size` in bytes, to which `truncate` goes back."""

    def __init__(self, path: Path):
        self.path = path

    @property
    def size(self) -> int:
        return self.path.stat().st_size

    def truncate(self, size: int) -> None:
        with self.path.open("a") as lines:
            lines.truncate(size)

    def add_step(self, step: int, **values: float) -> None:
        """Steps are not logged."""

    def add_epoch(self, epoch: Epoch) -> None:
        with _writing(self.path), self.path.open("a") as lines:
            print(json.dumps(asdict(epoch)), file=lines)

    def close(self) -> None:
        """Each line is on its own."""


class CsvTable:
    """log.csv, a row for each epoch below the names of its figures."""

    def __init__(self, path: Path, step: int):
        self.path, self._names = path, [each.name for each in fields(Epoch)]
        kept = []
        if step and path.exists():
            with path.open(newline="") as file:
                whole = [row for row in csv.DictReader(file) if None not in row.values()]  # the last may be cut
            kept = [row for row in whole if int(row["step"]) <= step]
        write_atomically(path, b"")
        self._write([dict(zip(self._names, self._names, strict=True)), *kept])

    def add_step(self, step: int, **values: float) -> None:
        """Steps are not logged."""

    def add_epoch(self, epoch: Epoch) -> None:
        self._write([asdict(epoch)])

    def close(self) -> None:
        """Each row is on its own."""

    def _write(self, rows: Iterable[dict[str, Any]]) -> None:
        with _writing(self.path), self.path.open("a", newline="") as file:
            csv.DictWriter(file, self._names, restval="", extrasaction="ignore").writerows(rows)


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise CheckpointError(f"cannot write {path}: {error.strerror}") from error


def open_logs(names: Iterable[str], folder: Path, step: int, recipe: dict[str, Any]) -> list[Log]:
    """The logs of `names` in `folder`, of the training by `recipe`, which has done so many steps.

    Raises:
        ModuleNotFoundError: what a log needs is not installed.
        CheckpointError: the folder cannot be written to.
        LogError: Weights & Biases cannot be started.
    """
    openers: dict[str, Callable[[], Log]] = {
        "csv": lambda: CsvTable(folder / "log.csv", step),
        "tensorboard": lambda: TensorBoard(folder / "tensorboard", step),
        "wandb": lambda: WeightsAndBiases(folder, step, recipe),
    }
    return [openers[name]() for name in names]
