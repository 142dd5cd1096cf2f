"""The machine code of a kernel as its warps meet it: every instruction with what the compiler wrote into it for the
scheduler, and the order in which a warp goes through them where the number of turns of each loop is known.

The upper word of an instruction says for how many cycles its warp waits after it, which scoreboard it holds until its
result or its operands are there, and which scoreboards it waits for (Jia et al., Dissecting the NVIDIA Volta GPU
Architecture via Microbenchmarking, arXiv:1804.06826, section 2.1; later architectures have kept the fields).
"""

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from .loops import branch_target

_LINE = re.compile(
    r"^\s+/\*([0-9a-f]{4,})\*/\s+(@!?U?P\w+\s+)?([A-Z][\w.]*)([^;]*);\s+/\* 0x[0-9a-f]{16} \*/\n"
    r"\s+/\* 0x([0-9a-f]{16}) \*/",
    re.MULTILINE,
)
_NO_SCOREBOARD = 7
_MOST_UNROLLED = 16  # turns in one of an unrolled loop's


class Instruction(NamedTuple):
    """One instruction: `result` and `operands` are the scoreboards that it holds until these are there, -1 for none."""

    at: int
    predicate: str  # "" where it always runs
    opcode: str
    rest: str
    stall: int
    result: int
    operands: int
    waits: tuple[int, ...]

    @property
    def name(self) -> str:
        """The opcode without what follows its first point."""
        return self.opcode.split(".")[0]

    @property
    def width(self) -> int:
        """Bits that each thread moves, of instructions that load or store."""
        found = re.search(r"\.(?:U|S)?(8|16|64|128|256)(?:\.|$)", self.opcode)
        return int(found[1]) if found else 32


class Loop(NamedTuple):
    """A loop of the machine code: its first and last instruction by their indices, and the loops inside of it."""

    first: int
    last: int
    inner: tuple["Loop", ...]


Turns = Sequence["int | tuple[int, Turns]"]  # of each loop in order: its turns, or (its turns, those inside of it)


class TurnsError(ValueError):
    """The machine code has other loops or parts than the plan's figures are for."""


def parse(sass: str) -> list[Instruction]:
    """The instructions of what `cuobjdump -sass` prints of one kernel, up to where the last warp ends."""
    return parse_parts(sass, 1)[0]


def parse_parts(sass: str, parts: int) -> list[list[Instruction]]:
    """For each of a kernel's parts the instructions that its programs meet.

    Programs of different parts have nothing in common but the kernel's first instructions: they part at the first
    branch over code from whose end nothing goes on.
    """
    return _apart(parse_all(sass), 0, parts)


def parse_all(sass: str) -> list[Instruction]:
    """All instructions of what `cuobjdump -sass` prints of one kernel."""
    return [_instruction(*found) for found in _LINE.findall(sass)]


def _apart(code: list[Instruction], begin: int, parts: int) -> list[list[Instruction]]:
    """The code of so many parts, which part from `begin` on; each up to where its last warp ends."""
    if parts == 1:
        ends = [i for i, one in enumerate(code) if one.name == "EXIT" and not one.predicate]
        return [code[: ends[0] + 1] if ends else code]
    index = {one.at: i for i, one in enumerate(code)}
    for i in range(begin, len(code)):
        to = index.get(branch_target(code[i].opcode, code[i].rest) or 0, 0)
        if code[i].predicate and to > i and ends_here(code[to - 1]):
            return [*_apart(code[:to], i + 1, 1), *_apart(code[: i + 1] + code[to:], i + 1, parts - 1)]
    raise TurnsError(f"the machine code does not fall into {parts} more parts")


def ends_here(one: Instruction) -> bool:
    """Whether what follows an instruction is reached from elsewhere only."""
    return one.name in ("BRA", "EXIT") and not one.predicate and not re.search(r"\bU?P\d", one.rest)


