"""Predicts how long the CUDA C++ kernels take on a GPU that is not there.

`python -m tools.kernel_report.cuda_prediction` needs the extension with its CUDA kernels, cuobjdump and a C++ compiler,
but no GPU: the host's code runs against the mock of CUDA's runtime that the tests have, which says what is launched and
with which parameters; a warp of each of some blocks is followed through the machine code (warp.py), and the warps of a
multiprocessor are walked along their paths (multiprocessor.py). bfloat16, channels_last, no biases, residual or map.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from rich.console import Console

from gala_cuda import native
from gala_cuda.backends.triton.launch import cdiv

from . import tables
from .bounds import Bounds, bounds_of, memory_of, resident_of
from .cuda_binary import Binary
from .cuda_report import tool
from .lanes import LANES, Place
from .multiprocessor import Memory, Step, steps
from .rates import GPUS, LAUNCH, Gpu
from .sass import Instruction, Visit
from .warp import Issued, Warp

sys.path.append(str(Path(__file__).parents[2] / "tests"))  # whose mock of CUDA's runtime this takes

from mock_cuda import BF16, Call, Launched, Mock

ARCHITECTURES = {80: "80", 89: "89", 90: "90a", 100: "100"}  # as the extension has them
# tensors of x's size that a kernel reads from memory or writes there, where the L2 cache does not hold them
TENSORS = {"gather": 1, "scale": 2, "scale_backward": 2, "grad_x": 2, "local_products": 1}
PAPER = (1024, 196, 256)  # C, HW, R
BATCHES = (1, 8, 32, 256)
MOST = 4  # blocks of a launch that are followed; others do the same
NOTE = "a prediction, not measured"
COLUMNS = (
    "says", "kernel", "blocks", "registers", "on an SM", "instructions", "L2, MB", "memory, MB",
    "issue", "shared", "tensor", "L2", "memory", "alone", "set by", "predicted, us",
)  # fmt: skip


class Kernel(NamedTuple):
    """What is predicted of one launch."""

    name: str
    blocks: int
    warps: int  # of a block
    registers: int
    resident: int  # blocks of a multiprocessor
    paths: list[list[Step]]  # what a warp issues, in each of some blocks
    bytes_l2: int
    bytes_memory: int
    bounds: Bounds


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parse(arguments)
    gpu, cuobjdump = GPUS[options.gpu], tool("cuobjdump")
    if cuobjdump is None:
        sys.exit("cuda_prediction: cuobjdump is neither on PATH nor in CUDA_HOME nor in a package triton")
    if native.module is None or "cuda" not in native.module.build_info():
        sys.exit("cuda_prediction: the installed extension has no CUDA kernels; `gala-cuda doctor` says why")
    binary = Binary(cuobjdump, Path(str(native.module.__file__)), ARCHITECTURES[gpu.arch])
    console = Console(width=None if sys.stdout.isatty() else 200)
    for images in options.images:
        for name in ("forward", "backward"):
            kernels = predicted((images, *PAPER), name, binary, gpu)
            total = sum(kernel.bounds.walked for kernel in kernels) + 1e6 * LAUNCH * len(kernels)
            title = f"{gpu.name}, N = {images}, {name}: {len(kernels)} launches, {total:.0f} us"
            tables.show({title: [_line(kernel) for kernel in kernels]}, COLUMNS, [], NOTE, console)
    return 0


def predicted(shape: tuple[int, int, int, int], name: str, binary: Binary, gpu: Gpu) -> list[Kernel]:
    """The kernels of a pass, "forward" or "backward", for N, C, HW, R."""
    mock, call = Mock(), Call(shape, BF16, full=False)
    mock.use((gpu.shared - (1 << 10), *divmod(gpu.arch, 10)))
    launches = mock.launched(lambda: call.run(mock, name), binary.size_of)
    x = 2 * shape[0] * shape[1] * shape[2]
    return [_predicted(each, binary, gpu, x if x > gpu.l2 / 2 else 0) for each in launches]


def _predicted(launch: Launched, binary: Binary, gpu: Gpu, tensor: int) -> Kernel:
    """What is predicted of a launch, where memory has to give so many bytes for a tensor of x's size."""
    function, name = binary[launch.symbol], short_name(launch.symbol)
    warps = launch.threads // LANES
    banks = {0: bytes(function.at) + launch.params, 2: function.jumps}
    paths = [Warp(function.code, banks, Place(block, 0)).path() for block in _followed(launch.blocks, gpu)]
    moved = sum(step.bytes for path in paths for step in _steps(function.code, path, gpu, Memory(1, 1)))
    moved = moved * warps * launch.blocks // len(paths)
    from_memory = TENSORS.get(name, 0) * tensor
    memory = memory_of(gpu, min(launch.blocks, gpu.num_sms), from_memory / moved if moved else 0.0)
    traces = [_steps(function.code, path, gpu, memory) for path in paths]
    programs = [traces[i % len(traces)] for i in range(cdiv(launch.blocks, gpu.num_sms))]
    held = resident_of(function.registers, function.shared + launch.shared, warps, gpu)
    bounds = bounds_of(programs, memory, gpu, warps, held, moved, from_memory)
    return Kernel(name, launch.blocks, warps, function.registers, held, traces, moved, from_memory, bounds)


def _followed(blocks: int, gpu: Gpu) -> range:
    """The first blocks of a multiprocessor that has no fewer than any other."""
    first = (blocks - 1) % gpu.num_sms // 2
    return range(first, min(blocks, first + MOST * gpu.num_sms), gpu.num_sms)


def _steps(code: list[Instruction], path: list[Issued], gpu: Gpu, memory: Memory) -> list[Step]:
    """A warp's path as the walk takes it: what no lane takes part in is issued, and that is all."""
    each = steps(code, [Visit(issued.at) for issued in path], gpu, memory)
    return [
        step if issued.runs else Step("", 0, 0, 0, step.stall, -1, -1, step.waits, "", 0)
        for step, issued in zip(each, path, strict=True)
    ]


def short_name(symbol: str) -> str:
    """A kernel's name from its symbol, without the namespaces, the template's arguments and what all names end with."""
    rest, name = symbol.removeprefix("_ZN"), ""
    while rest[0].isdigit():
        digits = len(rest) - len(rest.lstrip("0123456789"))
        length = int(rest[:digits])
        name, rest = rest[digits : digits + length], rest[digits + length :]
    return name.removesuffix("_kernel")


def _line(kernel: Kernel) -> tuple[str, ...]:
    return (
        NOTE,
        kernel.name,
        str(kernel.blocks),
        str(kernel.registers),
        str(kernel.resident),
        str(sum(map(len, kernel.paths)) // len(kernel.paths)),
        f"{kernel.bytes_l2 / 1e6:.0f}",
        f"{kernel.bytes_memory / 1e6:.0f}",
        *(f"{value:.1f}" for value in kernel.bounds[:-1]),
        kernel.bounds.set_by,
        f"{kernel.bounds.walked:.1f}",
    )


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="cuda_prediction", description=__doc__)
    parser.add_argument("--gpu", choices=GPUS, default="H200", help="default: %(default)s")
    parser.add_argument("--images", nargs="+", type=int, default=BATCHES, metavar="N", help="default: %(default)s")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
