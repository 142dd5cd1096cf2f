"""The time that a kernel is predicted to take on a GPU that is not there, and the bounds that it cannot pass."""

import math
from typing import Any, NamedTuple

from gala_cuda.backends.triton.launch import cdiv

from .launches import Planned
from .machine_code import Code
from .multiprocessor import QUARTERS, WARP, Memory, Step, Walk, steps
from .rates import SHARE, Gpu
from .sass import Turns, parse, path
from .turns import turns

REGISTERS = 1 << 16  # of a multiprocessor
_RESERVED = 1024  # bytes of shared memory that the system takes of each program
_TILES = {  # the sides of a kernel's products, whose depth is 16 in an instruction of tcgen05
    "gather": ("ROWS", "REDUCED"),
    "grad_x": ("ROWS", "CHANNELS"),
    "local_products": ("REDUCED", "CHANNELS"),
}
_ROUNDS = 3  # of resident programs that are walked; later ones take as long as the last
_PORT = 64.0  # bytes a clock between L2 and one multiprocessor, however few ask


class Bounds(NamedTuple):
    """Microseconds that a kernel needs at least, each as if nothing else took time; and `walked`, the prediction."""

    issue: float
    shared: float
    tensor: float
    l2: float
    memory: float
    alone: float  # of one program by itself, for as many rounds as there are
    walked: float

    @property
    def set_by(self) -> str:
        """The name of the largest bound."""
        return max(self._fields[:-1], key=lambda name: getattr(self, name))


class Kernel(NamedTuple):
    """What is predicted of one launch."""

    name: str
    programs: int
    waves: float  # programs over those that are resident at once
    registers: int
    resident: int  # programs of a multiprocessor
    turns: Turns  # of its loops
    loop: dict[str, int]  # instructions of one turn of its main loop, by class
    instructions: int  # that a warp issues
    bytes_l2: int
    bytes_memory: int
    bounds: Bounds

    @property
    def entry(self) -> dict[str, Any]:
        """As JSON, times in microseconds."""
        bounds = {name: round(value, 2) for name, value in self.bounds._asdict().items()}
        rest = {name: value for name, value in self._asdict().items() if name != "bounds"}
        return {**rest, "waves": round(self.waves, 2), "bounds": bounds, "set_by": self.bounds.set_by}


def resident(code: Code, warps: int, gpu: Gpu) -> int:
    """How many programs a multiprocessor holds at once."""
    registers = cdiv(code.registers, 8) * 8 * WARP * warps
    return max(1, min(REGISTERS // registers, gpu.shared // (code.shared + _RESERVED), gpu.warps // warps, gpu.blocks))


def predict(planned: Planned, code: Code, sass: str, from_memory: int, gpu: Gpu) -> Kernel:
    """What is predicted of a launch, of which so many bytes come from memory or go there. Raises TurnsError."""
    name, warps, programs = planned.launch.kernel, planned.warps, planned.programs
    found = turns(name, planned.sizes)
    instructions = parse(sass)
    visits = path(instructions, found)
    tile = 16 * math.prod(planned.sizes[side] for side in _TILES.get(name, ())) / warps
    moved = sum(step.bytes for step in steps(instructions, visits, gpu, Memory(1, 1))) * warps * programs
    memory = _memory(gpu, min(programs, gpu.num_sms), from_memory / moved if moved else 0.0)
    trace = steps(instructions, visits, gpu, memory, tile)
    held = resident(code, warps, gpu)
    bounds = _bounds(trace, memory, gpu, warps, programs, held, moved, from_memory)
    return Kernel(
        name,
        programs,
        programs / (held * gpu.num_sms),
        code.registers,
        held,
        found,
        code.loop,
        len(visits),
        moved,
        from_memory,
        bounds,
    )


def _memory(gpu: Gpu, active: int, share: float) -> Memory:
    """What L2 and memory are to a quarter of a multiprocessor, where `active` ask, and memory has to give a `share`."""
    share = min(share, 1.0)
    rate = min(_PORT, gpu.l2_rate * gpu.num_sms / active)
    if share:
        rate = min(rate, gpu.memory * SHARE / gpu.clock / active / share)
    return Memory(rate / QUARTERS, gpu.l2_latency + share * (gpu.latency - gpu.l2_latency))


def _bounds(
    trace: list[Step], memory: Memory, gpu: Gpu, warps: int, programs: int, held: int, moved: int, from_memory: int
) -> Bounds:
    each = cdiv(programs, gpu.num_sms)  # programs of the multiprocessor with the most
    scale = 1e6 / gpu.clock
    quarters = each * warps / QUARTERS * scale

    def unit(name: str) -> float:
        return quarters * sum(step.clocks for step in trace if step.unit == name)

    # where a program has fewer warps than there are quarters, a quarter has only some of the programs
    rows, split = max(1, warps // QUARTERS), min(1.0, warps / QUARTERS)
    slots, of_quarter = max(1, int(held * split)), max(1, cdiv(int(each * warps), QUARTERS) if split < 1 else each)
    walked = _walk(trace, memory, slots, rows, of_quarter)
    alone = Walk(trace, memory, 1, rows).run(1)[-1] * cdiv(each, held)
    return Bounds(
        issue=quarters * len(trace),
        shared=unit("shared memory"),
        tensor=unit("tensor cores"),
        l2=moved / (gpu.l2_rate * gpu.num_sms) * scale,
        memory=from_memory / (gpu.memory * SHARE) * 1e6,
        alone=alone * scale,
        walked=walked * scale,
    )


def _walk(trace: list[Step], memory: Memory, slots: int, warps: int, programs: int) -> float:
    """Clocks that a quarter needs for its programs, of which `slots` are there at a time."""
    walked = min(programs, _ROUNDS * slots)
    ends = Walk(trace, memory, slots, warps).run(walked)
    left = programs - walked
    return ends[-1] + (left * (ends[-1] - ends[-1 - slots]) / slots if left else 0.0)