def _instruction(at: str, predicate: str, opcode: str, rest: str, word: str) -> Instruction:
    control = int(word, 16) >> 41
    result, operands = (-1 if board == _NO_SCOREBOARD else board for board in (control >> 5 & 7, control >> 8 & 7))
    waits = tuple(board for board in range(6) if control >> 11 + board & 1)
    return Instruction(int(at, 16), predicate.strip(), opcode, rest, control & 15, result, operands, waits)


def loops(code: list[Instruction]) -> tuple[Loop, ...]:
    """The outermost loops, in order, without those that only sleep until something is free."""
    index = {one.at: i for i, one in enumerate(code)}
    found: dict[int, int] = {}
    for i, one in enumerate(code):
        to = branch_target(one.opcode, one.rest)
        if to is not None and to < one.at and not any(c.name == "NANOSLEEP" for c in code[index[to] : i]):
            found[index[to]] = max(i, found.get(index[to], 0))
    return _nested(sorted(found.items()))


def _nested(bounds: list[tuple[int, int]]) -> tuple[Loop, ...]:
    if not bounds:
        return ()
    first, last = bounds[0]
    inside = [bound for bound in bounds[1:] if bound[0] <= last]
    return Loop(first, last, _nested(inside)), *_nested(bounds[1 + len(inside) :])


class Visit(NamedTuple):
    """A warp's visit to an instruction, by its index; without `copies` an asynchronous copy there moves nothing."""

    at: int
    copies: bool = True


def path(code: list[Instruction], turns: Turns) -> list[Visit]:
    """The instructions that a warp issues, one after the other. Raises TurnsError.

    Every branch forward is taken as not taken, so that what only some warps do counts for all. A loop whose copies run
    ahead, by as many turns as have been begun before it, copies nothing in as many of its last turns.
    """
    return list(_walk(code, 0, len(code), loops(code), turns))


def _walk(code: list[Instruction], begin: int, end: int, inner: Sequence[Loop], turns: Turns) -> Iterator[Visit]:
    for loop, (number, inside) in zip(inner, _matched(code, inner, turns), strict=True):
        yield from map(Visit, range(begin, loop.first))
        each = _commits(code, loop.first, loop.last + 1)
        ahead = _commits(code, begin, loop.first) // each if each else 0
        for turn in range(number):
            for visit in _walk(code, loop.first, loop.last + 1, loop.inner, inside):
                yield visit if turn < number - ahead else visit._replace(copies=False)
        begin = loop.last + 1
    yield from map(Visit, range(begin, end))


def _commits(code: list[Instruction], begin: int, end: int) -> int:
    """How many groups of copies are begun there."""
    return sum(one.name == "LDGDEPBAR" for one in code[begin:end])


def _matched(code: list[Instruction], inner: Sequence[Loop], turns: Turns) -> list[tuple[int, Turns]]:
    """The turns of each loop. A loop that the compiler has unrolled is two: whole rounds of turns, and what is left."""
    left, found = list(inner), []
    for position, entry in enumerate(turns):
        number, inside = entry if isinstance(entry, tuple) else (entry, ())
        spare = len(left) - (len(turns) - position)
        times = _unrolled(code, left[0], left[1]) if spare > 0 and len(left) > 1 else 1
        parts = [(number // times, inside), (number % times, inside)] if times > 1 else [(number, inside)]
        found += parts
        left = left[len(parts) :]
    if len(found) != len(inner):
        raise TurnsError(f"{len(inner)} loops in the machine code, expected {len(turns)}")
    return found


def _unrolled(code: list[Instruction], loop: Loop, rest: Loop) -> int:
    """How many turns of `rest` one of `loop` makes, by what they load; 1 if they are not one loop."""
    many, one = (sum(c.name in ("LDG", "LDGSTS") for c in code[part.first : part.last + 1]) for part in (loop, rest))
    return many // one if one and many % one == 0 and many // one <= _MOST_UNROLLED else 1
