"""Runs the CUDA sources on the host: the host's compiler compiles them against `tests/cpp/shim`, ctypes calls them.

Every tensor that a kernel sees is copied to memory of its own between guard pages, to the same address modulo 16.
Inputs cannot be written. A launch that does something that is not allowed raises RuntimeError.
"""

import ctypes
import hashlib
import os
import shlex
import shutil
import subprocess
import tempfile
import weakref
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from ctypes import byref, c_char_p, c_int, c_int64, c_uint64, c_void_p
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import NamedTuple, overload

import torch
from structs import Backward, Execution, FeatureMap, Forward, Problem, Shape, WeightPointers
from torch import Tensor

from gala_cuda.backends.interface import BackwardCall, ForwardCall, Gradients, Outputs, Weights
from gala_cuda.backends.layout import is_channels_last
from gala_cuda.backends.saved import mask_words, stats_width
from gala_cuda.backends.squash import Squash

ROOT = Path(__file__).parents[1]
CPP, CUDA = ROOT / "tests" / "cpp", ROOT / "csrc" / "cuda"
KERNELS = sorted(CUDA.glob("*.cu"))
SHIM = (*sorted((CPP / "shim").glob("*.cpp")), CPP / "control.cpp")
FLAGS = ("-std=c++20", "-O2", "-g", "-fPIC", "-ftrivial-auto-var-init=pattern")
DEFINED = ('-DGALA_CUDA_ARCHITECTURES="90a"', f"-I{CPP / 'shim'}")
DTYPES = {torch.float32: 0, torch.bfloat16: 2, torch.float16: 3}
ALIGNMENT, WORKSPACE_ALIGNMENT = 16, 256


def compiler() -> list[str]:
    """The command of the host's C++ compiler, from CXX or by its usual name."""
    return shlex.split(os.environ.get("CXX", "")) or ["c++"]


def why_no_compiler() -> str | None:
    if shutil.which(compiler()[0]):
        return None
    return "no C++ compiler: put c++ on the PATH or name one in the environment variable CXX"


def build(name: str, sources: Iterable[Path], *, races: bool = False, options: Iterable[str] = ()) -> Path:
    """Compiles what has changed since the last time, under `build/shim`, to a library; with `races` to a program in
    which ThreadSanitizer watches the kernels. `options` of the compiler come before the shim's folder. Raises
    RuntimeError with the compiler's words."""
    folder = ROOT / "build" / "shim" / name
    folder.mkdir(parents=True, exist_ok=True)
    headers = sorted(p for where in (CPP, ROOT / "csrc") for p in where.rglob("*") if p.suffix in (".h", ".cuh"))
    common = b"".join(p.read_bytes() for p in headers)

    def compiled(source: Path) -> Path:
        watched = ("-DGALA_SHIM_RACES", *(["-fsanitize=thread"] if source.suffix == ".cu" else []))
        command = [*compiler(), *FLAGS, *options, *DEFINED, *(watched if races else ()), "-x", "c++", "-c", str(source)]
        return _made(folder, f"{source.stem}.o", command, common + source.read_bytes())

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(compiled, sources))
    link = "-fsanitize=thread" if races else "-shared"
    return _made(folder, name, [*compiler(), link, *map(str, objects), "-pthread"], b"")


def _made(folder: Path, name: str, command: list[str], content: bytes) -> Path:
    made = folder / f"{hashlib.sha256(shlex.join(command).encode() + content).hexdigest()[:16]}-{name}"
    if not made.exists():
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            fresh = Path(scratch) / name
            done = subprocess.run([*command, "-o", str(fresh)], capture_output=True, text=True)
            if done.returncode:
                raise RuntimeError(f"{shlex.join(command)} failed:\n{done.stderr}")
            fresh.replace(made)
    return made


def loaded(path: Path) -> ctypes.CDLL:
    """A library that contains the shim's controls."""
    library = ctypes.CDLL(str(path))
    library.shim_allocate.restype, library.shim_allocate.argtypes = c_void_p, [c_int64] * 3
    for name in ("shim_make_read_only", "shim_intact", "shim_release"):
        getattr(library, name).argtypes = [c_void_p]
    library.shim_set_device.argtypes = [c_uint64, c_int]
    library.shim_counted_banks.restype = c_char_p
    return library


class Banks(NamedTuple):
    """Accesses of a kernel's warps to shared memory in one line of the source, and how many turns more the banks took
    for them than without conflicts."""

    kernel: str
    place: str
    accesses: int
    conflicts: int


def counted(library: ctypes.CDLL, run: Callable[[], object]) -> list[Banks]:
    """The accesses to shared memory that `run` makes."""
    library.shim_count_banks(1)
    run()
    lines = library.shim_counted_banks().decode().splitlines()
    library.shim_count_banks(0)
    return [Banks(kernel, place, int(a), int(c)) for kernel, place, a, c in (line.split("\t") for line in lines)]


@cache
def kernels(instead: Path | None = None) -> ctypes.CDLL:
    """The library of all kernels in `csrc/cuda`; the source `instead` replaces the one with its name."""
    sources = [source for source in KERNELS if instead is None or source.name != instead.name]
    first = [] if instead is None else [instead]  # so that the linker takes its inline functions
    library = loaded(build("kernels", [*first, *SHIM, CPP / "ctypes_stages.cpp", *sources]))
    sizes = (c_int64 * 4).in_dll(library, "gala_sizes")
    assert list(sizes) == [ctypes.sizeof(struct) for struct in (Problem, Forward, Backward, Execution)]
    for name in ("forward", "backward"):
        getattr(library, f"gala_{name}").restype = c_char_p
        getattr(library, f"gala_{name}_workspace").restype = c_char_p
    return library


