"""Every kernel of the table of tiles compiled ahead of time: registers, memory, spills and tensor-core instructions.

``python -m tools.kernel_report.triton_report`` needs Triton and no GPU. Exits with 1 where a kernel spills, needs more
memory than its GPU has or lacks the tensor-core instructions that it must have. Compiled kernels stay in Triton's
cache.
"""

import argparse
import json
import os
import sys
from collections import defaultdict
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
import triton
from rich.console import Console
from rich.progress import track
from rich.table import Table

from gala_cuda.backends.triton.config import TABLE, TableError

from .compiled_kernels import GPUS, TENSOR_CORES, VARIANTS, collect, compiled, faults, read_rows

COLUMNS = (
    "x",  # bits of its elements
    "kernel",
    "compiled",
    "registers",
    "spills, B",
    "shared, KiB",
    "tensor memory",
    "tensor cores",
    "wide loads",
    "instructions",
)


def main(arguments: list[str] | None = None) -> int:
    options = _parse(arguments)
    try:
        rows = read_rows(options.table, options.rows, options.arch)
    except TableError as error:
        sys.exit(f"triton_report: {error}")
    if unknown := {row.arch for row in rows} - GPUS.keys():
        sys.exit(f"triton_report: rows for architectures {sorted(unknown)}, expected some of {sorted(GPUS)}")
    uses = collect(rows, options.variants, options.kernels)
    if not uses:
        sys.exit("triton_report: the table has none of these rows, architectures, variants and kernels")
    records = []
    for (launch, used), code in zip(uses.items(), _compile_all(list(uses), options.jobs), strict=True):
        record = {
            "arch": launch.arch,
            "kernel": launch.kernel,
            "bits": sorted({8 * row.element for row, _ in used}),
            "rows": list(dict.fromkeys(row.name for row, _ in used)),
            "variants": list(dict.fromkeys(variant.name for _, variant in used)),
            "constants": launch.constants,
            "faults": faults(launch, used[0][0].element, code),
        }
        records.append(record if isinstance(code, str) else record | code._asdict())
    _print(records, Console(width=None if sys.stdout.isatty() else 140))
    if options.output:
        _write(records, options.output)
    return 1 if any(record["faults"] for record in records) else 0


def _compile_all(launches: list, jobs: int) -> Iterable:
    """Their code, in order, with progress on stderr."""
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        code = pool.map(compiled, launches)
        yield from track(code, f"{len(launches)} kernels", len(launches), console=Console(stderr=True))


def summary(records: list[dict[str, Any]]) -> dict[int, list[tuple[str, ...]]]:
    """For each architecture a line of COLUMNS for each kernel and width of x's elements."""
    groups: dict[tuple[int, str, tuple[int, ...]], list[dict[str, Any]]] = defaultdict(list)
    for record in records:
        if "registers" in record:
            groups[record["arch"], record["kernel"], tuple(record["bits"])].append(record)
    lines: dict[int, list[tuple[str, ...]]] = defaultdict(list)
    for (arch, kernel, bits), group in sorted(groups.items(), key=lambda item: (item[0][0], item[0][2], item[0][1])):
        spilled = max(record["stack"] + record["local"] for record in group)
        loads = sum(record["wide_loads"] + record["narrow_loads"] for record in group)
        lines[arch].append(
            (
                ", ".join(map(str, bits)),
                kernel,
                str(len(group)),
                _range(record["registers"] for record in group),
                str(spilled),
                f"{max(record['shared'] for record in group) / 1024:.0f}",
                str(max(record["tensor_columns"] for record in group)),
                _tensor_cores(group),
                f"{sum(record['wide_loads'] for record in group) / loads:.0%}" if loads else "-",
                _range(record["instructions"] for record in group),
            )
        )
    return lines


def _tensor_cores(group: list[dict[str, Any]]) -> str:
    found = {name: [record["tensor_cores"].get(name, 0) for record in group] for name in TENSOR_CORES}
    return ", ".join(f"{_range(numbers)} {name}" for name, numbers in found.items() if any(numbers)) or "-"


