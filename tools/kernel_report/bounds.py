"""The time that a kernel is predicted to take on a GPU that is not there, and the bounds that it cannot pass."""

import bisect
import itertools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from gala_cuda.backends.triton.launch import cdiv

from .launches import Planned
from .machine_code import Code
from .multiprocessor import QUARTERS, WARP, Memory, Step, Walk, steps
from .rates import SHARE, Gpu
from .sass import Turns, parse_parts, path
from .turns import parts

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
    turns: list[Turns]  # of the loops of each of its parts
    loop: dict[str, int]  # instructions of one turn of its main loop, by class
    instructions: list[int]  # that a warp issues, by parts
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
    return resident_of(code.registers, code.shared, warps, gpu)


def resident_of(registers: int, shared: int, warps: int, gpu: Gpu) -> int:
    """The same, of programs whose threads have so many registers, and which have so much shared memory."""
    each = cdiv(registers, 8) * 8 * WARP * warps
    return max(1, min(REGISTERS // each, gpu.shared // (shared + _RESERVED), gpu.warps // warps, gpu.blocks))


def predict(planned: Planned, code: Code, sass: str, from_memory: int, gpu: Gpu) -> Kernel:
    """What is predicted of a launch, of which so many bytes come from memory or go there. Raises TurnsError."""
    name, warps, total = planned.launch.kernel, planned.warps, sum(planned.programs)
    found = parts(name, planned.sizes)
    ways = list(zip(parse_parts(sass, len(found)), found, planned.programs, strict=True))
    visits = [path(instructions, part.turns) for instructions, part, _ in ways]
    moved = sum(
        sum(step.bytes for step in steps(instructions, visited, gpu, Memory(1, 1))) * warps * programs
        for (instructions, _, programs), visited in zip(ways, visits, strict=True)
    )
    memory = memory_of(gpu, min(total, gpu.num_sms), from_memory / moved if moved else 0.0)
    traces = []
    for (instructions, part, _), visited in zip(ways, visits, strict=True):
        tile = 16 * math.prod(planned.sizes[side] for side in _TILES.get(part.name, ())) / warps
        traces.append(steps(instructions, visited, gpu, memory, tile))
    held = resident(code, warps, gpu)
    each = (
        bounds_of(programs, memory, gpu, warps, held, moved, from_memory)
        for programs in _of_multiprocessors(traces, planned.programs, gpu)
    )
    bounds = max(each, key=lambda found: found.walked)
    return Kernel(
        name,
        total,
        total / (held * gpu.num_sms),
        code.registers,
        held,
        [part.turns for part in found],
        code.loop,
        [len(each) for each in visits],
        moved,
        from_memory,
        bounds,
    )


def _of_multiprocessors(traces: list[list[Step]], programs: Sequence[int], gpu: Gpu) -> list[list[list[Step]]]:
    """What the programs of a multiprocessor do, for each kind of multiprocessor: they take programs in turn."""
    ends = list(itertools.accumulate(programs))
    each = [
        tuple(bisect.bisect(ends, program) for program in range(first, ends[-1], gpu.num_sms))
        for first in range(min(gpu.num_sms, ends[-1]))
    ]
    return [[traces[part] for part in parts] for parts in dict.fromkeys(each)]


def memory_of(gpu: Gpu, active: int, share: float) -> Memory:
    """What L2 and memory are to a quarter of a multiprocessor, where `active` ask, and memory has to give a `share`."""
    share = min(share, 1.0)
    rate = min(_PORT, gpu.l2_rate * gpu.num_sms / active)
    if share:
        rate = min(rate, gpu.memory * SHARE / gpu.clock / active / share)
    return Memory(rate / QUARTERS, gpu.l2_latency + share * (gpu.latency - gpu.l2_latency))


def bounds_of(
    programs: list[list[Step]], memory: Memory, gpu: Gpu, warps: int, held: int, moved: int, from_memory: int
) -> Bounds:
    """Of the programs of one multiprocessor, which holds so many at once; moved and from_memory are of all."""
    scale = 1e6 / gpu.clock
    quarters = warps / QUARTERS * scale
    rows = max(1, warps // QUARTERS)

    def unit(name: str) -> float:
        return quarters * sum(step.clocks for trace in programs for step in trace if step.unit == name)

    alone = {id(trace): Walk([trace], memory, 1, rows).run()[-1] for trace in {id(t): t for t in programs}.values()}
    rounds = (programs[i : i + held] for i in range(0, len(programs), held))
    return Bounds(
        issue=quarters * sum(map(len, programs)),
        shared=unit("shared memory"),
        tensor=unit("tensor cores"),
        l2=moved / (gpu.l2_rate * gpu.num_sms) * scale,
        memory=from_memory / (gpu.memory * SHARE) * 1e6,
        alone=sum(max(alone[id(trace)] for trace in each) for each in rounds) * scale,
        walked=_walk(programs, memory, held, warps) * scale,
    )


def _walk(programs: list[list[Step]], memory: Memory, held: int, warps: int) -> float:
    """Clocks that a quarter needs for its programs.

    Where a program has fewer warps than there are quarters, a quarter has only some of the programs. Of those that do
    the same as all after them, some rounds are walked.
    """
    rows, split = max(1, warps // QUARTERS), min(1.0, warps / QUARTERS)
    slots = max(1, int(held * split))
    if split < 1:
        programs = programs[: cdiv(int(len(programs) * warps), QUARTERS)]
    same = next((i for i in range(len(programs)) if all(trace is programs[-1] for trace in programs[i:])), 0)
    walked = programs[: same + _ROUNDS * slots]
    ends = Walk(walked, memory, slots, rows).run()
    left = len(programs) - len(walked)
    return ends[-1] + (left * (ends[-1] - ends[-1 - slots]) / slots if left else 0.0)
