"""What the instructions that steer a warp compute: whole numbers, predicates, and the floats of divisions.

Operands are as `cuobjdump -sass` spells them; numbers are Python's, of 32 or 64 bits without a sign.
"""

import re
from collections.abc import Callable

from .lane_conversions import count_bits, permute, reciprocal, to_float, to_number, two_halves
from .lanes import LANES, WORD, Lanes, Mask, Value, each, low, numbers, signed
from .sass import Instruction

_COMPARED: dict[str, Callable] = {
    "EQ": lambda a, b: a == b,
    "NE": lambda a, b: a != b,
    "LT": lambda a, b: a < b,
    "LE": lambda a, b: a <= b,
    "GT": lambda a, b: a > b,
    "GE": lambda a, b: a >= b,
}


def _is_predicate(text: str) -> bool:
    return re.fullmatch(r"!?U?P(\d|T)", text) is not None


def _parted(texts: list[str]) -> tuple[list[str], str, list[str], list[str]]:
    """The predicates that are written, the register, the sources, and the predicates that are read."""
    at = next(i for i, text in enumerate(texts) if not _is_predicate(text))
    end = next(i for i in range(at + 1, len(texts)) if not _is_predicate(texts[i]))
    sources = [text for text in texts[end:] if not _is_predicate(text)]
    return texts[:at] + texts[at + 1 : end], texts[at], sources, [text for text in texts[end:] if _is_predicate(text)]


def _carried(lanes: Lanes, read: list[str]) -> Value:
    """The sum of the predicates that are read as carries."""
    total: Value = numbers(0)
    for text in read:
        value = lanes.predicate(text)
        total = None if total is None or value is None else total + value
    return total


def _sum(lanes: Lanes, written: list[str], to: str, total: Value, mask: Mask) -> None:
    """Writes a sum and its carries."""
    for i, name in enumerate(written):
        lanes.write(name, each(lambda value, i=i: int(value >= (i + 1) * WORD), total), mask)
    lanes.write(to, each(lambda value: value % WORD, total), mask)


def add(lanes: Lanes, one: Instruction, texts: list[str], mask: Mask) -> None:
    """IADD3, VIADD."""
    written, to, sources, read = _parted(texts)
    carry = _carried(lanes, read) if ".X" in one.opcode else numbers(0)
    total = each(lambda *values: sum(values), carry, *map(lanes.operand, sources))
    _sum(lanes, written, to, total, mask)


