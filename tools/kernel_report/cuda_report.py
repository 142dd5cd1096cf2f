"""Reports the registers, spills and shared memory of every CUDA kernel of the extension, for each architecture.

`python -m tools.kernel_report.cuda_report` needs cuobjdump, from a CUDA toolkit or the package Triton, but no GPU. To
compile the PTX for other architectures, as their drivers do, it also needs the ptxas of the toolkit that made it. It
exits with 1 if a kernel spills or is missing for an architecture.
"""

import argparse
import functools
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

from rich.console import Console

from gala_cuda import native

from . import tables

FROM_PTX = " from PTX"
COLUMNS = ("kernel", "compiled", "registers", "spills, B", "shared, B")


class Kernel(NamedTuple):
    """A kernel as compiled for one architecture. Memory is in bytes for each thread, `shared` for each block."""

    arch: str  # "90a"; "120 from PTX"
    symbol: str
    registers: int
    stack: int
    local: int
    shared: int  # what is fixed at compile time; the launches add theirs

    @property
    def name(self) -> str:
        """The innermost name of the symbol, without the template's arguments."""
        name, rest = "", re.sub("^_ZN?", "", self.symbol)
        while length := re.match(r"\d+", rest):
            end = length.end() + int(length[0])
            name, rest = rest[length.end() : end], rest[end:]
        return name


def main(arguments: list[str] | None = None) -> int:
    options = _parse(arguments)
    if not options.files:
        if native.module is None or "cuda" not in native.module.build_info():
            sys.exit("cuda_report: the installed extension has no CUDA kernels; `gala-cuda doctor` says why")
        options.files = [Path(str(native.module.__file__))]
    program, compiler = tool("cuobjdump"), tool("ptxas")
    if program is None:
        sys.exit("cuda_report: cuobjdump is neither on PATH nor in CUDA_HOME nor in a package triton")
    kernels = [kernel for path in options.files for kernel in compiled(program, path)]
    for arch in options.ptx:
        if compiler is None:
            sys.exit("cuda_report: ptxas is neither on PATH nor in CUDA_HOME; an empty --ptx leaves the PTX out")
        kernels += [kernel for path in options.files for kernel in from_ptx(program, compiler, path, arch)]
    if not kernels:
        sys.exit(f"cuda_report: no kernels in {' '.join(map(str, options.files))}")
    found, sections = faults(kernels), summary(kernels)
    console = Console(width=None if sys.stdout.isatty() else 120)
    tables.show(sections, COLUMNS, found, f"{len(kernels)} kernels, {len(found)} faults", console)
    if options.output:
        tables.write(options.output / "report.md", _introduction(len(kernels)), sections, COLUMNS, found)
    return 1 if found else 0


def tool(name: str) -> str | None:
    """cuobjdump or ptxas, from PATH, CUDA_HOME or the package Triton, which ships them."""
    home, triton = os.environ.get("CUDA_HOME", "/usr/local/cuda"), importlib.util.find_spec("triton")
    folders = [os.environ.get("PATH", ""), f"{home}/bin"]
    if triton is not None and triton.submodule_search_locations:
        folders += [f"{folder}/backends/nvidia/bin" for folder in triton.submodule_search_locations]
    found = shutil.which(name, path=os.pathsep.join(folders))
    return found and os.path.abspath(found)  # it is run in another folder


def compiled(program: str, path: Path) -> list[Kernel]:
    """The kernels in a library or object file."""
    command = [program, "--dump-resource-usage", str(path)]
    return parse(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def from_ptx(program: str, ptxas: str, path: Path, arch: str) -> list[Kernel]:
    """The kernels in the PTX of a library or object file, as ptxas compiles them for `arch`."""
    kernels = []
    with tempfile.TemporaryDirectory() as folder:
        run = functools.partial(subprocess.run, cwd=folder, stdout=subprocess.DEVNULL, check=True)
        run([program, "--extract-ptx", "all", str(path.resolve())])
        for source in sorted(Path(folder).glob("*.ptx")):
            run([ptxas, f"-arch=sm_{arch}", str(source), "-o", str(source.with_suffix(".cubin"))])
            kernels += compiled(program, source.with_suffix(".cubin"))
    return [kernel._replace(arch=arch + FROM_PTX) for kernel in kernels]


def parse(text: str) -> list[Kernel]:
    """The kernels that `cuobjdump --dump-resource-usage` lists."""
    kernels, arch, symbol = [], "", ""
    for line in text.splitlines():
        if found := re.match(r"arch = sm_(\w+)", line):
            arch = found[1]
        elif found := re.match(r" Function (\S+):", line):
            symbol = found[1]
        elif symbol and "REG:" in line:
            used = {name: int(value) for name, value in re.findall(r"\b(REG|STACK|LOCAL|SHARED):(\d+)", line)}
            kernels.append(Kernel(arch, symbol, used["REG"], used["STACK"], used["LOCAL"], used["SHARED"]))
            symbol = ""
    return kernels


def faults(kernels: list[Kernel]) -> list[str]:
    """What a shipped kernel must not show. Kernels from PTX count only if there is no machine code for their GPU."""
    built = {kernel.arch for kernel in kernels}
    found = [
        f"sm_{k.arch} {k.name} spills {k.stack + k.local} bytes ({k.symbol})"
        for k in kernels
        if (k.stack or k.local) and not (k.arch.endswith(FROM_PTX) and k.arch.removesuffix(FROM_PTX) in built)
    ]
    symbols = {kernel.symbol for kernel in kernels}
    for arch, group in _by_arch(kernels).items():
        missing = symbols - {kernel.symbol for kernel in group}
        found += [f"sm_{arch} has no {symbol}" for symbol in sorted(missing)]
    return found


def summary(kernels: list[Kernel]) -> tables.Sections:
    """For each architecture a line of COLUMNS for each kernel, over its template's instances."""
    lines: tables.Sections = {}
    for arch, group in _by_arch(kernels).items():
        names: dict[str, list[Kernel]] = defaultdict(list)
        for kernel in group:
            names[kernel.name].append(kernel)
        lines[f"sm_{arch}"] = [
            (
                name,
                str(len(instances)),
                tables.number_range(kernel.registers for kernel in instances),
                tables.number_range(kernel.stack + kernel.local for kernel in instances),
                tables.number_range(kernel.shared for kernel in instances),
            )
            for name, instances in sorted(names.items())
        ]
    return lines


def _by_arch(kernels: list[Kernel]) -> dict[str, list[Kernel]]:
    groups: dict[str, list[Kernel]] = defaultdict(list)
    for kernel in kernels:
        groups[kernel.arch].append(kernel)
    return groups


def _introduction(count: int) -> list[str]:
    version = native.module.build_info().get("cuda", "?") if native.module else "?"
    return [
        "# CUDA kernels",
        f"{count} kernels compiled with CUDA {version}; no GPU ran them. A line's figures are ranges over the "
        "instances of its template. Shared memory is what is fixed at compile time; the launches add theirs.",
    ]


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="cuda_report", description=__doc__)
    parser.add_argument("files", nargs="*", type=Path, metavar="FILE", help="default: the installed extension")
    parser.add_argument(
        "--ptx",
        nargs="*",
        default=("87", "120"),
        metavar="ARCH",
        help="architectures to compile the PTX for; default: 87 120, and without a number none",
    )
    parser.add_argument("--output", type=Path, help="a folder for report.md; default: none")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
