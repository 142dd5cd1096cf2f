"""The registers of a warp's 32 lanes, as far as they are known.

What steers a warp, its indices and the kernel's arguments, are whole numbers that can be computed without a GPU; what
is loaded is unknown, and so is every float but those of divisions.
"""

import re
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

LANES = 32
WORD = 1 << 32
Mask = NDArray[np.bool_]
Value = NDArray[np.object_] | None  # whole numbers of the lanes without a sign, or unknown
_ZEROS, _TRUE = ("RZ", "URZ"), ("PT", "UPT")


class Place(NamedTuple):
    """Where a warp runs: its block's number, and its own in the block."""

    block: int
    warp: int


def numbers(values: object) -> NDArray[np.object_]:
    """The same number for each lane, or one each."""
    found = np.empty(LANES, dtype=object)
    found[:] = values
    return found


def number(text: str) -> int:
    """A whole number as listings spell it."""
    return int(text, 16) if "0x" in text else int(text)


def each(function: Callable, *values: Value) -> Value:
    """The function of each lane's numbers; unknown where one of them is."""
    if any(value is None for value in values):
        return None
    return numbers([function(*lane) for lane in zip(*values, strict=True)])


def low(value: Value) -> Value:
    """The lower 32 bits."""
    return None if value is None else value % WORD


def signed(value: Value) -> Value:
    """Numbers of 32 bits as they are with a sign."""
    return each(lambda one: one - WORD if one >= WORD // 2 else one, low(value))


def following(register: str, by: int) -> str:
    """The name of the register `by` places on."""
    stem = register.rstrip("0123456789")
    return f"{stem}{int(register[len(stem) :]) + by}"


class Lanes:
    """Registers and predicates of a warp, by their names, and which of its lanes are active."""

    def __init__(self, banks: Mapping[int, bytes], place: Place):
        self.banks, self.place = banks, place  # of constant memory, by their numbers
        self.registers: dict[str, Value] = {name: numbers(0) for name in _ZEROS}
        self.predicates: dict[str, Value] = {name: numbers(1) for name in _TRUE}
        self.active: Mask = np.ones(LANES, dtype=bool)

    def operand(self, text: str, pair: bool = False) -> Value:
        """What an operand is in each lane, as a number without a sign; with `pair` of 64 bits."""
        text = text.removesuffix(".reuse").removesuffix(".64")
        if text[0] in "-~" and not re.match(r"-(0x|\d)", text):
            value = self.operand(text[1:], pair)
            size = WORD * WORD if pair else WORD
            return None if value is None else (size - value if text[0] == "-" else size - 1 - value)
        if found := re.fullmatch(r"c\[0x(\w+)\]\[(?:(U?R\w+)(?:\.\w+)?)?\+?(?:(-?0x\w+))?\]", text):
            return self._constant(int(found[1], 16), found[2], int(found[3] or "0", 16), 8 if pair else 4)
        if text in _ZEROS:
            return self.registers[text]
        if re.fullmatch(r"U?R\d+", text):
            first = self.registers.get(text)
            if not pair or first is None:
                return first
            second = self.registers.get(following(text, 1))
            return None if second is None else first + second * WORD
        if re.fullmatch(r"-?(0x[0-9a-f]+|\d+)", text):
            return numbers(number(text) % (WORD * WORD if pair else WORD))
        return None

    def _constant(self, bank: int, register: str | None, offset: int, size: int) -> Value:
        base = numbers(0) if register is None else self.registers.get(register)
        data = self.banks.get(bank)
        if base is None or data is None:
            return None
        at = [(int(one) + offset) % WORD for one in base]
        return numbers([int.from_bytes(data[one : one + size], "little") for one in at])

    def predicate(self, text: str) -> Value:
        """Whether a predicate holds, in each lane."""
        value = self.predicates.get(text.lstrip("!"))
        return value if value is None or text[0] != "!" else 1 - value

    def write(self, name: str, value: Value, mask: Mask) -> None:
        """Sets a register or predicate in the lanes of `mask`."""
        into = self.predicates if re.match(r"U?P(\d|T)", name) else self.registers
        if name in (*_ZEROS, *_TRUE):
            return
        old = into.get(name)
        if value is not None and old is not None and not mask.all():
            value = np.where(mask, value, old)
        into[name] = value

    def write_pair(self, name: str, value: Value, mask: Mask) -> None:
        """Sets two registers to a number of 64 bits."""
        if name in _ZEROS:
            return
        self.write(name, None if value is None else value % WORD, mask)
        self.write(following(name, 1), None if value is None else value // WORD % WORD, mask)
