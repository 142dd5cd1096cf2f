"""Offsets at the largest sizes: of each part of a launch the first and the last program run in the interpreter, on
arrays without memory.

Each program runs twice: with its numbers in the types that Triton gives them, and with all of them in 64 bits. Both
times it must access the same addresses, inside its arrays. Of long loops only the first and the last turn run.
"""

import builtins
import itertools
from typing import Any

import numpy as np
import pytest
import torch
from test_triton import DEVICE, table  # noqa: F401

from gala_cuda.backends import triton as backend
from gala_cuda.backends.interface import BackwardCall, ForwardCall, Weights, weight_shapes
from gala_cuda.backends.saved import mask_words
from gala_cuda.backends.squash import Squash

pytest.importorskip("triton", reason="Triton is not installed")
if DEVICE == "cuda":
    pytest.skip(
        "addresses are read in Triton's interpreter, which is off where there is a GPU", allow_module_level=True
    )

import triton.language as tl
from triton.runtime import interpreter
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle, interpreter_semantic

from gala_cuda.backends.triton import gate, gate_backward, gather, gather_backward, launch, scale

MOST = backend.MOST
BETWEEN = 1 << 44  # bytes from one array to the next
SIZES = {  # N, C, H, W, R
    "splits N R": (1_048_592, 256, 1, 1, 256),
    "N R": (8_388_616, 16, 1, 1, 256),
    "splits tiles": (67_200_000, 2, 1, 1, 2),
    "R C": (3, 65_536, 2, 2, 32_776),
    "most pixels of one image": (1, 2, 2**11, MOST // 2**11, 2),
    "most pixels of many images": (MOST // 49, 3, 7, 7, 2),
    "most images": (MOST, 1, 1, 1, 1),
    "most channels": (1, MOST, 1, 1, 1),
    "most hidden units": (1, 1, 1, 1, MOST),
}


class Trace:
    """Runs some of a launch's programs in place of the launch, on addresses alone."""

    def __init__(self, monkeypatch):
        self.bits, self.program, self.programs, self.seen, self.ran = 32, 0, 1, [], []
        self.patch = monkeypatch.setattr
        self.patch(
            launch.KernelLaunch, "__call__", lambda kernel_launch, *tensors, stream: self.run(kernel_launch, *tensors)
        )
        self.patch(interpreter.GridExecutor, "_init_args_hst", lambda grid, args, options: (args, options))
        self.patch(interpreter.GridExecutor, "_restore_args_dev", lambda *args: None)
        convert = interpreter._implicit_cvt
        self.patch(
            interpreter, "_implicit_cvt", lambda arg: convert(arg) if self.bits == 32 else self.long(arg, convert)
        )
        self.patch(interpreter_semantic, "program_id", lambda axis: self.number(self.program))
        self.patch(interpreter_semantic, "num_programs", lambda axis: self.number(self.programs))
        self.patch(InterpreterBuilder, "create_masked_load", self.load)
        self.patch(InterpreterBuilder, "create_masked_store", self.store)
        for module in (gate, gate_backward, gather, gather_backward, scale):
            monkeypatch.setattr(module, "range", self.ends, raising=False)
        monkeypatch.setattr(interpreter, "range", self.ends_of_three, raising=False)

    def number(self, value: int) -> tl.tensor:
        kind, dtype = (np.int32, tl.int32) if self.bits == 32 else (np.int64, tl.int64)
        return tl.tensor(TensorHandle(np.array([value], dtype=kind), dtype), dtype)

    def long(self, arg, convert) -> tl.tensor:
        return self.number(arg) if type(arg) is int else convert(arg)

    def ends(self, *bounds):
        turns = builtins.range(*map(int, bounds))
        return [self.number(turn) for turn in (turns if len(turns) < 3 else (turns[0], turns[-1]))]

    def ends_of_three(self, *bounds):
        """For the interpreter itself, which passes on three bounds of tl.range."""
        return self.ends(*bounds) if len(bounds) == 3 else builtins.range(*bounds)

    def load(self, ptrs, mask, other, *options) -> TensorHandle:
        self.see("load", ptrs, mask)
        dtype = ptrs.get_element_ty()
        return TensorHandle(np.zeros(ptrs.data.shape, interpreter._get_np_dtype(dtype)), dtype)

    def store(self, ptrs, value, mask, *options) -> None:
        self.see("store", ptrs, mask)

    def see(self, kind: str, ptrs, mask) -> None:
        self.seen.append((kind, ptrs.data[mask.data.astype(bool)], ptrs.get_element_ty().primitive_bitwidth // 8))

    def run(self, kernel_launch, *tensors) -> None:
        self.programs = kernel_launch.grid[0]
        ends = [0, *itertools.accumulate(kernel_launch.programs)]
        for self.program in {program for begin, end in itertools.pairwise(ends) for program in (begin, end - 1)}:
            self.run_program(kernel_launch, Arrays(kernel_launch.kernel.arg_names, tensors))
        self.ran.append(kernel_launch.kernel.__name__)

    def run_program(self, kernel_launch, arrays) -> None:
        found = []
        for self.bits in (32, 64):
            self.seen = []
            kernel_launch.kernel[(1, 1, 1)](
                *arrays.given, *kernel_launch.numbers, *kernel_launch.constants, **kernel_launch.options
            )
            found.append(self.seen)
        name = kernel_launch.kernel.__name__
        assert len(found[0]) == len(found[1]) > 0, name
        for (kind, at, size), (_, want, _) in zip(*found, strict=True):
            assert np.array_equal(at, want), f"{name}: a {kind} is off by {set((at - want).tolist())} bytes"
            for number in np.unique(at // BETWEEN):
                array, inside = arrays.all[number - 1], at[at // BETWEEN == number] % BETWEEN
                assert inside.max() + size <= array.nbytes, f"{name}: a {kind} outside {array.name}"


class Array:
    """Stands for a tensor: its dtype, and an address range of its own."""

    def __init__(self, index: int, name: str, t: torch.Tensor):
        self.index, self.name, self.dtype, self.nbytes = index, name, t.dtype, t.numel() * t.element_size()
        assert self.nbytes < BETWEEN

    def data_ptr(self) -> int:
        return (self.index + 1) * BETWEEN


class Arrays:
    """What stands for a launch's tensors, alone and in tuples."""

    def __init__(self, names: list[str], tensors: tuple):
        self.all: list[Array] = []
        self.given = [self.array(name, t) for name, t in zip(names, tensors, strict=False)]

    def array(self, name: str, t: Any) -> Any:
        if hasattr(t, "_asdict"):
            fields = {field: self.array(f"{name}.{field}", each) for field, each in t._asdict().items()}
            return type(t)(**fields)
        if t is None:
            return None
        self.all.append(Array(len(self.all), name, t))
        return self.all[-1]


@pytest.fixture
def trace(monkeypatch, table) -> Trace:  # noqa: F811
    table()
    return Trace(monkeypatch)


def call(sizes: tuple[int, ...], layout: torch.memory_format, options: bool) -> BackwardCall:
    """A call with tensors that have no memory; with `options` also a residual, biases and a map."""
    n, c, height, width, r = sizes
    x = torch.empty(n, c, height, width, dtype=torch.bfloat16, device="meta").to(memory_format=layout)
    shapes = [*weight_shapes(c, r)._asdict().values()][: 10 if options else 6]
    w = Weights(*(torch.empty(shape, device="meta") for shape in shapes))
    stats = torch.empty(n, height * width + c + r, device="meta")
    relu_mask = torch.empty(n, height * width, mask_words(r), dtype=torch.int32, device="meta")
    attn_map = torch.empty(n, height, width, device="meta") if options else None
    return BackwardCall(x, attn_map, x, w, x if options else None, stats, relu_mask, Squash.TANH, True, True)


@pytest.mark.slow
@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format], ids=["channels_last", "nchw"])
@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES.keys())
def test_offsets_do_not_overflow(sizes, layout, trace):
    images, *_, units = sizes
    options = images % 2 == 0
    given = call(sizes, layout, options)
    backend.forward(ForwardCall(given.x, given.w, given.out, Squash.TANH, options, True))
    backend.backward(given)
    assert len(set(trace.ran)) == 13 + options - (images * -(-units // 256) <= 8)  # finish_map; finish_hidden
