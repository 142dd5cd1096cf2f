"""The loop of a kernel's machine code in which a warp spends its time, and how many instructions one turn takes.

Where a GPU waits for instructions and not for memory, their number says what a change of a kernel does before a GPU can
be asked; `tests/test_triton_report.py` holds them to budgets.
"""

import re
from collections import Counter

_LINE = re.compile(r"^\s+/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)([^;]*);", re.MULTILINE)
CLASSES = {  # as the machine code spells them
    "products": r"HMMA|HGMMA|UTC\w*MMA",
    "shuffles": r"SHFL",
    "barriers": r"BAR\b|BAR\.",
    "stores to shared memory": r"STS|STSM",
    "loads from shared memory": r"LDS|LDSM",
    "loads of 128 bits": r"LDG(?:STS)?\..*\.128",
    "special functions": r"MUFU",
    "local memory": r"LDL|STL",
}


def main_loop(sass: str) -> dict[str, int]:
    """Instructions of one turn, in all and by CLASSES, of the innermost loop with products, else of the longest.

    `sass` is what `cuobjdump -sass` prints of one kernel; without a loop all are 0.
    """
    code = [(int(at, 16), opcode, rest) for at, opcode, rest in _LINE.findall(sass)]
    bounds = [
        (target, at) for at, opcode, rest in code if (target := branch_target(opcode, rest)) is not None and target < at
    ]
    inner = [loop for loop in bounds if not any(_within(other, loop) for other in bounds)]
    found = [_counts([opcode for at, opcode, _ in code if first <= at <= last]) for first, last in inner]
    return max(found, key=lambda loop: (loop["products"], loop["instructions"]), default=_counts([]))


def branch_target(opcode: str, rest: str) -> int | None:
    """Where a branch goes."""
    found = re.search(r"0x([0-9a-f]+)", rest) if opcode.startswith("BRA") else None
    return int(found[1], 16) if found else None


def _within(loop: tuple[int, int], other: tuple[int, int]) -> bool:
    return loop != other and other[0] <= loop[0] and loop[1] <= other[1]


def _counts(opcodes: list[str]) -> dict[str, int]:
    counts = Counter(opcode for opcode in opcodes if opcode != "NOP")
    classes = {
        name: sum(number for opcode, number in counts.items() if re.match(pattern, opcode))
        for name, pattern in CLASSES.items()
    }
    return {"instructions": counts.total(), **classes}
