"""The table that says with which tiles, warps and pipeline stages each kernel runs.

A row is for an architecture, a size and layout of x's elements, and a reduced width R. There is no tuning at run time:
`table.json` is the shipped table; `gala-cuda tune` measures another one on a GPU, and the environment variable
GALA_TRITON_TABLE names a file to use instead. GALA_TRITON_PDL=0 has each kernel begin after the end of the one before.
"""

import ctypes
import functools
import json
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...errors import GalaError

# the names of each kernel's block sizes, which are powers of two
SIZES = {
    "gather": ("ROWS", "DEPTH", "REDUCED"),
    "scale": ("PIXELS", "CHANNELS"),
    "scale_backward": ("PIXELS", "CHANNELS"),
    "grad_x": ("ROWS", "DEPTH", "CHANNELS"),
    "local_products": ("ROWS", "REDUCED", "CHANNELS"),
}
KERNELS = tuple(SIZES)
KIND = ("arch", "bytes", "channels_last", "reduced")  # what a row is for
MOST = 2**31 - 2**20  # pixels of all images, channels, hidden units: beyond, a block's end overflows 32 bits
OLDEST = 80  # the first architecture with bfloat16 tensor cores
OLDEST_PDL = 90  # the first with programmatic dependent launch
OLDEST_PDL_DRIVER = 12030  # the first that captures such launches into CUDA graphs
TABLE = Path(__file__).with_name("table.json")


class TableError(GalaError, ValueError):
    """The table of tiles is missing or malformed; the message says which file, which row and what is expected."""


@dataclass(frozen=True)
class Tile:
    """The sizes of one kernel's blocks, by their names in the kernel, and how Triton compiles the kernel."""

    sizes: tuple[tuple[str, int], ...]
    warps: int
    stages: int

    def __getitem__(self, name: str) -> int:
        return dict(self.sizes)[name]

    def __str__(self) -> str:
        return f"{'x'.join(str(size) for _, size in self.sizes)}, {self.warps} warps, {self.stages} stages"

    @property
    def entry(self) -> dict[str, int]:
        """The tile as JSON in the table's file."""
        return {**dict(self.sizes), "warps": self.warps, "stages": self.stages}


@dataclass(frozen=True)
class Config:
    """One row of the table."""

    gather: Tile
    scale: Tile
    scale_backward: Tile
    grad_x: Tile
    local_products: Tile

    @property
    def entry(self) -> dict[str, Any]:
        """The row as JSON in the table's file, without what it is for."""
        return {name: getattr(self, name).entry for name in KERNELS}


Row = tuple[dict[str, Any], Config]  # what it is for, by KIND, and what it says


class Multiprocessors(NamedTuple):
    """The streaming multiprocessors of a GPU."""

    number: int
    shared: int  # bytes of shared memory of each, for all programs that it holds
    pdl: bool = False  # whether a kernel begins while the one before still runs: programmatic dependent launch


class Table(NamedTuple):
    """The content of a table's file: its rows, and for the measured ones how they were measured."""

    rows: list[Row]
    measured: list[dict[str, Any]]


def lookup(x: Tensor, channels_last: bool, reduced: int) -> Config:
    """The row for x's device, dtype and layout and the reduced width R. Raises TableError."""
    path = in_use()
    try:
        return row_of(read(path).rows, architecture(x.device), x.element_size(), channels_last, reduced)[1]
    except LookupError as error:
        raise TableError(f"the table of tiles {path} {error}") from error


def in_use() -> Path:
    """The file that GALA_TRITON_TABLE names, else the shipped one."""
    return Path(os.environ.get("GALA_TRITON_TABLE", "") or TABLE)


def architecture(device: torch.device) -> int:
    """Compute capability as 10 major + minor; on the CPU, where the interpreter runs, that of the oldest row."""
    if device.type != "cuda":
        return OLDEST
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


def multiprocessors(device: torch.device) -> Multiprocessors:
    """Those of the device; two small ones in the interpreter, so that it splits sums too."""
    if device.type != "cuda":
        return Multiprocessors(2, 64 << 10)
    found = torch.cuda.get_device_properties(device)
    able = architecture(device) >= OLDEST_PDL and driver_version() >= OLDEST_PDL_DRIVER
    pdl = able and os.environ.get("GALA_TRITON_PDL", "1") != "0"
    return Multiprocessors(found.multi_processor_count, found.shared_memory_per_multiprocessor, pdl)


def driver_version() -> int:
    """The newest CUDA that the installed driver knows, such as 12030 for 12.3; torch does not tell."""
    version = ctypes.c_int()
    ctypes.CDLL("nvcuda.dll" if os.name == "nt" else "libcuda.so.1").cuDriverGetVersion(ctypes.byref(version))
    return version.value


