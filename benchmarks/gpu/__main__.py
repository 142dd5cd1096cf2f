"""``python -m benchmarks.gpu``, from the checkout: runs what is missing, then prints and draws what is there.

Exits with 1 where a step failed, now or in the records continued, and with 2 where nothing can be run.
"""

import argparse
import datetime
import signal
import subprocess
import sys
import time
from pathlib import Path

import torch
from rich.console import Console

from . import charts, records, summary
from .environment import ROOT, slug
from .settings import PARTS

LOG_WIDTH = 160  # columns where the output is no terminal
WORKER = (sys.executable, "-m", "benchmarks.gpu.worker")


def main(arguments: list[str] | None = None) -> int:
    options = _parse(arguments)
    if not (options.dry_run or torch.cuda.is_available()):
        built = "built for the CPU alone" if torch.version.cuda is None else f"built for CUDA {torch.version.cuda}"
        print(
            f"benchmarks.gpu: no usable NVIDIA GPU (torch {torch.__version__}, {built}); "
            "--dry-run runs everything in small on the CPU",
            file=sys.stderr,
        )
        return 2
    folder = options.output or _folder(options.dry_run)
    parts = [part for part in PARTS if part in options.parts]
    if options.again:
        for part in parts:
            (folder / f"{part}.json").unlink(missing_ok=True)
    command = [*WORKER, "--output", str(folder.resolve()), "--parts", *parts]
    command += ["--dry-run"] if options.dry_run else []
    command += [] if options.seed is None else ["--seed", str(options.seed)]
    started = supervise(command, folder, parts, options.seconds)
    found = records.load(folder, list(PARTS))
    summary.show(found, Console(width=None if sys.stdout.isatty() else LOG_WIDTH))
    for path in charts.draw(found, folder):
        print(path)
    print(f"results: {folder}")
    return 1 if not started or any(records.entries(found, "failed")) else 0


def supervise(command: list[str], folder: Path, parts: list[str], seconds: float) -> bool:
    """Runs the worker, and another for what remains where one dies; False where one dies before its first step."""
    end = time.monotonic() + seconds
    while True:
        before = _settled(folder, parts)
        left = max(0.0, end - time.monotonic())
        code = subprocess.run([*command, "--seconds", f"{left:.1f}"], cwd=ROOT, check=False).returncode
        if code == 0:
            return True
        ended = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        records.fail_running(folder, parts, f"the process ended with {ended} or was given up; its output says more")
        if _settled(folder, parts) == before:
            print(f"benchmarks.gpu: the worker ended with {ended} before it did anything", file=sys.stderr)
            return False


def _settled(folder: Path, parts: list[str]) -> int:
    found = records.load(folder, parts)
    return sum(1 for key in ("result", "failed") for _ in records.entries(found, key))


def _folder(dry_run: bool) -> Path:
    if dry_run:
        return Path("runs/gpu-dry-run")
    name = slug(torch.cuda.get_device_name(0))
    return ROOT / "benchmarks" / "results" / f"{name}-{datetime.date.today().isoformat()}"


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="benchmarks.gpu", description=__doc__)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="default: all, in this order")
    parser.add_argument("--seconds", type=float, default=480, help="time for all parts (default: %(default)s)")
    parser.add_argument("--again", action="store_true", help="drop what is recorded of these parts")
    parser.add_argument("--output", type=Path, help="default: benchmarks/results/<device>-<date>, runs/gpu-dry-run")
    parser.add_argument("--dry-run", action="store_true", help="tiny sizes on the CPU")
    parser.add_argument("--seed", type=int, help="of random data, to repeat a run; default: a new one, recorded")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