def multiply(lanes: Lanes, one: Instruction, texts: list[str], mask: Mask) -> None:
    """IMAD with all that it stands for."""
    written, to, sources, read = _parted(texts)
    wide, high, unsigned = ".WIDE" in one.opcode, ".HI" in one.opcode, ".U32" in one.opcode
    left, right = map(lanes.operand, sources[:2])
    third = lanes.operand(sources[2], pair=wide or high)
    carry = _carried(lanes, read) if ".X" in one.opcode else numbers(0)
    if (wide or high) and not unsigned:
        left, right = signed(left), signed(right)
    else:
        left, right = low(left), low(right)
    total = each(lambda a, b, c, d: a * b + c + d, left, right, third, carry)
    if wide:
        for name in written:
            lanes.write(name, each(lambda value: int(value >= WORD * WORD), total), mask)
        lanes.write_pair(to, each(lambda value: value % (WORD * WORD), total), mask)
    elif high:
        lanes.write(to, each(lambda value: value // WORD % WORD, total), mask)
    else:
        _sum(lanes, written, to, total, mask)


def shifted_add(lanes: Lanes, one: Instruction, texts: list[str], mask: Mask) -> None:
    """LEA: a shifted operand plus another; with HI the upper half of the shifted 64 bits."""
    written, to, sources, read = _parted(texts)
    first, other = low(lanes.operand(sources[0])), lanes.operand(sources[1])
    carry = _carried(lanes, read) if ".X" in one.opcode else numbers(0)
    by = int(sources[-1], 16)
    if ".HI" not in one.opcode:
        shifted = each(lambda a: (a << by) % WORD, first)
    else:
        if "SX32" in one.opcode:
            upper = each(lambda a: WORD - 1 if a >= WORD // 2 else 0, first)
        else:
            upper = low(lanes.operand(sources[2]))
        shifted = each(lambda a, b: ((b * WORD + a) << by) // WORD % WORD, first, upper)
    _sum(lanes, written, to, each(lambda a, b, c: a + b + c, shifted, other, carry), mask)


def shift(lanes: Lanes, one: Instruction, texts: list[str], mask: Mask) -> None:
    """SHF: shifts of 32 bits, or of two registers."""
    first, by, second = low(lanes.operand(texts[1])), lanes.operand(texts[2]), low(lanes.operand(texts[3]))
    wraps, left, of_upper = ".W" in one.opcode, ".L" in one.opcode, ".HI" in one.opcode
    with_sign, most = ".S" in one.opcode, 64 if "64" in one.opcode else 32

    def shifted(first: int, by: int, second: int) -> int:
        by = by % 32 if wraps else min(by, most)
        both = second * WORD + first
        if with_sign and both >= WORD * WORD // 2:
            both -= WORD * WORD
        if left:
            return (both << by) // WORD % WORD if of_upper else (first << by) % WORD
        return (both >> by) // WORD % WORD if of_upper else (both >> by) % WORD

    lanes.write(texts[0], each(shifted, first, by, second), mask)


def logic(lanes: Lanes, one: Instruction, texts: list[str], mask: Mask) -> None:
    """LOP3: any function of three bits, by its table; a predicate says whether the result is not 0."""
    written, to, sources, read = _parted(texts)
    table = int(sources[3], 16)
    a, b, c = (low(lanes.operand(text)) for text in sources[:3])
    result = each(lambda *values: _by_table(table, values, WORD - 1), *_unneeded(table, [a, b, c]))
    for name in written:
        last = lanes.predicate(read[-1]) if read else numbers(0)
        lanes.write(name, each(lambda value, last: int(value != 0 or last), result, last), mask)
    lanes.write(to, result, mask)


def _by_table(table: int, values: tuple[int, ...], ones: int) -> int:
    found = 0
    for row in range(8):
        if table >> row & 1:
            part = ones
            for bit, value in zip((4, 2, 1), values, strict=True):
                part &= value if row & bit else ones - value
            found |= part
    return found


def _unneeded(table: int, values: list[Value]) -> list[Value]:
    """The operands, 0 for those that the table does not look at."""
    kept = []
    for bit, value in zip((4, 2, 1), values, strict=True):
        used = any((table >> row ^ table >> (row ^ bit)) & 1 for row in range(8))
        kept.append(value if used else numbers(0))
    return kept


def predicate_logic(lanes: Lanes, one: Instruction, texts: list[str], mask: Mask) -> None:
    """PLOP3: the same of predicates, two functions of them."""
    read, tables = texts[2:5], texts[5:7]
    for name, table in zip(texts[:2], tables, strict=True):
        values = _unneeded(int(table, 16), [lanes.predicate(text) for text in read])
        lanes.write(name, each(lambda *v, table=table: _by_table(int(table, 16), v, 1), *values), mask)


def compare(lanes: Lanes, one: Instruction, texts: list[str], mask: Mask) -> None:
    """ISETP: compares, and combines with predicates; with EX the upper halves of 64 bits."""
    parts = one.opcode.split(".")
    read = [text for text in texts[2:] if _is_predicate(text)]
    left, right = (low(lanes.operand(text)) for text in texts[2:4])
    if "U32" not in parts:
        left, right = signed(left), signed(right)
    function, below = _COMPARED[parts[1]], lanes.predicate(read[-1])
    found = each(lambda a, b: int(function(a, b)), left, right)
    if "EX" in parts and parts[1] == "EQ":
        found = each(lambda a, b, lower: int(a == b and lower), left, right, below)
    elif "EX" in parts and parts[1] == "NE":
        found = each(lambda a, b, lower: int(a != b or lower), left, right, below)
    elif "EX" in parts:
        strict = _COMPARED[parts[1][0] + "T"]
        found = each(lambda a, b, lower: int(strict(a, b) or (a == b and lower)), left, right, below)
    other = lanes.predicate(read[0])
    combined = _combined("AND" in parts, found, other)
    opposite = _combined("AND" in parts, None if found is None else 1 - found, other)
    lanes.write(texts[0], combined, mask)
    lanes.write(texts[1], opposite, mask)


def _combined(both: bool, left: Value, right: Value) -> Value:
    """Left and right, or left or right; known where one of them decides by itself."""
    for value in (left, right):
        if value is not None and (value == (0 if both else 1)).all():
            return value
    return each(lambda a, b: a & b if both else a | b, left, right)


def select(lanes: Lanes, one: Instruction, texts: list[str], mask: Mask) -> None:
    """SEL."""
    chosen = lanes.predicate(texts[3])
    left, right = (low(lanes.operand(text)) for text in texts[1:3])
    lanes.write(texts[0], each(lambda a, b, c: a if c else b, left, right, chosen), mask)


def least(lanes: Lanes, one: Instruction, texts: list[str], mask: Mask) -> None:
    """VIMNMX, IMNMX and VIADDMNMX: the lesser, or with !PT the greater."""
    values = [low(lanes.operand(text)) for text in texts[1:-1]]
    if one.name.startswith("VIADD"):
        values = [each(lambda a, b: (a + b) % WORD, *values[:2]), values[2]]
    if "U32" not in one.opcode:
        values = [signed(value) for value in values]
    function = max if texts[-1].startswith("!") else min
    lanes.write(texts[0], each(lambda a, b: function(a, b) % WORD, *values), mask)


def absolute(lanes: Lanes, one: Instruction, texts: list[str], mask: Mask) -> None:
    """IABS."""
    lanes.write(texts[0], each(abs, signed(lanes.operand(texts[1]))), mask)


def move(lanes: Lanes, one: Instruction, texts: list[str], mask: Mask) -> None:
    """MOV, R2UR, LDC and ULDC."""
    if one.width == 64:
        lanes.write_pair(texts[0], lanes.operand(texts[1], pair=True), mask)
        return
    value = lanes.operand(texts[1])
    lanes.write(texts[0], each(lambda bits: bits % (1 << min(one.width, 32)), value), mask)


def clear(lanes: Lanes, one: Instruction, texts: list[str], mask: Mask) -> None:
    """CS2R of zeros: two registers, or one."""
    known = numbers(0) if texts[1] == "SRZ" else None
    (lanes.write if ".32" in one.opcode else lanes.write_pair)(texts[0], known, mask)


def special(lanes: Lanes, one: Instruction, texts: list[str], mask: Mask) -> None:
    """S2R: where the warp runs."""
    lane = numbers(list(range(LANES)))
    known = {
        "SR_TID.X": lane + LANES * lanes.place.warp,
        "SR_LANEID": lane,
        "SR_CTAID.X": numbers(lanes.place.block),
        "SR_CgaCtaId": numbers(0),
    }
    lanes.write(texts[0], known.get(texts[1]), mask)


OPERATIONS: dict[str, Callable[[Lanes, Instruction, list[str], Mask], None]] = {
    "IADD3": add, "VIADD": add, "IMAD": multiply, "LEA": shifted_add, "SHF": shift, "LOP3": logic,
    "PLOP3": predicate_logic, "ISETP": compare, "SEL": select, "IMNMX": least, "VIMNMX": least, "VIADDMNMX": least,
    "IABS": absolute, "MOV": move, "R2UR": move, "LDC": move, "LDCU": move, "CS2R": clear, "S2R": special,
    "S2UR": special, "HFMA2": two_halves, "PRMT": permute, "I2F": to_float, "MUFU": reciprocal, "F2I": to_number,
    "POPC": count_bits,
}  # fmt: skip
