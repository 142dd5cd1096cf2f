"""What the machine code of a compiled Triton kernel needs and holds, and what of it is a fault."""

import re
import subprocess
import tempfile
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import triton

from gala_cuda.backends.triton.config import OLDEST_PDL, Multiprocessors
from gala_cuda.backends.triton.problem import OF_A_PROGRAM

from .launches import Launch, build
from .loops import main_loop

TENSOR_COLUMNS = 512  # of a multiprocessor's tensor memory, of 128 lanes of 32 bits each
PRODUCTS = ("gather", "gather_hidden", "grad_x", "local_products")  # kernels with a product over all pixels
_GLOBAL = re.compile(r"(LDG|LDGSTS|LD|STG|ST|ATOMG|ATOM|RED|REDG|UBLK\w*|UTMA\w*)(\.|$)")  # accesses of global memory
_INSTRUCTION = re.compile(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)", re.MULTILINE)


class Gpu(NamedTuple):
    """The GPU that stands for an architecture."""

    name: str
    arch: int
    num_sms: int
    shared: int  # bytes that one program may have
    units: str  # the tensor cores' instructions for 16-bit operands; see TENSOR_CORES

    @property
    def sms(self) -> Multiprocessors:
        """Whose shared memory holds a little more than what one program may have."""
        return Multiprocessors(self.num_sms, self.shared + OF_A_PROGRAM, self.arch >= OLDEST_PDL)


GPUS = {
    gpu.arch: gpu
    for gpu in (
        Gpu("A100", 80, 108, 163 << 10, "HMMA"),
        Gpu("RTX A6000", 86, 84, 99 << 10, "HMMA"),
        Gpu("RTX 4090", 89, 128, 99 << 10, "HMMA"),
        Gpu("H100", 90, 132, 227 << 10, "HGMMA"),
        Gpu("B200", 100, 148, 227 << 10, "tcgen05"),
        Gpu("RTX PRO 6000", 120, 188, 99 << 10, "HMMA"),
    )
}
TENSOR_CORES = {  # as the machine code spells them; tcgen05 does not say its operands' type
    "HMMA": r"HMMA(?!.*\.TF32)",
    "HMMA TF32": r"HMMA.*\.TF32",
    "HGMMA": r"HGMMA(?!.*\.TF32)",
    "HGMMA TF32": r"HGMMA.*\.TF32",
    "tcgen05": r"UTC\w*MMA",
}


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
    wide_loads: int  # from global memory, 128 bits or more in each thread
    narrow_loads: int
    instructions: int
    before_wait: int | None  # accesses of global memory before the wait for the kernel before; None without a wait
    loop: dict[str, int]  # one turn of the main loop


def compiled(launch: Launch) -> Code | str:
    """What the code of a launch needs and holds, or why it does not compile."""
    found = disassembled(launch)
    return found if isinstance(found, str) else found[0]


def disassembled(launch: Launch) -> tuple[Code, str] | str:
    """What the code of a launch needs and holds, with its listing; or why it does not compile."""
    try:
        binary = build(launch)
    except (triton.TritonError, RuntimeError) as error:
        return f"{type(error).__name__}: {error}"
    text = listing(binary.asm["cubin"])
    return examine(text, binary.metadata.shared, binary.metadata.tmem_size or 0), text


def listing(cubin: bytes) -> str:
    """What cuobjdump prints of a binary of one kernel."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        command = [triton.knobs.nvidia.cuobjdump.path, "-res-usage", "-sass", str(path)]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def examine(text: str, shared: int, tensor_columns: int) -> Code:
    """What a kernel's listing shows, given the two sizes that Triton adds at the launch."""
    used = {name: int(value) for name, value in re.findall(r"\b(REG|STACK|LOCAL):(\d+)", text)}
    code = _INSTRUCTION.findall(text)
    opcodes, wait = Counter(code), code.index("ACQBULK") if "ACQBULK" in code else None

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
        before_wait=None if wait is None else sum(_GLOBAL.match(opcode) is not None for opcode in code[:wait]),
        loop=main_loop(text),
    )


def faults(launch: Launch, element: int, code: Code | str) -> list[str]:
    """What a shipped kernel must not show; `element` is the bytes of x's elements."""
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
    if launch.constants["PDL"] and code.before_wait != 0:
        found.append("does not wait for the kernel before" if code.before_wait is None else "reads or writes too early")
    if launch.kernel in PRODUCTS:
        if element == 2 and gpu.units not in code.tensor_cores:
            found.append(f"no {gpu.units} instruction for 16-bit operands")
        if not code.tensor_cores:
            found.append("no tensor-core instruction")
    return found
