"""Runs the paper's experiment in small: does it help to teach the attention where to look if the background misleads?

`python -m experiments.clickme` draws scenes in which a small pattern is the class. The background's hue agrees with it
in most training scenes, and in the test scenes only by chance. It trains ResNet, SE-ResNet and GALA-ResNet, the last
without and with human maps (here the blurred place of the pattern) at several λ. It prints the paper's table with mean
and spread over seeds, and writes results.json, results.png and examples.png. Finished trainings are kept in `--runs`;
one that was interrupted continues from its last epoch.
"""

import argparse
import datetime
import json
import multiprocessing
import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

import gala_cuda
from gala_cuda.training.recipe import git_state

from . import cells, report
from .settings import SIZES, Settings

RESULTS = Path(__file__).resolve().parents[2] / "benchmarks" / "results"


def main(arguments: list[str] | None = None) -> int:
    options = _parse(arguments)
    settings = SIZES[options.size]
    folder = options.runs or Path(f"runs/clickme-experiment-{options.size}")
    if not _continues(folder, settings):
        print(
            f"experiments.clickme: {folder} holds trainings of other settings; expected another --runs", file=sys.stderr
        )
        return 2
    console, began = Console(width=None if sys.stdout.isatty() else 150), time.perf_counter()
    results = train(settings, folder, options.device, options.jobs, console)
    report.show(results, console)
    options.output.mkdir(parents=True, exist_ok=True)
    record = {
        "size": options.size,
        "settings": asdict(settings),
        "environment": _environment(options),
        "seconds": time.perf_counter() - began,
        "chosen_level": report.best_level(results),
        "summary": report.summary(results),
        "cells": results,
    }
    (options.output / "results.json").write_text(json.dumps(record, indent=1) + "\n")
    report.draw_results(results, options.output / "results.png")
    report.draw_examples(results, settings, folder, options.output / "examples.png")
    console.print(f"written: results.json, results.png and examples.png in {options.output}", highlight=False)
    return 0


def train(settings: Settings, folder: Path, device: str, jobs: int, console: Console) -> list[dict[str, Any]]:
    """The results of all cells, `jobs` at a time, each in a process with one thread."""
    todo = list(settings.cells())
    began, found = time.perf_counter(), {}
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn")) as pool:
        futures = {pool.submit(cells.run, cell, settings, folder, device): cell for cell in todo}
        for future in as_completed(futures):
            cell, result = futures[future], future.result()
            found[cell] = result
            test, seconds = result["test"], time.perf_counter() - began
            console.print(
                f"{len(found):>3}/{len(todo)}  {cell.name:<22} error {test['error']:6.1%}  of the background "
                f"{test['deceived']:6.1%}  {result['seconds']:5.0f} s, {seconds:.0f} s in all", highlight=False,
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
    gpu = torch.device(options.device).type == "cuda"
    return {
        "gala_cuda": gala_cuda.__version__,
        "torch": torch.__version__,
        "git": git_state(),
        "device": torch.cuda.get_device_name(options.device) if gpu else "cpu",
        "jobs": options.jobs,
        "date": datetime.date.today().isoformat(),
    }


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--size", choices=tuple(SIZES), default="default", help="default: minutes on two cores; large: for a GPU; "
        "smoke: seconds, to see that it runs (default: %(default)s)")  # fmt: skip
    add("--smoke", action="store_const", const="smoke", dest="size", help="the same as --size smoke")
    add("--device", default="cpu", help="cpu, cuda, cuda:1 (default: %(default)s)")
    add("--jobs", type=int, help="trainings at a time (default: one for each core; 1 on a GPU)")
    add("--runs", type=Path, help="folder of the trainings (default: runs/clickme-experiment-SIZE)")
    today = datetime.date.today().isoformat()
    add("--output", type=Path, default=RESULTS / f"clickme-experiment-{today}",
        help="folder of the results (default: benchmarks/results/clickme-experiment-DATE)")  # fmt: skip
    options = parser.parse_args(arguments)
    if options.jobs is None:
        options.jobs = 1 if options.device.startswith("cuda") else len(os.sched_getaffinity(0))
    return options


if __name__ == "__main__":
    sys.exit(main())
