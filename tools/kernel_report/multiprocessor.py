"""Walks the warps of one multiprocessor through a kernel's machine code, and counts the clocks.

A quarter of a multiprocessor is walked: its scheduler issues one instruction a clock, in order for each warp, to units
of which each takes an instruction for some clocks. The units that all quarters share, and the GPU's memory, are there
at a quarter's share of their rate. So what a time consists of, issue, units, memory, or the wait of too few warps for
results, is not assumed but comes out. There are no caches but L2, no branches that only some warps take, and no limit
to what is under way.
"""

import heapq
import re
from collections import Counter, defaultdict, deque
from collections.abc import Sequence
from typing import NamedTuple

from .banks import wavefronts
from .rates import Gpu
from .sass import Instruction, Visit

WARP, QUARTERS = 32, 4
SHARED_LATENCY, SPECIAL_LATENCY, OPERANDS_LATENCY = 29, 23, 12  # clocks
_SHARED = ("LDS", "STS", "LDSM", "STSM", "SHFL", "ATOMS")
_GLOBAL = ("LDG", "STG", "LDGSTS", "LDL", "STL", "RED", "ATOMG")
_SPECIAL = ("MUFU", "I2F", "F2I", "F2F", "POPC")
_FLOATS = ("FADD", "FMUL", "FFMA", "HFMA2", "HADD2", "HMUL2", "FFMA2", "FADD2", "FMUL2")
_UNITLESS = (
    "NOP", "BRA", "EXIT", "BAR", "DEPBAR", "LDGDEPBAR", "WARPGROUP", "BSSY", "BSYNC", "WARPSYNC", "S2R", "S2UR", "CS2R",
    "LDC", "ULDC", "LDCU", "R2UR", "FENCE", "MEMBAR", "CCTL", "SYNCS",
)  # fmt: skip


class Memory(NamedTuple):
    """What memory is to one quarter of a multiprocessor: bytes a clock, and the clocks that a load takes at least."""

    rate: float
    latency: float


class Step(NamedTuple):
    """An instruction as the walk takes it."""

    unit: str
    clocks: float  # for which its unit is taken
    bytes: int  # from or to L2 and memory
    latency: float  # until its result is there, where a scoreboard says so
    stall: int
    result: int
    operands: int
    waits: tuple[int, ...]
    kind: str  # what else it does: see `_step`
    number: int  # how many groups may still be under way after a wait


def steps(code: list[Instruction], visits: Sequence[Visit], gpu: Gpu, memory: Memory, tile: float = 0) -> list[Step]:
    """What the instructions that a warp visits are to a quarter; `tile`: a warp's share of a tcgen05 product."""
    turns = wavefronts(code)
    each = [_step(one, gpu, memory, turns.get(i)) for i, one in enumerate(code)]
    each = [step._replace(clocks=tile * QUARTERS / gpu.products) if step.kind == "tile" else step for step in each]
    idle = [step._replace(unit="", bytes=0, latency=0) if step.kind == "copy" else step for step in each]
    return [each[visit.at] if visit.copies else idle[visit.at] for visit in visits]


def _step(one: Instruction, gpu: Gpu, memory: Memory, turns: int | None) -> Step:
    unit, clocks, moved, latency = _cost(one, gpu, memory)
    if turns is not None:
        clocks = QUARTERS * turns
    kind, number = "", 0
    if one.name == "BAR":
        kind = "barrier"
    elif one.name == "LDGSTS":
        kind = "copy"
    elif one.name == "LDGDEPBAR":
        kind = "commit"
    elif one.name == "UTCHMMA":
        kind = "tile"
    elif one.name == "UTCBAR":
        kind = "product end"
    elif one.opcode.startswith("SYNCS.PHASECHK"):
        kind = "wait for products"
    elif one.name == "HGMMA":
        kind = "product end" if "gsb" in one.rest else "product"
    elif one.opcode.startswith(("DEPBAR.LE", "WARPGROUP.DEPBAR")):
        kind = "wait for products" if one.name == "WARPGROUP" else "wait for copies"
        number = int(re.findall(r"0x([0-9a-f]+)", one.rest)[-1], 16)
    return Step(unit, clocks, moved, latency, one.stall, one.result, one.operands, one.waits, kind, number)


def _cost(one: Instruction, gpu: Gpu, memory: Memory) -> tuple[str, float, int, float]:
    """The unit, the clocks it is taken for, bytes of memory, and the latency."""
    moved = WARP * one.width // 8
    if one.name in _GLOBAL:
        cached = one.name == "LDGSTS" and "BYPASS" not in one.opcode
        return "shared memory", QUARTERS * max(1, moved / 128), 0 if cached else moved, memory.latency
    if one.name in _SHARED:
        return "shared memory", QUARTERS, 0, SHARED_LATENCY
    if one.name in ("HGMMA", "HMMA", "UTCHMMA"):
        return "tensor cores", products(one) * QUARTERS / (gpu.products if one.name == "HGMMA" else gpu.mma), 0, 0
    if one.name in _SPECIAL:
        return "special functions", WARP / 4, 0, SPECIAL_LATENCY
    if one.name in _FLOATS:
        return "float32", WARP * QUARTERS / gpu.floats, 0, SPECIAL_LATENCY
    if one.name in _UNITLESS:
        return "", 0, 0, SPECIAL_LATENCY
    return ("uniform" if one.name.startswith("U") else "whole numbers"), 2, 0, SPECIAL_LATENCY


