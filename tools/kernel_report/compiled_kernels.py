"""Triton's kernels compiled for GPUs that are not there, and what their machine code holds.

The plans run on tensors without memory. Each launch stops where Triton has specialised it for its arguments, and that
is kept: what is compiled from it is what a GPU would be given.
"""

import contextlib
import fnmatch
import importlib
import json
import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import CompiledKernel

from gala_cuda.backends.interface import BackwardCall, Weights, weight_shapes
from gala_cuda.backends.triton import backward_plan, forward_plan
from gala_cuda.backends.triton.config import Config, newest, read
from gala_cuda.backends.triton.launch import Layout
from gala_cuda.backends.triton.problem import Problem

IMAGES = 64
TENSOR_COLUMNS = 512  # of a multiprocessor's tensor memory, of 128 lanes of 32 bits each
PRODUCTS = ("gather", "forward_tickets", "grad_x", "local_products")  # with a product over all pixels
WITHOUT_BIASES = len(Weights._fields) - len(Weights._field_defaults)
_INSTRUCTION = re.compile(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)", re.MULTILINE)


class Gpu(NamedTuple):
    """What stands for an architecture."""

    name: str
    num_sms: int
    shared: int  # bytes that one program may have
    units: str  # the tensor cores' instructions for 16-bit operands; see TENSOR_CORES


GPUS = {
    80: Gpu("A100", 108, 163 << 10, "HMMA"),
    86: Gpu("RTX A6000", 84, 99 << 10, "HMMA"),
    90: Gpu("H100", 132, 227 << 10, "HGMMA"),
    100: Gpu("B200", 148, 227 << 10, "tcgen05"),
    120: Gpu("RTX PRO 6000", 188, 99 << 10, "HMMA"),
}
TENSOR_CORES = {  # as the machine code spells them; tcgen05 does not say its operands' type
    "HMMA": r"HMMA(?!.*\.TF32)",
    "HMMA TF32": r"HMMA.*\.TF32",
    "HGMMA": r"HGMMA(?!.*\.TF32)",
    "HGMMA TF32": r"HGMMA.*\.TF32",
    "tcgen05": r"UTC\w*MMA",
}


@dataclass(frozen=True)
class Row:
    """One row of the table, as ``arch`` takes it."""

    arch: int
    element: int  # bytes
    channels_last: bool
    hidden: int
    config: Config

    @property
    def name(self) -> str:
        return f"{self.arch}-{8 * self.element}-{'channels_last' if self.channels_last else 'nchw'}-{self.hidden}"


@dataclass(frozen=True)
class Variant:
    """What a row's kernels are compiled for beside the row."""

    dtype: torch.dtype
    precision: str  # of products of float32
    full: bool  # with biases, residual and map

    @property
    def name(self) -> str:
        kind = self.precision if self.dtype == torch.float32 else str(self.dtype).removeprefix("torch.")
        return f"{kind}-{'full' if self.full else 'plain'}"


@dataclass(frozen=True)
class Launch:
    """A kernel and all that Triton compiles it for, in Triton's own serialised form."""

    arch: int
    module: str
    kernel: str
    specialization: str

    @property
    def constants(self) -> dict[str, object]:
        """The kernel's constants and how Triton compiles it."""
        kept = json.loads(self.specialization)
        names = list(kept["signature"])
        values = zip(kept["constant_keys"], kept["constant_vals"], strict=True)
        constants = {names[index]: value for (index,), value in values if names[index].isupper()}
        return constants | {"warps": kept["options"]["num_warps"], "stages": kept["options"]["num_stages"]}


class Code(NamedTuple):
    """What one compiled kernel needs, memory in bytes, and how many instructions of a kind it has."""

    registers: int
    stack: int
    local: int
    shared: int
    tensor_columns: int  # of tensor memory
    spill_loads: int  # from local memory
    spill_stores: int
    tensor_cores: dict[str, int]  # those of TENSOR_CORES that occur
    wide_loads: int  # from global memory, 128 bits or more a thread
    narrow_loads: int
    instructions: int


