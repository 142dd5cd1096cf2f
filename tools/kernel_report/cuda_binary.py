"""The kernels in a library or object file as nvcc has compiled them for one architecture."""

import re
import struct
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from .sass import Instruction, parse_all

_FUNCTION = re.compile(r"^\s*Function : (\S+)$", re.MULTILINE)
_USED = re.compile(r"Function (\S+):\s+REG:(\d+) .*?SHARED:(\d+)")
_JUMPS, _INFO = ".nv.constant2.", ".nv.info."  # sections of a kernel: its jump tables, and what the driver needs
_PARAMETERS = 0x0A  # of that: where in bank 0 the parameters are, and how many bytes


class Function(NamedTuple):
    """A kernel: its code, registers of a thread, shared memory that is fixed, and where its parameters go."""

    code: list[Instruction]
    registers: int
    shared: int
    at: int  # bytes into bank 0 of constant memory
    size: int  # bytes
    jumps: bytes  # bank 2


class Binary:
    """All kernels of one architecture, such as "90a". A kernel's listing is parsed when it is first asked for."""

    def __init__(self, cuobjdump: str, path: Path, arch: str):
        self._texts: dict[str, str] = {}
        self._used: dict[str, tuple[int, int]] = {}
        self._sections: dict[str, bytes] = {}
        self._parsed: dict[str, Function] = {}
        with tempfile.TemporaryDirectory() as folder:
            command = [cuobjdump, "-xelf", f"sm_{arch}", str(path.resolve())]
            subprocess.run(command, cwd=folder, stdout=subprocess.DEVNULL, check=True)
            for part in sorted(Path(folder).iterdir()):
                self._add(cuobjdump, part)
        if not self._texts:
            raise ValueError(f"{path} has no kernels for sm_{arch}")

    def _add(self, cuobjdump: str, part: Path) -> None:
        command = [cuobjdump, "-res-usage", "-sass", str(part)]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        first, *parts = _FUNCTION.split(text)
        self._texts |= dict(zip(parts[::2], parts[1::2], strict=True))
        self._used |= {name: (int(registers), int(shared)) for name, registers, shared in _USED.findall(first)}
        self._sections |= dict(_sections(part.read_bytes()))

    def size_of(self, symbol: str) -> int:
        """Bytes of a kernel's parameters."""
        return self[symbol].size

    def __getitem__(self, symbol: str) -> Function:
        if symbol not in self._parsed:
            at, size = _parameters(self._sections[_INFO + symbol])
            jumps = self._sections.get(_JUMPS + symbol, b"")
            self._parsed[symbol] = Function(parse_all(self._texts[symbol]), *self._used[symbol], at, size, jumps)
        return self._parsed[symbol]


def _sections(elf: bytes) -> Iterator[tuple[str, bytes]]:
    """The sections of an ELF file of 64 bits, by their names."""
    (table,) = struct.unpack_from("<Q", elf, 0x28)
    size, count, names_at = struct.unpack_from("<HHH", elf, 0x3A)
    headers = [struct.unpack_from("<IIQQQQIIQQ", elf, table + i * size) for i in range(count)]
    names = headers[names_at][4]
    for header in headers:
        start = names + header[0]
        yield elf[start : elf.index(b"\0", start)].decode(), elf[header[4] : header[4] + header[5]]


def _parameters(info: bytes) -> tuple[int, int]:
    """Where in bank 0 a kernel's parameters are, and how many bytes, from its section of attributes."""
    at = 0
    while at < len(info):
        kind, attribute, size = struct.unpack_from("<BBH", info, at)
        at += 4
        if attribute == _PARAMETERS:
            return struct.unpack_from("<HH", info, at + 4)
        at += size if kind == 4 else 0  # other attributes have their value in place of a size
    raise ValueError("a kernel does not say where its parameters are")
