"""`gala-cuda tune`: measures on a GPU which tiles the Triton kernels are fastest with, and writes them as a table."""

import contextlib
import datetime
import os
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table as Grid

from .. import backends
from ..backends.triton import config as table
from ..diagnostics import describe, dtype_name, version
from ..version import __version__
from .candidates import Shape
from .suite import SHAPES, BenchmarkError
from .timing import Clock, alternate
from .tuned_row import Say, TileError, TunedRow

REDUCTION = 4
_Work = dict[tuple[int, str], list[tuple[Shape, torch.dtype]]]


@dataclass(frozen=True)
class Settings:
    """What to tune for: the rows of the table that these feature maps fall in, with R = C / 4 hidden units."""

    shapes: tuple[tuple[int, int, int], ...] = SHAPES  # C, H, W
    batches: tuple[int, ...] = (32, 256)
    dtypes: tuple[torch.dtype, ...] = (torch.bfloat16, torch.float32)
    layouts: tuple[str, ...] = ("channels_last",)
    seconds: float = 0.5  # of timing, for each comparison of two passes
    device: str = "cuda"


def default_output() -> Path:
    """Where the user's own table is written by default."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "gala_cuda", "triton-table.json")


def tune(
    settings: Settings, output: Path, say: Say = lambda text, lasting: None, time: Clock | None = None
) -> list[TunedRow]:
    """Tunes each row of the table in use that `settings` fall in.

    After each row it writes the whole table, with the rows found so far, to `output`.

    `time` stands in for `timing.alternate` in tests, which may then be on the CPU in Triton's interpreter.

    Raises:
        BenchmarkError: it cannot be measured here, or `output` holds a table that would be lost.
        TableError: the table in use is missing or malformed, or has no row to start from.
    """
    device = torch.device(settings.device)
    _refuse(settings, device, output, measuring=time is None)
    from .search import Search  # it needs Triton

    path = table.in_use()
    start = table.read(path)
    rows, measured = list(start.rows), list(start.measured)
    try:
        work = _work(settings, rows, table.architecture(device))
    except LookupError as error:
        raise table.TableError(f"the table of tiles {path} {error}") from error
    found = []
    with torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext():
        for number, ((index, layout), problems) in enumerate(work.items(), 1):
            where, config = rows[index]
            tuned = TunedRow(where, config, config)
            say(f"row {number} of {len(work)}: {tuned.name}", True)
            try:
                Search(tuned, layout, problems, settings.seconds, device, say, time or alternate).run()
            except torch.OutOfMemoryError as error:
                raise BenchmarkError(f"{tuned.name}: {device} has too little memory; choose a smaller batch") from error
            except TileError as error:
                raise BenchmarkError(str(error)) from error
            rows[index] = where, tuned.after
            measured = [entry for entry in measured if entry.get("for") != where]
            measured.append(_record(tuned, problems, device))
            table.write(output, rows, measured)
            found.append(tuned)
    return found


def print_results(found: Iterable[TunedRow], console: Console) -> None:
    """Prints what changed, and which tiles were left out and why."""
    found = list(found)
    grid = Grid(title="Tiles: sizes in the table's order, warps, stages", title_justify="left")
    for heading in ("row", "kernel", "before", "after"):
        grid.add_column(heading)
    grid.add_column("speed-up of its pass", justify="right")
    for tuned in found:
        for i, name in enumerate(table.KERNELS):
            before, after = getattr(tuned.before, name), getattr(tuned.after, name)
            same = before == after
            cells = (str(before), "the same" if same else str(after), "" if same else f"{tuned.gains[name]:.3f}x")
            grid.add_row(tuned.name if i == 0 else "", name, *cells, style="dim" if same else None)
        for name, speedup in tuned.speedup.items():
            value = "not known" if speedup is None else f"{speedup:.3f}x"
            grid.add_row("", f"{name}, all of it", "", "", value, style="bold", end_section=name == "backward")
    console.print(grid)
    for tuned in found:
        for kernel, tile, reason in tuned.dropped:
            console.print(f"not timed: {tuned.name}: {kernel} {tile}: {reason}", style="dim", highlight=False)


def _refuse(settings: Settings, device: torch.device, output: Path, measuring: bool) -> None:
    if measuring and (device.type != "cuda" or not torch.cuda.is_available()):
        seen = f"{torch.cuda.device_count()} CUDA devices"
        raise BenchmarkError(f"tune measures on a GPU; device is {device}, and torch sees {seen}; nothing was written")
    for dtype in settings.dtypes:
        if reason := backends.why_not("triton", torch.empty(0, dtype=dtype, device=device)):
            raise BenchmarkError(f"the Triton backend cannot run: {reason}")
    if output.exists() and not (table.in_use().exists() and output.samefile(table.in_use())):
        raise BenchmarkError(
            f"{output} exists and is not the table in use, which tuning starts from; set GALA_TRITON_TABLE={output} to "
            "go on from it, or name another file to write"
        )


def _work(settings: Settings, rows: list[table.Row], arch: int) -> _Work:
    """The shapes and dtypes to tune for, by the index of the row that they fall in, and by layout.

    Rows of a new architecture are added for all widths: else the widths that are not tuned would fall to a row that is.
    """
    work: _Work = {}
    for layout in settings.layouts:
        for dtype in settings.dtypes:
            kind = dtype.itemsize, layout == "channels_last"
            latest = table.newest(rows, arch, *kind)
            if latest[0][0]["arch"] != arch:
                rows += [({**where, "arch": arch}, config) for where, config in latest]
            for channels, height, width in settings.shapes:
                reduced = max(1, channels // REDUCTION)
                index = rows.index(table.row_of(rows, arch, *kind, reduced))
                problems = work.setdefault((index, layout), [])
                problems += [(Shape(n, channels, height, width, reduced), dtype) for n in settings.batches]
    return work


def _record(tuned: TunedRow, problems: list[tuple[Shape, torch.dtype]], device: torch.device) -> dict[str, Any]:
    """What the file says about how a row was measured."""
    speedup = {name: None if value is None else round(value, 3) for name, value in tuned.speedup.items()}
    return {
        "for": tuned.where,
        "device": describe(device),
        "driver": _driver() if device.type == "cuda" else None,
        "torch": torch.__version__,
        "triton": version("triton"),
        "gala_cuda": __version__,
        "date": datetime.date.today().isoformat(),
        "shapes": list(dict.fromkeys("x".join(map(str, shape[:4])) for shape, _ in problems)),
        "dtypes": list(dict.fromkeys(dtype_name(dtype) for _, dtype in problems)),
        "speedup": speedup,
    }


def _driver() -> str | None:
    """The version of NVIDIA's driver, or None where its tool does not say."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        lines = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout.split()
    except (OSError, subprocess.SubprocessError):
        return None
    return lines[0] if lines else None