class Target:
    """In place of Triton's driver: a GPU that is compiled for. Its device number is its architecture."""

    def __init__(self, arch: int):
        self.arch = arch

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.arch, 32)

    def get_current_device(self) -> int:
        return self.arch

    def get_current_stream(self, device: int) -> int:
        return 0


VARIANTS = tuple(
    Variant(dtype, precision, full)
    for dtype, precision in (
        (torch.bfloat16, "tf32"),
        (torch.float16, "tf32"),
        (torch.float32, "tf32x3"),
        (torch.float32, "tf32"),
    )
    for full in (False, True)
)


def read_rows(path: Path, patterns: list[str], archs: list[int]) -> list[Row]:
    """The rows of a table's file that ``archs`` take (where empty, those that have rows of their own), if their names
    match one of ``patterns``, as file names do. An architecture without rows takes an older one's.
    """
    table = read(path).rows
    rows = []
    for arch in archs or sorted({where["arch"] for where, _ in table}):
        for element, lanes in sorted({(where["bytes"], where["channels_last"]) for where, _ in table}):
            with contextlib.suppress(LookupError):
                for where, config in newest(table, arch, element, lanes):
                    rows.append(Row(arch, element, lanes, where["hidden"], config))
    return [row for row in rows if any(fnmatch.fnmatch(row.name, pattern) for pattern in patterns)]


def collect(rows: list[Row], variants: list[str], kernels: list[str]) -> dict[Launch, list[tuple[Row, Variant]]]:
    """Each different launch of these rows, variants and kernels (all where empty), with what makes it."""
    found: dict[Launch, list[tuple[Row, Variant]]] = {}
    for row, variant, launch in _launches(rows, variants):
        if not kernels or launch.kernel in kernels:
            uses = found.setdefault(launch, [])
            if (row, variant) not in uses:
                uses.append((row, variant))
    return found


def _launches(rows: list[Row], variants: list[str]) -> Iterator[tuple[Row, Variant, Launch]]:
    for row in rows:
        for variant in VARIANTS:
            if variant.dtype.itemsize == row.element and (not variants or variant.name in variants):
                yield from ((row, variant, launch) for launch in _launched(row, variant))


def _launched(row: Row, variant: Variant) -> list[Launch]:
    """Forward, in the forms that the row has, and backward, at a width and size of map as ResNet-50 has them."""
    channels, side, full = 4 * row.hidden, 7 if row.hidden >= 512 else 14, variant.full
    memory_format = torch.channels_last if row.channels_last else torch.contiguous_format
    x = torch.empty(IMAGES, channels, side, side, dtype=variant.dtype, device="meta").to(memory_format=memory_format)
    shapes: tuple = weight_shapes(channels, row.hidden)
    w = Weights(*(torch.empty(shape, device="meta") for shape in (shapes if full else shapes[:WITHOUT_BIASES])))
    problem = replace(Problem.of(x, w, "tanh", variant.precision), config=row.config, num_sms=GPUS[row.arch].num_sms)
    residual = torch.empty_like(x) if full else None
    forms = [forward_plan.Forward, *([forward_plan.TicketForward] if row.config.tickets else [])]
    return launched(row.arch, lambda: run_plans(problem, x, w, residual, full, forms))


def launched(arch: int, run: Callable[[], object]) -> list[Launch]:
    """What ``run`` launches on tensors without memory, as Triton specialises it for an architecture."""
    kept = []

    def keep(*, fn, compile, **_) -> bool:
        kept.append(Launch(arch, fn.module, fn.name, compile["specialization_data"]))
        return True  # neither compile nor launch

    triton.runtime.driver.set_active(Target(arch))
    with triton.knobs.runtime.scope():
        triton.knobs.runtime.jit_cache_hook = keep
        run()
    return kept