def products(one: Instruction) -> float:
    """Multiply-adds of a product on one quarter's tensor core, as if of 16 bits: those of TF32 take twice as long."""
    if found := re.match(r"HGMMA\.(\d+)x(\d+)x(\d+)", one.opcode):
        m, n, k = map(int, found.groups())
        work = m * n * k / QUARTERS
    elif found := re.match(r"HMMA\.(16)(8)(\d+)", one.opcode):
        m, n, k = map(int, found.groups())
        work = m * n * k
    else:
        return 0.0
    return work * (2 if "TF32" in one.opcode else 1)


class Warp:
    """Where a warp is in its program, and what it waits for."""

    __slots__ = ("at", "block", "copies", "copying", "products", "scoreboards", "trace")

    def __init__(self, block: int, trace: Sequence[Step]):
        self.at, self.block, self.trace = 0, block, trace
        self.scoreboards = [0.0] * 6
        self.copying = 0.0  # when the last copy of the group that is being made will have landed
        self.copies: deque[float] = deque()
        self.products: deque[float] = deque()


class Walk:
    """A quarter's warps, `resident` of its programs at a time, each with `warps` warps in this quarter."""

    def __init__(self, programs: Sequence[Sequence[Step]], memory: Memory, resident: int, warps: int):
        self.programs, self.memory, self.resident, self.warps = programs, memory, resident, warps
        self.free: dict[str, float] = defaultdict(float)  # from when on a unit, the scheduler or memory is free
        self.arrived: dict[int, list[Warp]] = {}
        self.running: Counter[int] = Counter()
        self.queue: list[tuple[float, int, Warp]] = []
        self.order = 0

    def run(self) -> list[float]:
        """The clock at which each of the programs ends, in order of their ends."""
        ends: list[float] = []
        begun = min(len(self.programs), self.resident)
        for block in range(begun):
            self._begin(block, 0.0)
        while self.queue:
            now, _, warp = heapq.heappop(self.queue)
            if warp.at < len(warp.trace):
                self._advance(now, warp)
                continue
            self.running[warp.block] -= 1
            if not self.running[warp.block]:
                ends.append(now)
                if begun < len(self.programs):
                    self._begin(begun, now)
                    begun += 1
        return ends

    def _begin(self, block: int, now: float) -> None:
        self.running[block] = self.warps
        for _ in range(self.warps):
            self._push(now, Warp(block, self.programs[block]))

    def _push(self, when: float, warp: Warp) -> None:
        self.order += 1
        heapq.heappush(self.queue, (when, self.order, warp))

    def _advance(self, now: float, warp: Warp) -> None:
        """Issues the warp's next instruction, or has it wait until that can be issued."""
        step = warp.trace[warp.at]
        ready = max([now, self.free["issue"], self.free[step.unit], *(warp.scoreboards[i] for i in step.waits)])
        for kind, groups in (("wait for copies", warp.copies), ("wait for products", warp.products)):
            if step.kind == kind and len(groups) > step.number:
                ready = max(ready, groups[len(groups) - step.number - 1])
        if ready > now:
            self._push(ready, warp)
            return
        self.free["issue"] = now + 1
        if step.unit:
            self.free[step.unit] = now + step.clocks
        self._effects(now, step, warp)
        warp.at += 1
        if step.kind == "barrier":
            waiting = self.arrived.setdefault(warp.block, [])
            waiting.append(warp)
            if len(waiting) == self.warps:
                for other in self.arrived.pop(warp.block):
                    self._push(now + max(1, step.stall), other)
        else:
            self._push(now + max(1, step.stall), warp)

    def _effects(self, now: float, step: Step, warp: Warp) -> None:
        there = now + step.latency
        if step.bytes:
            begin = max(now, self.free["memory"])
            self.free["memory"] = begin + step.bytes / self.memory.rate
            there = begin + step.latency
        if step.kind == "copy":
            warp.copying = max(warp.copying, there)
        elif step.kind == "commit":
            warp.copies.append(warp.copying)
            there = now
        elif step.kind == "product end":
            warp.products.append(self.free["tensor cores"])
        if step.result >= 0:
            warp.scoreboards[step.result] = max(warp.scoreboards[step.result], there)
        if step.operands >= 0:
            warp.scoreboards[step.operands] = max(warp.scoreboards[step.operands], now + OPERANDS_LATENCY)
