"""Follows one warp of a compiled CUDA kernel through its machine code, for given arguments.

A branch that depends on something unknown is not taken, nor is one forward that only some lanes take: what they would
skip counts. sass.py reads the listing, lanes.py says what is known.
"""

import re
from collections.abc import Mapping
from typing import NamedTuple

from .lane_operations import OPERATIONS
from .lanes import WORD, Lanes, Mask, Place, following, number
from .loops import branch_target
from .sass import Instruction

MOST = 2_000_000  # instructions of a warp
_WITHOUT_RESULT = ("STG", "STS", "STL", "BAR", "LDGSTS", "RED", "NOP", "EXIT")


class WarpError(ValueError):
    """The machine code goes on where nobody knows, or does not come to an end."""


class Issued(NamedTuple):
    """An instruction that a warp issues, by its index, and whether any lane takes part in it."""

    at: int
    runs: bool


class Warp:
    """A warp on its way."""

    def __init__(self, code: list[Instruction], banks: Mapping[int, bytes], place: Place):
        self.code, self.lanes = code, Lanes(banks, place)
        self.index = {one.at: i for i, one in enumerate(code)}
        self.parked: list[tuple[int, Mask]] = []  # lanes that wait at an instruction

    def path(self) -> list[Issued]:
        """What the warp issues, in order. Raises WarpError."""
        found: list[Issued] = []
        at: int | None = 0
        while at is not None:
            if at >= len(self.code) or len(found) > MOST:
                raise WarpError(f"no end after {len(found)} instructions")
            self._rejoin(at)
            one = self.code[at]
            mask = self._mask(one.predicate)
            found.append(Issued(at, mask is None or bool(mask.any())))
            at = self._after(at, one, mask)
        return found

    def _rejoin(self, at: int) -> None:
        for index, mask in self.parked:
            if index == at:
                self.lanes.active = self.lanes.active | mask
        self.parked = [each for each in self.parked if each[0] != at]

    def _mask(self, predicate: str) -> Mask | None:
        """The active lanes for which an instruction's predicate holds; None where that is unknown."""
        value = self.lanes.predicate(predicate.lstrip("@") or "PT")
        return None if value is None else self.lanes.active & value.astype(bool)

    def _after(self, at: int, one: Instruction, mask: Mask | None) -> int | None:
        """What the warp meets next; None at its end."""
        texts = [text.strip() for text in one.rest.split(",") if text.strip()]
        if one.name == "EXIT":
            return self._ended(at, mask)
        if one.name in ("BRX", "BRXU") and (offset := self._known(texts[0].split()[0])) is not None:
            return self._at(offset + number(one.rest.split()[-1]) + self.code[at + 1].at)
        if one.name == "RET":
            back = self._known(texts[0].split()[0])
            if back is None:
                raise WarpError(f"returns from {one.at:#x} to nobody knows where")
            return self._at(back)
        target = number(texts[-1]) if one.name == "CALL" else branch_target(one.opcode, one.rest)
        if target is not None:
            if inner := re.match(r"\s*(!?U?P\w+)\s*,", one.rest):
                mask = self._mask(inner[1])
            return self._branch(at, self.index[target], mask)
        if mask is None or mask.any():
            self._execute(one, texts, self.lanes.active if mask is None else mask)
        return at + 1

    def _ended(self, at: int, mask: Mask | None) -> int | None:
        """After the end of some lanes, or of all: of those that wait the first go on."""
        if mask is not None:
            self.lanes.active = self.lanes.active & ~mask
        if self.lanes.active.any():
            return at + 1
        return min((index for index, _ in self.parked), default=None)

    def _known(self, register: str) -> int | None:
        value = self.lanes.operand(register)
        return None if value is None else int(value[self.lanes.active][0])

    def _at(self, address: int) -> int:
        return self.index[address % WORD]

    def _branch(self, at: int, to: int, mask: Mask | None) -> int:
        if mask is None or not mask.any():
            return at + 1
        if to <= at or bool(mask[self.lanes.active].all()):
            return to
        self.parked.append((to, mask))
        self.lanes.active = self.lanes.active & ~mask
        return at + 1

    def _execute(self, one: Instruction, texts: list[str], mask: Mask) -> None:
        operation = OPERATIONS.get(one.name) or OPERATIONS.get(one.name.removeprefix("U"))
        if operation is not None:
            operation(self.lanes, one, texts, mask)
            return
        for name in _written(one, texts):
            self.lanes.write(name, None, mask)


def _written(one: Instruction, texts: list[str]) -> list[str]:
    """The registers and predicates that an instruction of no known meaning writes: its first operands."""
    found: list[str] = []
    if one.name in _WITHOUT_RESULT:
        return found
    for text in texts:
        if re.fullmatch(r"U?P\d|U?PT", text):
            found.append(text)
            continue
        if re.fullmatch(r"U?R\d+", text):
            count = 4 if one.name in ("HMMA", "LDSM") else max(1, one.width // 32)
            found += [following(text, i) for i in range(count)]
        break
    return found
