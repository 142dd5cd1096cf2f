"""GPUs that check each launch of the CUDA backend and execute nothing (`tests/cpp/mock`), and calls of any size."""

import ctypes
import functools
import itertools
from collections.abc import Callable
from ctypes import byref, c_char_p, c_int64, c_void_p
from typing import NamedTuple

from shim import CPP, CUDA, KERNELS, SHIM, build
from structs import Backward, Execution, FeatureMap, Forward, Problem, Shape, WeightPointers

# bytes of shared memory that a block may ask for, compute capability
A100, RTX3090, RTX4090 = (163 << 10, 8, 0), (99 << 10, 8, 6), (99 << 10, 8, 9)
H100, B200, RTX5090 = (227 << 10, 9, 0), (227 << 10, 10, 0), (99 << 10, 12, 0)
GPUS = {"A100": A100, "RTX 3090": RTX3090, "RTX 4090": RTX4090, "H100": H100, "B200": B200, "RTX 5090": RTX5090}
F32, BF16, F16 = 0, 2, 3
ALIGNED = 1 << 40  # an address; nothing is ever read
EXECUTION = Execution(None, ALIGNED, False)
WATCHER = ctypes.CFUNCTYPE(None, c_char_p, c_int64, c_int64, c_int64, c_void_p)


class Launched(NamedTuple):
    """A launch: the kernel's symbol, how many blocks, threads in one and bytes of shared memory, the parameters."""

    symbol: str
    blocks: int
    threads: int
    shared: int
    params: bytes


class Counts(ctypes.Structure):
    _fields_ = [(name, c_int64) for name in ("launches", "refused", "limits_set", "limits_lowered")]


@functools.cache
def library() -> ctypes.CDLL:
    sources = [*KERNELS, CUDA / "hopper" / "forward.cu", *SHIM, CPP / "mock" / "mock.cpp", CPP / "ctypes_stages.cpp"]
    library = ctypes.CDLL(
        str(build("mock", [*sources, CPP / "ctypes_cluster.cpp"], options=("-O0", "-g0", f"-I{CPP / 'mock'}")))
    )
    for name in ("forward", "backward", "forward_workspace", "backward_workspace", "forward_in_cluster"):
        getattr(library, f"gala_{name}").restype = c_char_p
    library.gala_why_not_in_cluster.restype = c_char_p
    library.mock_take_counts.restype = ctypes.POINTER(Counts)
    return library


class Mock:
    """The library on a GPU on which nothing has run; `use` changes to another one."""

    fresh = itertools.count()

    def __init__(self):
        self.library = library()
        self.use(H100)

    def use(self, gpu: tuple[int, int, int]) -> int:
        index = next(self.fresh)
        self.library.mock_set_gpu(index, *gpu)
        self.library.mock_use_gpu(index)
        return index

    def fail(self, call: str) -> None:
        """Makes the next call of this name fail."""
        self.library.mock_fail(call.encode())

    def launched(self, run: Callable[[], object], size_of: Callable[[str], int]) -> list[Launched]:
        """What `run` launches; `size_of` says how many bytes of parameters the kernel with a symbol has."""
        found: list[Launched] = []

        def keep(symbol: bytes, blocks: int, threads: int, shared: int, params: int) -> None:
            name = symbol.decode()
            found.append(Launched(name, blocks, threads, shared, ctypes.string_at(params, size_of(name))))

        watcher = WATCHER(keep)  # which has to live as long as it may be called
        self.library.mock_watch(watcher)
        try:
            run()
        finally:
            self.library.mock_watch(WATCHER())
        return found

    def counts(self) -> Counts:
        """The counts since this was last called."""
        return self.library.mock_take_counts().contents


class Call:
    """The arguments of one forward and its backward: contiguous tensors at made-up addresses."""

    def __init__(self, shape, dtype=F32, *, channels_last=True, full=True, misaligned=False):
        _, c, pixels, _ = shape
        address = ALIGNED + (2 if dtype != F32 else 4) * misaligned
        strides = (c * pixels, 1, c) if channels_last else (c * pixels, pixels, 1)
        here, nothing = FeatureMap(address, *strides), FeatureMap()
        w = WeightPointers(*([address] * (10 if full else 6)))
        extra, other = (ALIGNED if full else None), (here if full else nothing)
        self.problem = Problem(Shape(*shape), dtype, 0, channels_last, w)
        self.forward = Forward(here, other, here, extra, ALIGNED, ALIGNED)
        self.backward = Backward(here, here, other, extra, ALIGNED, ALIGNED, here, other, w)

    def __repr__(self) -> str:
        s = self.problem.shape
        return f"N {s.images}, C {s.channels}, HW {s.pixels}, R {s.reduced}, dtype {self.problem.dtype}"

    def run(self, mock: Mock, name: str) -> str | None:
        call = self.forward if name == "forward" else self.backward
        error = getattr(mock.library, f"gala_{name}")(byref(self.problem), byref(call), byref(EXECUTION))
        return error and error.decode()

    def workspace(self, mock: Mock, name: str) -> int:
        call, nbytes = (self.forward if name == "forward" else self.backward), c_int64()
        assert getattr(mock.library, f"gala_{name}_workspace")(byref(self.problem), byref(call), byref(nbytes)) is None
        return nbytes.value