def row_of(rows: list[Row], arch: int, element: int, channels_last: bool, reduced: int) -> Row:
    """The row of the newest architecture not above `arch` with the least width that `reduced` fits in.

    Where no width is large enough it is the row with the largest. Raises LookupError where there is no row.
    """
    fitting = newest(rows, arch, element, channels_last)
    return next((row for row in fitting if reduced <= row[0]["reduced"]), fitting[-1])


def newest(rows: list[Row], arch: int, element: int, channels_last: bool) -> list[Row]:
    """The rows of the newest architecture not above `arch`, sorted by width.

    Architectures from 120 on have no more shared memory than 86 and take none of the rows between, which need more.

    Raises LookupError where there is no such row.
    """
    kind = {"bytes": element, "channels_last": channels_last}
    above = range(90, 120) if arch >= 120 else ()
    fitting = [row for row in rows if kind.items() <= row[0].items() and row[0]["arch"] not in above]
    fitting = [row for row in fitting if row[0]["arch"] <= arch]
    if not fitting:
        raise LookupError(
            f"has no row for architecture {arch} or older with bytes {element}, channels_last {channels_last}"
        )
    latest = max(where["arch"] for where, _ in fitting)
    return sorted((row for row in fitting if row[0]["arch"] == latest), key=lambda row: row[0]["reduced"])


@functools.cache
def read(path: Path) -> Table:
    """The table in a file, which is read once. Raises TableError."""
    try:
        data = json.loads(path.read_text())
    except OSError as error:
        raise TableError(f"the table of tiles {path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise TableError(f"the table of tiles {path} is not JSON: {error}") from error
    rows, measured = (data.get("rows"), data.get("measured", [])) if isinstance(data, dict) else (None, [])
    if not isinstance(rows, list) or not isinstance(measured, list):
        raise TableError(f'the table of tiles {path} is malformed; expected {{"rows": [...], "measured": [...]}}')
    found = []
    for number, row in enumerate(rows):
        try:
            found.append((_kind(row), parse(row)))
        except TableError as error:
            raise TableError(f"the table of tiles {path} is malformed in row {number} (from 0): {error}") from error
    return Table(found, measured)


def write(path: Path, rows: list[Row], measured: list[dict[str, Any]]) -> None:
    """Writes a table with one kernel on each line, all of it or nothing; its folder is made."""
    entries = [{"for": where, **config.entry} for where, config in rows]
    lists = {"rows": entries, "measured": measured}
    text = ",\n".join(f'"{name}": [\n{_lines(entries)}\n]' for name, entries in lists.items())
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}-") as folder:
        part = Path(folder) / path.name
        part.write_text(f"{{\n{text}\n}}\n")
        part.replace(path)
    read.cache_clear()


def parse(row: Any) -> Config:
    """The configuration in a row of the table's file. Raises TableError."""
    return Config(**{name: _tile(row, name) for name in KERNELS})


def _tile(row: Any, kernel: str) -> Tile:
    entry, names = row.get(kernel) if isinstance(row, dict) else None, (*SIZES[kernel], "warps", "stages")
    if not isinstance(entry, dict) or set(entry) != set(names):
        raise TableError(f"{kernel} is {entry!r}; expected {', '.join(names)}")
    for name in names[:-1]:
        size = _whole(entry, name, of=kernel)
        if size & (size - 1):
            raise TableError(f"{kernel} {name} is {size}; expected a power of two")
    sizes = tuple((name, entry[name]) for name in SIZES[kernel])
    return Tile(sizes, entry["warps"], _whole(entry, "stages", of=kernel))


def _kind(row: Any) -> dict[str, Any]:
    where = row.get("for") if isinstance(row, dict) else None
    if not isinstance(where, dict) or set(where) != set(KIND) or type(where["channels_last"]) is not bool:
        raise TableError(f"for is {where!r}; expected {', '.join(KIND)}, channels_last true or false")
    for name in ("arch", "bytes", "reduced"):
        _whole(where, name, of="for")
    return {name: where[name] for name in KIND}


def _whole(entry: Any, name: str, of: str) -> int:
    value = entry.get(name) if isinstance(entry, dict) else None
    if type(value) is not int or value < 1:
        raise TableError(f"{of} {name} is {value!r}; expected a whole number of at least 1")
    return value


def _lines(entries: list[dict[str, Any]]) -> str:
    def lines(entry: dict[str, Any]) -> str:
        return ",\n  ".join(f"{json.dumps(name)}: {json.dumps(value)}" for name, value in entry.items())

    return ",\n".join(f" {{{lines(entry)}}}" for entry in entries)
