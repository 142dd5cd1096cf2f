"""Which start of GALA serves a ResNet, and does it help to teach its attention where to look?

`python -m experiments` trains ResNet, SE-ResNet, CBAM-ResNet and GALA-ResNets of several starts on made-up scenes and
on real pictures, chooses for each its learning rate and weight decay on validation images, and tests five further
trainings. On the scenes, where a small pattern is the class and the background's hue misleads, GALA is also taught with
human maps (here the blurred place of the pattern) at several λ. It prints tables with paired differences, and writes
results.json and pictures. Finished trainings are kept in `--runs`; one that was interrupted continues from its last
epoch. The real pictures come in packages: pip install ".[experiments]".
"""

import argparse
import datetime
import json
import multiprocessing
import os
import sys
import time
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from gala_cuda.diagnostics import describe, doctor
from gala_cuda.training.recipe_file import git_state

from . import cells, choose, report
from .networks import gala
from .settings import SIZES, Cell, Settings, decay_trials, finals, rate_trials

RESULTS = Path(__file__).resolve().parents[1] / "benchmarks" / "results"


def main(arguments: list[str] | None = None) -> int:
    options = _parse(arguments)
    settings = SIZES[options.size]
    folder = options.runs or Path(f"runs/experiments-{options.size}")
    if not _continues(folder, settings):
        print(f"experiments: {folder} holds trainings of other settings; expected another --runs", file=sys.stderr)
        return 2
    console = Console(width=None if sys.stdout.isatty() else 150)
    study = Study(settings, folder, options.device, options.jobs, console)
    results = study.run()
    entries = report.summary(results["cells"])
    report.show(entries, console)
    record = {
        "size": options.size,
        "settings": asdict(settings),
        "environment": _environment(options),
        "seconds_of_trainings": sum(cell["seconds"] for cell in results["trials"] + results["cells"]),
        "summary": entries,
        **results,
    }
    options.output.mkdir(parents=True, exist_ok=True)
    (options.output / "results.json").write_text(json.dumps(record, indent=1) + "\n")
    report.draw_errors(results["cells"], options.output / "errors.png")
    report.draw_levels(results["cells"], settings, options.output / "levels.png")
    report.draw_examples(study.examples(results["cells"]), settings, folder, options.output / "examples.png")
    console.print(f"written: results.json, errors.png, levels.png, examples.png in {options.output}", highlight=False)
    return 0


class Study:
    """The trainings of `settings`, `jobs` at a time, each in a process with one thread; `folder` keeps them."""

    def __init__(self, settings: Settings, folder: Path, device: str, jobs: int, console: Console):
        self.settings, self.folder, self.device, self.jobs, self.console = settings, folder, device, jobs, console
        self.began = time.perf_counter()

    def run(self) -> dict[str, Any]:
        """{"trials": results to choose by, "choices": what was chosen, "cells": results of the test}."""
        trials = self.train(rate_trials(self.settings))
        trials += self.train(decay_trials(self.settings, choose.best(trials)))
        choices = choose.best(trials)
        tested = self.train(finals(self.settings, choices))
        chosen = [{"data": data, "network": network, "lr": lr, "decay": decay}
                  for (data, network), (lr, decay) in choices.items()]  # fmt: skip
        return {"choices": chosen, "cells": tested, "trials": trials}

    def examples(self, tested: list[dict[str, Any]]) -> dict[str, Cell]:
        """The trainings of the first seed whose maps are drawn, by their titles."""
        data, network = next(iter(self.settings.data)), gala(list(self.settings.taught)[-1])
        taught = report.best_level(tested, data, network)
        rows = {"ResNet": ("ResNet", 0.0), "GALA": (network, 0.0), "GALA, taught": (network, taught)}
        found = {title: report.select(tested, data, *row)[0] for title, row in rows.items()}
        return {title: Cell(**{each.name: cell[each.name] for each in fields(Cell)}) for title, cell in found.items()}

    def train(self, todo: Iterable[Cell]) -> list[dict[str, Any]]:
        todo, found = list(todo), dict[Cell, dict[str, Any]]()
        with ProcessPoolExecutor(self.jobs, multiprocessing.get_context("spawn")) as pool:
            futures = {pool.submit(cells.run, cell, self.settings, self.folder, self.device): cell for cell in todo}
            for future in as_completed(futures):
                cell, result = futures[future], future.result()
                found[cell] = result
                self.console.print(
                    f"{len(found):>3}/{len(todo)}  {cell.name:<64} validation error {result['val']['error']:6.1%}  "
                    f"{result['seconds']:5.0f} s, {time.perf_counter() - self.began:.0f} s in all", highlight=False,
                )  # fmt: skip
        return [found[cell] for cell in todo]


def _continues(folder: Path, settings: Settings) -> bool:
    """Whether the folder is new or holds trainings of the same settings, which are never overwritten."""
    path, text = folder / "settings.json", json.dumps(asdict(settings), indent=1) + "\n"
    if path.is_file():
        return path.read_text() == text
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return True


def _environment(options: argparse.Namespace) -> dict[str, Any]:
    found = doctor()
    return {
        "versions": found.versions,
        "instructions": found.instruction_set,
        "git": git_state(),
        "device": describe(torch.device(options.device)),
        "jobs": options.jobs,
        "date": datetime.date.today().isoformat(),
    }


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "python -m experiments", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--size", choices=tuple(SIZES), default="default", help="default: about two hours on two cores; long: the "
        "scenes alone, in longer trainings, one hour; large: for a GPU; smoke: seconds, to see that it runs "
        "(default: %(default)s)")  # fmt: skip
    add("--smoke", action="store_const", const="smoke", dest="size", help="the same as --size smoke")
    add("--device", default="cpu", help="cpu, cuda, cuda:1 (default: %(default)s)")
    add("--jobs", type=int, help="trainings at a time (default: one for each core; 1 on a GPU)")
    add("--runs", type=Path, help="folder of the trainings (default: runs/experiments-SIZE)")
    today = datetime.date.today().isoformat()
    add("--output", type=Path, default=RESULTS / f"experiments-{today}",
        help="folder of the results (default: benchmarks/results/experiments-DATE)")  # fmt: skip
    options = parser.parse_args(arguments)
    if options.jobs is None:
        options.jobs = 1 if options.device.startswith("cuda") else len(os.sched_getaffinity(0))
    return options


if __name__ == "__main__":
    sys.exit(main())
