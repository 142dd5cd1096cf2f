"""The JSON file of a part, with the results, failures and omissions of its steps; written anew after every step."""

import datetime
import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from .attempts import ContextLostError
from .uses import Use


class UnavailableError(RuntimeError):
    """A step cannot be done here; the message says why."""


class MeasurementError(RuntimeError):
    """A step found something wrong; `result` holds what was measured all the same."""

    def __init__(self, message: str, result: dict[str, Any]):
        super().__init__(message)
        self.result = result


class Step(NamedTuple):
    """One measurement. `run` returns plain data; it may raise `UnavailableError` or `MeasurementError`."""

    name: str
    run: Callable[[], dict[str, Any]]
    seconds: float  # expected on a GPU
    uses: tuple[Use, ...] = ()  # whose kernels it needs, to compile them before


class Record:
    """The file `<folder>/<part>.json`, continued where it exists.

    `environments` lists every state of machine and software that contributed; a step's `environment` is an index.
    A step has `result`, `failed` (with or without `result`) or `left_out`; `running` names the one that is being done.
    A step that was given up also has the `call` of the suite in which that was: a later call may do it. `excluded`
    has, for each step, the contestants that ended an earlier try of it, and how.
    """

    def __init__(self, folder: Path, part: str, environment: dict[str, Any], settings: dict[str, Any], call: str = ""):
        self.path, self._call = folder / f"{part}.json", call
        empty: dict[str, Any] = {"part": part, "environments": [], "settings": settings}
        empty |= {"running": None, "steps": {}, "excluded": {}}
        self._data = json.loads(self.path.read_text()) if self.path.exists() else empty
        if environment not in self._data["environments"]:
            self._data["environments"].append(environment)
        self._environment = self._data["environments"].index(environment)

    def settled(self, name: str) -> bool:
        """Whether the step has a result or has failed, and so need not be tried again."""
        return not {"result", "failed"}.isdisjoint(self._data["steps"].get(name, {}))

    def to_do(self, steps: list[Step]) -> list[Step]:
        """The steps that this call is to try; those that earlier calls gave up come last."""
        kept = self._data["steps"]
        open_ = [step for step in steps if not self.settled(step.name)]
        open_ = [
            step for step in open_ if "call" not in (entry := kept.get(step.name, {})) or entry["call"] != self._call
        ]
        return sorted(open_, key=lambda step: "call" in kept.get(step.name, {}))

    def leave_out(self, name: str, reason: str) -> None:
        self._data["steps"][name] = {"left_out": reason}
        self._write()

    def excluded(self, name: str) -> dict[str, str]:
        """The contestants that the step must do without, and why."""
        return self._data["excluded"].get(name, {})

    def exclude(self, name: str, contestant: str, reason: str) -> None:
        """Notes that the step is to be tried again without that contestant."""
        self._data["running"] = None
        self._data["excluded"].setdefault(name, {})[contestant] = reason
        self._write()

    def step(self, name: str) -> "_Running":
        """`with record.step(name) as entry: entry["result"] = ...`; absorbs every error but `ContextLostError`.

        `UnavailableError` is recorded as left out, every other error as failed. Where the CUDA context is lost, the
        contestant that was tried is excluded from the step, which is to be tried again.
        """
        return _Running(self, name)

    def begin(self, name: str) -> None:
        self._data["running"] = name
        self._write()

    def end(self, name: str, entry: dict[str, Any]) -> None:
        self._data["running"] = None
        self._data["steps"][name] = {"environment": self._environment, **entry}
        self._write()

    def _write(self) -> None:
        _write(self.path, self._data)


class _Running:
    def __init__(self, record: Record, name: str):
        self._record, self._name = record, name

    def __enter__(self) -> dict[str, Any]:
        self._record.begin(self._name)
        self._start = time.perf_counter()
        self._entry: dict[str, Any] = {"started": datetime.datetime.now().astimezone().isoformat(timespec="seconds")}
        return self._entry

    def __exit__(self, kind, error, traceback) -> bool:
        entry = self._entry
        entry["seconds"] = round(time.perf_counter() - self._start, 3)
        if isinstance(error, UnavailableError):
            entry["left_out"] = str(error)
        elif isinstance(error, MeasurementError):
            entry.update(failed=str(error), result=error.result)
        elif isinstance(error, ContextLostError) and error.contestant not in self._record.excluded(self._name):
            self._record.exclude(self._name, error.contestant, error.reason)
            return False
        elif isinstance(error, Exception):
            entry["failed"] = f"{kind.__name__}: {error}"
        elif error is not None:  # interrupted: the step stays under way and is done again
            return False
        self._record.end(self._name, entry)
        return True


def load(folder: Path, parts: list[str]) -> dict[str, dict[str, Any]]:
    """The records of `parts` that exist."""
    paths = {part: folder / f"{part}.json" for part in parts}
    return {part: json.loads(path.read_text()) for part, path in paths.items() if path.exists()}


def settle_running(folder: Path, parts: list[str], entry: dict[str, Any], contestant: str = "") -> None:
    """Records what became of the step that was being done, if any, when its process died.

    If it died while it tried a contestant, that one is excluded for the reason in `entry`, and the step is still to do.
    """
    for part, record in load(folder, parts).items():
        name = record["running"]
        if name is None:
            continue
        record["running"] = None
        excluded = record["excluded"].setdefault(name, {})
        if contestant and contestant not in excluded:
            excluded[contestant] = entry.get("failed") or entry["left_out"]
        else:
            record["steps"][name] = {"environment": len(record["environments"]) - 1, **entry}
        _write(folder / f"{part}.json", record)


def progress(folder: Path, parts: list[str]) -> int:
    """How much is settled: grows with every step that was done or given up and with every contestant excluded."""
    return sum(
        sum(1 for entry in record["steps"].values() if not {"result", "failed", "call"}.isdisjoint(entry))
        + sum(len(names) for names in record["excluded"].values())
        for record in load(folder, parts).values()
    )


def entries(records: dict[str, dict[str, Any]], key: str) -> Iterator[tuple[str, str, Any]]:
    """(part, step, value) of every step that has `key`: "result", "failed" or "left_out"."""
    for part, record in records.items():
        for name, entry in record["steps"].items():
            if key in entry:
                yield part, name, entry[key]


def _write(path: Path, data: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".tmp")
    unfinished.write_text(json.dumps(data, indent=1) + "\n")
    os.replace(unfinished, path)
