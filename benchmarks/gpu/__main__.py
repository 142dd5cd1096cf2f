"""Runs the measurements that are missing, then prints, draws and packs all results: `python -m benchmarks.gpu`.

It runs from a checkout and needs torch, timm, rich and matplotlib, but no pip and no network. It exits with 1 if a step
failed, in this call or in the results that it continues, and with 2 if nothing can be run.
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

from . import archive, attempts, charts, predict, records, summary
from .environment import ROOT, slug
from .schedule import MEASURED, PARTS
from .worker import MARKER, RESTART

LOG_WIDTH = 160  # columns where the output is no terminal
WORKER = (sys.executable, "-m", "benchmarks.gpu.worker")
PREPARE = (sys.executable, "-m", "benchmarks.gpu.prepare")
DRY_RUN_SECONDS = 1e6  # a slow CPU is no reason to leave something out
SAMPLE = 16  # kernels: each once, less some


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
    parts = [part for part in MEASURED if part in options.parts]
    if options.again:
        for part in parts:
            (folder / f"{part}.json").unlink(missing_ok=True)
    started = _run(options, folder, parts)
    console = Console(width=None if sys.stdout.isatty() else LOG_WIDTH)
    found = records.load(folder, list(PARTS))
    summary.show(found, console)
    for path in charts.draw(found, folder):
        print(path)
    if options.dry_run:
        predict.show(folder, parts, options.seconds, options.compile, console)
    print(f"results: {archive.write(found, folder)}")
    return 1 if not started or any(records.entries(found, "failed")) else 0


def _run(options: argparse.Namespace, folder: Path, parts: list[str]) -> bool:
    """Runs the preparation, then everything else, within the seconds of `options`; a dry run prepares nothing."""
    end = time.monotonic() + (DRY_RUN_SECONDS if options.dry_run else options.seconds)
    arguments = ["--output", str(folder.resolve()), "--parts", *parts]
    arguments += ["--call", datetime.datetime.now().astimezone().isoformat()]
    arguments += ["--dry-run"] if options.dry_run else []
    arguments += [] if options.seed is None else ["--seed", str(options.seed)]
    if not options.dry_run:
        supervise([*PREPARE, *arguments], folder, ["prepare"], options.seconds)
    return supervise([*WORKER, *arguments], folder, parts, end - time.monotonic())


def supervise(command: list[str], folder: Path, parts: list[str], seconds: float) -> bool:
    """Runs the worker, and another one for what remains if it dies; False if one dies before its first step."""
    end, marker = time.monotonic() + seconds, folder / MARKER
    while True:
        before = records.progress(folder, parts)
        left = max(0.0, end - time.monotonic())
        code = subprocess.run([*command, "--seconds", f"{left:.1f}"], cwd=ROOT, check=False).returncode
        contestant = attempts.tried(marker)
        marker.unlink(missing_ok=True)
        if code == 0:
            return True
        ended = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        if code != RESTART:
            records.settle_running(folder, parts, _fate(command, code, ended), contestant)
        if records.progress(folder, parts) == before:
            print(f"benchmarks.gpu: the worker ended with {ended} before it did anything", file=sys.stderr)
            return False


def _fate(command: list[str], code: int, ended: str) -> dict[str, str]:
    """What is recorded of a step whose worker died: given up if its time was over, else failed.

    The worker exits with 1 when a step's time is over (`faulthandler`). A step that was given up has the `call` in
    which that was, so that the same call does not try it again.
    """
    if code != 1:
        return {"failed": f"the process ended with {ended}; its output says more"}
    call = command[command.index("--call") + 1] if "--call" in command else ""
    return {"left_out": f"{attempts.TIMED_OUT}; the output has a trace of where it stood", "call": call}


def _folder(dry_run: bool) -> Path:
    if dry_run:
        return Path("runs/gpu-dry-run")
    name = slug(torch.cuda.get_device_name(0))
    return ROOT / "benchmarks" / "results" / f"{name}-{datetime.date.today().isoformat()}"


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="benchmarks.gpu", description=__doc__)
    parts = "default: all, in this order; extension and kernels are prepared in any case"
    parser.add_argument("--parts", nargs="+", choices=MEASURED, default=list(MEASURED), help=parts)
    seconds = "time on a GPU for all but drawing (default: %(default)s); a dry run predicts such a call"
    parser.add_argument("--seconds", type=float, default=540, help=seconds)
    parser.add_argument("--again", action="store_true", help="drop what is recorded of these parts")
    parser.add_argument("--output", type=Path, help="default: benchmarks/results/<device>-<date>, runs/gpu-dry-run")
    dry_run = "tiny sizes on the CPU, then how long each part is predicted to take on a GPU"
    parser.add_argument("--dry-run", action="store_true", help=dry_run)
    compiled = "Triton kernels that a dry run compiles for its prediction, or all (default: %(default)s)"
    parser.add_argument("--compile", type=_number, default=SAMPLE, metavar="NUMBER", help=compiled)
    parser.add_argument("--seed", type=int, help="of random data, to repeat a run; default: a new one, recorded")
    return parser.parse_args(arguments)


def _number(text: str) -> int | None:
    """A whole number from 0 on; None for "all"."""
    if text == "all":
        return None
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r}; expected a whole number or all")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