def _range(numbers: Iterable[int]) -> str:
    numbers = list(numbers)
    least, most = min(numbers), max(numbers)
    return str(most) if least == most else f"{least}-{most}"


def _title(arch: int) -> str:
    gpu = GPUS[arch]
    return f"sm_{arch} ({gpu.name}, at most {gpu.shared >> 10} KiB of shared memory)"


def _faulty(records: list[dict[str, Any]]) -> list[str]:
    lines = []
    for record in records:
        where = f"{', '.join(record['rows'])}; {', '.join(record['variants'])}"
        lines += [f"sm_{record['arch']} {record['kernel']} ({where}): {fault}" for fault in record["faults"]]
    return lines


def _print(records: list[dict[str, Any]], console: Console) -> None:
    for arch, lines in summary(records).items():
        table = Table(title=_title(arch), title_justify="left")
        for column in COLUMNS:
            left = column in ("kernel", "tensor cores")
            table.add_column(column, justify="left" if left else "right", no_wrap=left)
        for line in lines:
            table.add_row(*line)
        console.print(table)
    for fault in _faulty(records):
        console.print(fault, style="red", highlight=False, markup=False, soft_wrap=True)
    failed = sum(1 for record in records if record["faults"])
    console.print(f"{len(records)} kernels, {failed} with faults", style="red" if failed else "green")


def _write(records: list[dict[str, Any]], folder: Path) -> None:
    """report.json, a kernel a line, and report.md."""
    folder.mkdir(parents=True, exist_ok=True)
    versions = {"triton": triton.__version__, "torch": torch.__version__}
    body = ",\n".join(json.dumps(record) for record in records)
    (folder / "report.json").write_text(f'{{"versions": {json.dumps(versions)}, "kernels": [\n{body}\n]}}\n')
    rule = "|".join(":--" if column in ("kernel", "tensor cores") else "--:" for column in COLUMNS)
    text = [
        "# Compile report",
        f"{len(records)} kernels compiled with Triton {triton.__version__}; no GPU ran them.",
        "A line's figures are ranges over its kernels, or the largest. Under x stand the bits of its elements, under "
        "wide loads the share of the loads from global memory that take 128 bits or more a thread; tensor memory is "
        "counted in columns.",
    ]
    for arch, lines in summary(records).items():
        head = [f"## {_title(arch)}\n", f"|{'|'.join(COLUMNS)}|", f"|{rule}|"]
        text.append("\n".join([*head, *(f"|{'|'.join(line)}|" for line in lines)]))
    faulty = [f"- {line}" for line in _faulty(records)] or ["None."]
    text.append("\n".join(["## Faults\n", *faulty]))
    (folder / "report.md").write_text("\n\n".join(text) + "\n")


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="triton_report", description=__doc__)
    parser.add_argument("--arch", nargs="+", type=int, choices=GPUS, default=[], help="default: those that have rows")
    rows = "patterns of arch-bits-layout-hidden, such as '*-16-nchw-*'; default: all"
    parser.add_argument("--rows", nargs="+", default=["*"], metavar="PATTERN", help=rows)
    names = [variant.name for variant in VARIANTS]
    parser.add_argument("--variants", nargs="+", choices=names, default=[], help="default: all")
    parser.add_argument("--kernels", nargs="+", default=[], metavar="NAME", help="default: all")
    parser.add_argument("--table", type=Path, default=TABLE, help="default: the shipped one")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes; default: %(default)s")
    parser.add_argument("--output", type=Path, help="a folder for report.json and report.md; default: none")
    options = parser.parse_args(arguments)
    if triton.knobs.runtime.interpret:
        parser.error("TRITON_INTERPRET is set, expected unset: the interpreter compiles nothing")
    return options


if __name__ == "__main__":
    sys.exit(main())
