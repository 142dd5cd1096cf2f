"""The JSON file of a part: its steps' results, failures and omissions, written anew after every step."""

import datetime
import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple


class Unavailable(RuntimeError):
    """A step cannot be done here; the message says why."""


class Failed(RuntimeError):
    """A step was done and found something wrong. ``result`` holds what was measured all the same."""

    def __init__(self, message: str, result: dict[str, Any]):
        super().__init__(message)
        self.result = result


class Step(NamedTuple):
    """One measurement. ``run`` returns plain data; it may raise ``Unavailable`` or ``Failed``."""

    name: str
    run: Callable[[], dict[str, Any]]
    seconds: float  # expected on a GPU


class Record:
    """The file ``<folder>/<part>.json``, continued where it exists.

    ``environments`` lists every state of machine and software that contributed; a step's ``environment`` is an index.
    A step has ``result``, ``failed`` (with or without ``result``) or ``left_out``; ``running`` names one under way.
    """

    def __init__(self, folder: Path, part: str, environment: dict[str, Any], settings: dict[str, Any]):
        self.path = folder / f"{part}.json"
        empty = {"part": part, "environments": [], "settings": settings, "running": None, "steps": {}}
        self._data = json.loads(self.path.read_text()) if self.path.exists() else empty
        if environment not in self._data["environments"]:
            self._data["environments"].append(environment)
        self._environment = self._data["environments"].index(environment)

    def settled(self, name: str) -> bool:
        """Whether the step needs not be tried again: it has a result or has failed."""
        return not {"result", "failed"}.isdisjoint(self._data["steps"].get(name, {}))

    def leave_out(self, name: str, reason: str) -> None:
        self._data["steps"][name] = {"left_out": reason}
        self._write()

    def step(self, name: str) -> "_Running":
        """``with record.step(name) as entry: entry["result"] = ...``; absorbs ``Unavailable`` and ``Failed``.

        Every other error is recorded too, and ends the process: what it left on the GPU is unknown.
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
        if isinstance(error, Unavailable):
            entry["left_out"] = str(error)
        elif isinstance(error, Failed):
            entry.update(failed=str(error), result=error.result)
        elif isinstance(error, Exception):
            entry["failed"] = f"{kind.__name__}: {error}"
        elif error is not None:  # interrupted: the step stays under way and is done again
            return False
        self._record.end(self._name, entry)
        return isinstance(error, Unavailable | Failed)


def load(folder: Path, parts: list[str]) -> dict[str, dict[str, Any]]:
    """The records of ``parts`` that exist."""
    paths = {part: folder / f"{part}.json" for part in parts}
    return {part: json.loads(path.read_text()) for part, path in paths.items() if path.exists()}


def fail_running(folder: Path, parts: list[str], reason: str) -> None:
    """Records the step under way, if any, as failed for ``reason``."""
    for part, record in load(folder, parts).items():
        if record["running"] is not None:
            entry = {"environment": len(record["environments"]) - 1, "failed": reason}
            record["steps"][record["running"]] = entry
            record["running"] = None
            _write(folder / f"{part}.json", record)


def entries(records: dict[str, dict[str, Any]], key: str) -> Iterator[tuple[str, str, Any]]:
    """(part, step, value) of every step that has ``key``: "result", "failed" or "left_out"."""
    for part, record in records.items():
        for name, entry in record["steps"].items():
            if key in entry:
                yield part, name, entry[key]


def _write(path: Path, data: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".tmp")
    unfinished.write_text(json.dumps(data, indent=1) + "\n")
    os.replace(unfinished, path)
