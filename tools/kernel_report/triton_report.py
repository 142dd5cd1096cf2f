"""Compiles every Triton kernel of the table of tiles and reports its registers, memory, spills and tensor cores.

`python -m tools.kernel_report.triton_report` needs Triton but no GPU. It exits with 1 if a kernel spills, needs more
memory than its GPU has or lacks the tensor-core instructions that it must have. Compiled kernels stay in Triton's
cache.
"""

import argparse
import json
import os
import sys
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
import triton
from rich.console import Console
from rich.progress import track

from gala_cuda.backends.triton.config import TABLE, TableError

from . import tables
from .launches import Launch
from .machine_code import GPUS, TENSOR_CORES, Code, compiled, faults
from .rows import IMAGES, VARIANTS, Use, collect, read_rows

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
    "of a turn",
)


def main(arguments: list[str] | None = None) -> int:
    options = _parse(arguments)
    try:
        rows = read_rows(options.table, options.rows, options.arch)
    except TableError as error:
        sys.exit(f"triton_report: {error}")
    if unknown := {row.arch for row in rows} - GPUS.keys():
        sys.exit(f"triton_report: rows for architectures {sorted(unknown)}, expected some of {sorted(GPUS)}")
    uses = collect(rows, options.variants, options.kernels, options.images)
    if not uses:
        sys.exit("triton_report: the table has none of these rows, architectures, variants and kernels")
    every_code = _compile_all(list(uses), options.jobs)
    records = [_record(launch, used, code) for (launch, used), code in zip(uses.items(), every_code, strict=True)]
    sections, faulty = summary(records), _faulty(records)
    failed = sum(1 for record in records if record["faults"])
    console = Console(width=None if sys.stdout.isatty() else 140)
    tables.show(sections, COLUMNS, faulty, f"{len(records)} kernels, {failed} with faults", console)
    if options.output:
        tables.write(options.output / "report.md", _introduction(len(records)), sections, COLUMNS, faulty)
        _write(records, options.output / "report.json")
    return 1 if failed else 0


def _record(launch: Launch, used: list[Use], code: Code | str) -> dict[str, Any]:
    """What report.json says about a kernel."""
    record = {
        "arch": launch.arch,
        "kernel": launch.kernel,
        "bits": sorted({8 * use.row.element for use in used}),
        "rows": list(dict.fromkeys(use.row.name for use in used)),
        "variants": list(dict.fromkeys(use.variant.name for use in used)),
        "images": sorted({use.images for use in used}),
        "constants": launch.constants,
        "faults": faults(launch, used[0].row.element, code),
    }
    return record if isinstance(code, str) else record | code._asdict()


def _compile_all(launches: list[Launch], jobs: int) -> Iterator[Code | str]:
    """Compiles the launches, in order, with progress on stderr."""
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        code = pool.map(compiled, launches)
        yield from track(code, f"{len(launches)} kernels", len(launches), console=Console(stderr=True))


def summary(records: list[dict[str, Any]]) -> tables.Sections:
    """For each architecture a line of COLUMNS for each kernel and width of x's elements."""
    groups: dict[tuple[int, str, tuple[int, ...]], list[dict[str, Any]]] = defaultdict(list)
    for record in records:
        if "registers" in record:
            groups[record["arch"], record["kernel"], tuple(record["bits"])].append(record)
    lines: tables.Sections = defaultdict(list)
    for (arch, kernel, bits), group in sorted(groups.items(), key=lambda item: (item[0][0], item[0][2], item[0][1])):
        spilled = max(record["stack"] + record["local"] for record in group)
        loads = sum(record["wide_loads"] + record["narrow_loads"] for record in group)
        lines[_title(arch)].append(
            (
                ", ".join(map(str, bits)),
                kernel,
                str(len(group)),
                tables.number_range(record["registers"] for record in group),
                str(spilled),
                f"{max(record['shared'] for record in group) / 1024:.0f}",
                str(max(record["tensor_columns"] for record in group)),
                _tensor_cores(group),
                f"{sum(record['wide_loads'] for record in group) / loads:.0%}" if loads else "-",
                tables.number_range(record["instructions"] for record in group),
                tables.number_range(record["loop"]["instructions"] for record in group),
            )
        )
    return lines


def _tensor_cores(group: list[dict[str, Any]]) -> str:
    found = {name: [record["tensor_cores"].get(name, 0) for record in group] for name in TENSOR_CORES}
    return ", ".join(f"{tables.number_range(numbers)} {name}" for name, numbers in found.items() if any(numbers)) or "-"


def _title(arch: int) -> str:
    gpu = GPUS[arch]
    return f"sm_{arch} ({gpu.name}, at most {gpu.shared >> 10} KiB of shared memory)"


def _faulty(records: list[dict[str, Any]]) -> list[str]:
    lines = []
    for record in records:
        images = ", ".join(map(str, record["images"]))
        where = f"{', '.join(record['rows'])}; {', '.join(record['variants'])}; N = {images}"
        lines += [f"sm_{record['arch']} {record['kernel']} ({where}): {fault}" for fault in record["faults"]]
    return lines


def _introduction(count: int) -> list[str]:
    return [
        "# Compile report",
        f"{count} kernels compiled with Triton {triton.__version__}; no GPU ran them.",
        "A line's figures are ranges over its kernels, or the largest. Under x stand the bits of its elements, under "
        "wide loads the share of the loads from global memory that take 128 bits or more in each thread; tensor "
        "memory is counted in columns; of a turn: instructions of a warp in one turn of the kernel's main loop.",
    ]


def _write(records: list[dict[str, Any]], path: Path) -> None:
    """The JSON file, one line for each kernel."""
    versions = {"triton": triton.__version__, "torch": torch.__version__}
    body = ",\n".join(json.dumps(record) for record in records)
    path.write_text(f'{{"versions": {json.dumps(versions)}, "kernels": [\n{body}\n]}}\n')


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="triton_report", description=__doc__)
    parser.add_argument("--arch", nargs="+", type=int, choices=GPUS, default=[], help="default: those that have rows")
    rows = "patterns of arch-bits-layout-reduced, such as '*-16-nchw-*'; default: all"
    parser.add_argument("--rows", nargs="+", default=["*"], metavar="PATTERN", help=rows)
    names = [variant.name for variant in VARIANTS]
    parser.add_argument("--variants", nargs="+", choices=names, default=[], help="default: all")
    parser.add_argument("--kernels", nargs="+", default=[], metavar="NAME", help="default: all")
    parser.add_argument("--images", nargs="+", type=int, default=IMAGES, metavar="N", help="default: %(default)s")
    parser.add_argument("--table", type=Path, default=TABLE, help="default: the shipped one")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes; default: %(default)s")
    parser.add_argument("--output", type=Path, help="a folder for report.json and report.md; default: none")
    options = parser.parse_args(arguments)
    if triton.knobs.runtime.interpret:
        parser.error("TRITON_INTERPRET is set, expected unset: the interpreter compiles nothing")
    return options


if __name__ == "__main__":
    sys.exit(main())
