"""How many turns shared memory needs for an instruction: more than its bytes ask for where lanes meet in a bank.

The integer instructions of a listing are computed for the 32 lanes of the first warp, from the first to the last once,
loops too. What comes from memory or from the launch is taken as 0: it is the same for all lanes and shifts all banks
alike. Of two ways that exclude each other, the second begins where the first did.
"""

import re
from collections.abc import Callable

import numpy as np

from .loops import branch_target
from .sass import Instruction

LANES, BANKS, WORD = 32, 32, 4
_ADDRESSED = ("LDS", "STS", "LDSM", "STSM", "LDGSTS")
_BITS = 0xFFFFFFFF
Lanes = np.ndarray  # [32] int64


def wavefronts(code: list[Instruction]) -> dict[int, int]:
    """Turns of shared memory for each of its instructions, by their indices."""
    lanes, found = _Lanes(), {}
    index = {one.at: i for i, one in enumerate(code)}
    before: dict[int, dict[str, Lanes]] = {}
    for i, one in enumerate(code):
        lanes.values = before.pop(i, lanes.values)
        target = branch_target(one.opcode, one.rest)
        to = 0 if target is None else index.get(target, 0)
        if to > i and one.predicate and _never_passed(code[to - 1]):
            before[to] = dict(lanes.values)
        if one.name in _ADDRESSED and (address := re.search(r"\[([^\]]*)\]", one.rest)):
            found[i] = _turns(lanes.sum(address[1].split("+")), one, lanes.active(one.predicate))
        else:
            lanes.run(one)
    return found


def _never_passed(one: Instruction) -> bool:
    """Whether what follows an instruction is reached from elsewhere only."""
    return one.name in ("BRA", "EXIT") and not one.predicate and "P" not in one.rest


def _turns(address: Lanes, one: Instruction, active: np.ndarray) -> int:
    """Lanes whose words lie in one bank take turns, unless the words are the same."""
    matrices = re.search(r"\.M88(?:\.([24]))?", one.opcode)
    size = 16 if matrices else one.width // 8
    groups = int(matrices[1] or 1) if matrices else max(1, size // WORD)
    lanes = 8 if matrices else LANES // groups
    total = 0
    for group in range(groups):
        members = slice(group * lanes, (group + 1) * lanes)
        first = address[members][active[members]] // WORD
        words = np.unique(first[:, None] + np.arange(max(1, size // WORD)))
        total += int(np.bincount(words % BANKS).max()) if words.size else 0
    return max(1, total)


class _Lanes:
    """The registers and predicates of a warp's lanes, as far as they are known."""

    def __init__(self) -> None:
        self.values: dict[str, Lanes] = {}
        self.zero = np.zeros(LANES, np.int64)

    def active(self, predicate: str) -> np.ndarray:
        """The lanes that an instruction is for; all of them where it is for all or none."""
        name = predicate.removeprefix("@").removeprefix("!")
        found = self.values.get(name, self.zero).astype(bool) ^ ("!" in predicate)
        return found if name and found.any() else np.ones(LANES, bool)

    def sum(self, terms: list[str]) -> Lanes:
        return sum((self.value(term) for term in terms), self.zero) & _BITS

    def value(self, text: str) -> Lanes:
        text = text.strip().removesuffix(".reuse").split(".")[0]
        if text.startswith("-") and not text.startswith("-0x"):
            return -self.value(text[1:])
        if re.fullmatch(r"-?(0x[0-9a-f]+|\d+)", text):
            return self.zero + int(text, 0)
        if text.startswith("!"):
            return 1 - self.value(text[1:])
        return self.values.get(text, self.zero + (text in ("PT", "UPT")))

    def run(self, one: Instruction) -> None:
        """Keeps what an instruction leaves in its first register or predicate, 0 where that is not known."""
        operands = [text.strip() for text in one.rest.split(",")]
        if not operands or not re.match(r"U?[RP]\d", operands[0]):
            return
        name, rest = operands[0], operands[1:]
        compute = _OPERATIONS.get(one.name.removeprefix("U") if one.name[1:] in _OPERATIONS else one.name)
        new = self.zero if compute is None else compute(self, one.opcode, rest) & _BITS
        self.values[name] = np.where(self.active(one.predicate), new, self.values.get(name, self.zero))

    def numbers(self, operands: list[str]) -> list[Lanes]:
        """The values of the operands that are no predicates."""
        return [self.value(text) for text in operands if not re.fullmatch(r"!?U?P(\d|T)", text)]


def _special(lanes: _Lanes, opcode: str, operands: list[str]) -> Lanes:
    return np.arange(LANES) if operands[0] == "SR_TID.X" else lanes.zero


def _logic(lanes: _Lanes, opcode: str, operands: list[str]) -> Lanes:
    a, b, c, table = lanes.numbers(operands)[:4]
    result = lanes.zero
    for row in range(8):
        if int(table[0]) >> row & 1:
            terms = (value if row >> place & 1 else ~value for value, place in ((a, 2), (b, 1), (c, 0)))
            result = result | np.bitwise_and.reduce(list(terms))
    return result


def _shift(lanes: _Lanes, opcode: str, operands: list[str]) -> Lanes:
    low, by, high = lanes.numbers(operands)[:3]
    if ".L" in opcode:
        return low << (by & 31)
    high = high & _BITS
    signed = np.where(high >> 31, high - (1 << 32), high) if ".S32" in opcode else high
    return signed >> (by & 31)


def _multiply(lanes: _Lanes, opcode: str, operands: list[str]) -> Lanes:
    a, b, c = lanes.numbers(operands)[:3]
    return lanes.zero if ".HI" in opcode or ".X" in opcode else a * b + c


def _scaled(lanes: _Lanes, opcode: str, operands: list[str]) -> Lanes:
    numbers = lanes.numbers(operands)
    a, b, by = numbers[0] & _BITS, numbers[1], numbers[-1] & 31
    return (a >> (32 - by)) + b if ".HI" in opcode else (a << by) + b


def _cut(lanes: _Lanes, opcode: str, operands: list[str]) -> Lanes:
    value, bits = lanes.numbers(operands)[:2]
    low = value & ((1 << bits) - 1)
    return low if ".U32" in opcode else np.where(low >> (bits - 1) & 1, low - (1 << bits), low)


def _chosen(lanes: _Lanes, opcode: str, operands: list[str]) -> Lanes:
    return np.where(lanes.value(operands[-1]).astype(bool), *(lanes.value(text) for text in operands[:2]))


def _compared(lanes: _Lanes, opcode: str, operands: list[str]) -> Lanes:
    a, b = lanes.numbers(operands)[:2]
    return _COMPARISONS[opcode.split(".")[1]](a, b).astype(np.int64)


_COMPARISONS = {
    "EQ": np.equal, "NE": np.not_equal, "LT": np.less, "LE": np.less_equal, "GT": np.greater, "GE": np.greater_equal,
}  # fmt: skip
_OPERATIONS: dict[str, Callable[[_Lanes, str, list[str]], Lanes]] = {
    "S2R": _special,
    "LOP3": _logic,
    "SHF": _shift,
    "IMAD": _multiply,
    "LEA": _scaled,
    "SGXT": _cut,
    "SEL": _chosen,
    "ISETP": _compared,
    "IADD3": lambda lanes, opcode, operands: lanes.zero if ".X" in opcode else sum(lanes.numbers(operands), lanes.zero),
    "VIADD": lambda lanes, opcode, operands: sum(lanes.numbers(operands), lanes.zero),
    "MOV": lambda lanes, opcode, operands: lanes.value(operands[0]),
}