def run_plans(
    problem: Problem,
    x: Tensor,
    w: Weights,
    residual: Tensor | None,
    with_map: bool,
    forms: list[type[forward_plan.Forward]],
    save: bool = True,
) -> None:
    """Every form of the forward pass and, with ``save``, the backward pass; the incoming gradient is laid out as x."""
    layout, with_residual = Layout.of(x, problem.channels_last), residual is not None
    attn_map = torch.empty(x.shape[0], *x.shape[2:], device=x.device) if with_map else None
    for form in forms:
        plan = form(problem, w, layout if with_residual else None, with_map, save)
        stats, relu_mask = plan.run(x, w, residual, torch.empty_like(x), attn_map)
    if save:
        backward = backward_plan.Backward(problem, backward_plan.Strides(layout, layout, with_residual), with_map)
        out = torch.empty_like(x) if with_residual else None
        backward.run(BackwardCall(torch.empty_like(x), attn_map, x, w, out, stats, relu_mask, "tanh", True, True))


def build(launch: Launch) -> CompiledKernel:
    """Compiled, or taken from Triton's cache, where it then is."""
    triton.runtime.driver.set_active(Target(launch.arch))
    return getattr(importlib.import_module(launch.module), launch.kernel).preload(launch.specialization)


def compiled(launch: Launch) -> Code | str:
    """What its code needs and holds, or why it does not compile."""
    try:
        binary = build(launch)
    except (triton.TritonError, RuntimeError) as error:
        return f"{type(error).__name__}: {error}"
    return examine(binary.asm["cubin"], binary.metadata.shared, binary.metadata.tmem_size or 0)


def examine(cubin: bytes, shared: int, tensor_columns: int) -> Code:
    """From a binary of one kernel, and the two sizes that Triton adds at the launch."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        command = [triton.knobs.nvidia.cuobjdump.path, "-res-usage", "-sass", str(path)]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    used = {name: int(value) for name, value in re.findall(r"\b(REG|STACK|LOCAL):(\d+)", text)}
    opcodes = Counter(_INSTRUCTION.findall(text))

    def count(pattern: str) -> int:
        return sum(number for opcode, number in opcodes.items() if re.match(pattern, opcode))

    wide = count(r"LDG(STS)?\..*\.(128|256)")
    counts = {name: count(pattern) for name, pattern in TENSOR_CORES.items()}
    return Code(
        registers=used["REG"],
        stack=used["STACK"],
        local=used["LOCAL"],
        shared=shared,
        tensor_columns=tensor_columns,
        spill_loads=count("LDL"),
        spill_stores=count("STL"),
        tensor_cores={name: number for name, number in counts.items() if number},
        wide_loads=wide,
        narrow_loads=count(r"LDG(STS)?\.") - wide,
        instructions=opcodes.total() - count("NOP"),
    )


def faults(launch: Launch, element: int, code: Code | str) -> list[str]:
    """What a shipped kernel must not show; ``element`` is the bytes of x's elements."""
    if isinstance(code, str):
        return [f"does not compile: {code}"]
    gpu = GPUS[launch.arch]
    found = []
    if code.stack or code.local or code.spill_loads or code.spill_stores:
        memory = f"{code.stack} bytes of stack, {code.local} of local memory"
        found.append(f"spills: {memory}, {code.spill_loads} loads, {code.spill_stores} stores")
    if code.shared > gpu.shared:
        found.append(f"{code.shared} bytes of shared memory, expected at most {gpu.shared}")
    if code.tensor_columns > TENSOR_COLUMNS:
        found.append(f"{code.tensor_columns} columns of tensor memory, expected at most {TENSOR_COLUMNS}")
    if launch.kernel in PRODUCTS:
        if element == 2 and gpu.units not in code.tensor_cores:
            found.append(f"no {gpu.units} instruction for 16-bit operands")
        if not code.tensor_cores:
            found.append("no tensor-core instruction")
    return found
