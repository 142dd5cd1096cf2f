"""What else the instructions that steer a warp compute: bytes, and floats, with which divisions begin."""

import math
import re
import struct

import numpy as np

from .lanes import WORD, Lanes, Mask, each, low, numbers, signed
from .sass import Instruction


def two_halves(lanes: Lanes, one: Instruction, texts: list[str], mask: Mask) -> None:
    """HFMA2 of zeros: two constants of 16 bits, which is how some registers are set."""
    if texts[1:3] != ["-RZ", "RZ"]:
        lanes.write(texts[0], None, mask)
        return
    upper, lower = (int.from_bytes(struct.pack("<e", float(text)), "little") for text in texts[3:5])
    lanes.write(texts[0], numbers(upper << 16 | lower), mask)


def permute(lanes: Lanes, one: Instruction, texts: list[str], mask: Mask) -> None:
    """PRMT: any four of eight bytes."""
    first, chosen, second = (low(lanes.operand(text)) for text in texts[1:4])

    def permuted(first: int, chosen: int, second: int) -> int:
        both = (second << 32 | first).to_bytes(8, "little")
        return int.from_bytes(bytes(both[chosen >> 4 * i & 7] for i in range(4)), "little")

    lanes.write(texts[0], each(permuted, first, chosen, second), mask)


def to_float(lanes: Lanes, one: Instruction, texts: list[str], mask: Mask) -> None:
    """I2F: the bits of a float32, rounded up with RP."""
    long, unsigned = "U64" in one.opcode, ".U" in one.opcode
    value = lanes.operand(texts[-1], pair=long)
    if not unsigned:
        value = signed(value)
    lanes.write(texts[0], each(lambda whole: _float_bits(whole, up="RP" in one.opcode), value), mask)


def _float_bits(value: float, up: bool) -> int:
    rounded = np.float32(value)
    if up and float(rounded) < value:
        rounded = np.nextafter(rounded, np.float32(math.inf))
    return int(rounded.view(np.uint32))


def _float(bits: int) -> float:
    return float(np.uint32(bits % WORD).view(np.float32))


def reciprocal(lanes: Lanes, one: Instruction, texts: list[str], mask: Mask) -> None:
    """MUFU: of its functions the reciprocal, which divisions of whole numbers begin with."""
    value = lanes.operand(texts[1]) if one.opcode == "MUFU.RCP" and re.fullmatch(r"R\d+", texts[1]) else None
    known = each(lambda bits: _float_bits(1 / _float(bits), up=False) if _float(bits) else 0x7F800000, value)
    lanes.write(texts[0], known, mask)


def to_number(lanes: Lanes, one: Instruction, texts: list[str], mask: Mask) -> None:
    """F2I towards 0."""
    value = lanes.operand(texts[1])

    def cut(bits: int) -> int:
        found = _float(bits)
        return int(found) % (WORD * WORD) if math.isfinite(found) else WORD - 1

    if "64" in one.opcode:
        lanes.write_pair(texts[0], each(cut, value), mask)
    else:
        lanes.write(texts[0], low(each(cut, value)), mask)


def count_bits(lanes: Lanes, one: Instruction, texts: list[str], mask: Mask) -> None:
    """POPC."""
    lanes.write(texts[0], each(lambda value: (value % WORD).bit_count(), lanes.operand(texts[1])), mask)