class Memory:
    """Tensors between guard pages of `library`; `check` finds writes beside them."""

    def __init__(self, library: ctypes.CDLL):
        self.library = library
        self.tensors: list[Tensor] = []

    def of(self, size: tuple[int, ...], stride: tuple[int, ...], dtype: torch.dtype, modulus: int, residue: int):
        """An uninitialised tensor: NaN of a bit pattern that no computation yields."""
        elements = 1 + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
        nbytes = elements * dtype.itemsize
        address = self.library.shim_allocate(nbytes, modulus, residue)

        class Buffer(ctypes.Array):  # weak references need a class of Python's
            _type_, _length_ = ctypes.c_char, nbytes

        buffer = Buffer.from_address(address)
        weakref.finalize(buffer, self.library.shim_release, address)
        self.tensors.append(torch.frombuffer(buffer, dtype=dtype).as_strided(size, stride))
        return self.tensors[-1]

    @overload
    def copy(self, t: Tensor) -> Tensor: ...

    @overload
    def copy(self, t: None) -> None: ...

    @overload
    def copy(self, t: Tensor | None) -> Tensor | None: ...

    def copy(self, t):
        """A read-only copy of t with its strides and its address modulo 16."""
        if t is None:
            return None
        copy = self.of(t.shape, t.stride(), t.dtype, ALIGNMENT, t.data_ptr() % ALIGNMENT).copy_(t)
        self.library.shim_make_read_only(copy.data_ptr())
        return copy

    def like(self, t: Tensor) -> Tensor:
        like = torch.empty_like(t, device="meta")
        return self.of(like.shape, like.stride(), t.dtype, ALIGNMENT, 0)

    def new(self, *size: int, dtype: torch.dtype = torch.float32, modulus: int = ALIGNMENT) -> Tensor:
        return self.of(size, torch.empty(size, device="meta").stride(), dtype, modulus, 0)

    def check(self) -> None:
        for t in self.tensors:
            if not self.library.shim_intact(t.data_ptr()):
                raise RuntimeError(f"written beside a tensor {tuple(t.shape)} of {t.dtype}")


@dataclass
class Shim:
    """A backend like those of `gala_cuda.backends`, for tensors on the CPU; its fields describe the GPU it imitates."""

    seed: int = 0  # of the order of threads and blocks
    shared_limit: int = 99 << 10
    tf32: bool = False
    instead: Path | None = None  # for `kernels`
    tamper: Callable[[Problem, Forward | Backward, Execution], None] | None = None  # with the arguments of gala.h

    def why_not(self, x: Tensor) -> str | None:
        return None if x.dtype in DTYPES else f"x is {x.dtype}, expected one of {', '.join(map(str, DTYPES))}"

    def forward(self, call: ForwardCall) -> Outputs:
        x, w, residual, squash, return_map, save = call
        n, c, height, width = x.shape
        reduced = w.w_shrink.shape[0]
        memory = Memory(kernels(self.instead))
        out = memory.like(x)
        attn_map = memory.new(n, height, width) if return_map else None
        stats = memory.new(n, stats_width(height * width, c, reduced))
        relu_mask = memory.new(n, height * width, mask_words(reduced), dtype=torch.int32) if save else None
        x, residual = memory.copy(x), memory.copy(residual)
        maps = (FeatureMap.of(t) for t in (x, residual, out))
        addresses = (None if t is None else t.data_ptr() for t in (attn_map, stats, relu_mask))
        self._run("forward", memory, x, w, squash, Forward(*maps, *addresses))
        return Outputs(out, attn_map, stats if save else None, relu_mask)

    def backward(self, call: BackwardCall) -> Gradients:
        grad_out, map_factor, x, w, out, stats, relu_mask, squash, need_input, need_weights = call
        memory = Memory(kernels(self.instead))
        grad_x = memory.like(x) if need_input else None
        grad_residual = None if out is None else memory.like(x)
        grads = Weights._make(None if t is None or not need_weights else memory.new(*t.shape) for t in w)
        x, grad_out, out = memory.copy(x), memory.copy(grad_out), memory.copy(out)
        map_factor = None if map_factor is None else map_factor.contiguous()
        vectors = [memory.copy(t) for t in (map_factor, stats, relu_mask)]
        arguments = Backward(
            *map(FeatureMap.of, (x, grad_out, out)),
            *(None if t is None else t.data_ptr() for t in vectors),
            *map(FeatureMap.of, (grad_x, grad_residual)),
            WeightPointers.of(grads),
        )
        self._run("backward", memory, x, w, squash, arguments)
        return Gradients(grad_x, grads if need_weights else None, grad_residual)

    def _run(self, name: str, memory: Memory, x: Tensor, w: Weights, squash: Squash, call: Forward | Backward) -> None:
        library = memory.library
        n, c, height, width = x.shape
        weights = Weights._make(memory.copy(None if t is None else t.float().contiguous()) for t in w)
        problem = Problem(
            Shape(n, c, height * width, w.w_shrink.shape[0]),
            DTYPES[x.dtype],
            squash,
            is_channels_last(x),
            WeightPointers.of(weights),
        )
        library.shim_set_device(self.seed, self.shared_limit)
        nbytes = c_int64()
        _check(getattr(library, f"gala_{name}_workspace")(byref(problem), byref(call), byref(nbytes)))
        workspace = memory.new(nbytes.value, dtype=torch.uint8, modulus=WORKSPACE_ALIGNMENT)
        execution = Execution(None, workspace.data_ptr(), self.tf32)
        if self.tamper is not None:
            self.tamper(problem, call, execution)
        _check(getattr(library, f"gala_{name}")(byref(problem), byref(call), byref(execution)))
        memory.check()


def _check(error: bytes | None) -> None:
    if error:
        raise RuntimeError(error.decode())
