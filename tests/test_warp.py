"""A warp on its way through machine code: what its instructions compute, and where it goes."""

import random
import re

import pytest

from tools.kernel_report import warp as warps
from tools.kernel_report.lanes import LANES, WORD, Place, following, numbers
from tools.kernel_report.sass import Instruction
from tools.kernel_report.warp import Warp, WarpError

# as nvcc divides R8 by R9, whole numbers without a sign, into R3
DIVISION = """
I2F.U32.RP R0, R9
MUFU.RCP R0, R0
VIADD R2, R0, 0xffffffe
F2I.FTZ.U32.TRUNC.NTZ R3, R2
IMAD.MOV.U32 R2, RZ, RZ, RZ
IMAD.MOV R5, RZ, RZ, -R3
IMAD R5, R5, R9, RZ
IMAD.HI.U32 R3, R3, R5, R2
IMAD.HI.U32 R3, R3, R8, RZ
IADD3 R5, -R3, RZ, RZ
IMAD R0, R9, R5, R8
ISETP.GE.U32.AND P0, PT, R0, R9, PT
@P0 IMAD.IADD R0, R0, 0x1, -R9
@P0 VIADD R3, R3, 0x1
ISETP.GE.U32.AND P1, PT, R0, R9, PT
@P1 VIADD R3, R3, 0x1
"""


def listing(text: str) -> list[Instruction]:
    """Instructions of 16 bytes each, the first at 0."""
    found: list[Instruction] = []
    for line in filter(None, map(str.strip, text.splitlines())):
        parts = re.fullmatch(r"(@!?U?P\d )?(\S+)(.*)", line)
        assert parts is not None
        found.append(Instruction(16 * len(found), (parts[1] or "").strip(), parts[2], parts[3], 1, -1, -1, ()))
    return found


def make(text: str, banks: dict[int, bytes] | None = None, **registers) -> Warp:
    warp = Warp(listing(text), banks or {}, Place(block=5, warp=2))
    for name, values in registers.items():
        if isinstance(values, list) and max(values) >= WORD:
            warp.lanes.registers[following(name, 1)] = numbers([value // WORD for value in values])
            values = [value % WORD for value in values]
        (warp.lanes.predicates if name.startswith("P") else warp.lanes.registers)[name] = numbers(values)
    return warp


def run(text: str, result: str, **registers) -> list[int]:
    """What a register holds in each lane after straight code."""
    warp = make(text + "\nEXIT", **registers)
    warp.path()
    value = (warp.lanes.predicates if result.startswith("P") else warp.lanes.registers)[result]
    assert value is not None
    return [int(each) for each in value]


def taken(warp: Warp) -> list[int]:
    """The indices of the instructions that some lane takes part in."""
    return [issued.at for issued in warp.path() if issued.runs]


def signed(value: int, bits: int = 32) -> int:
    return value - (1 << bits) if value >> bits - 1 else value


@pytest.fixture
def draw():
    """Numbers of so many bits, one for each lane, of all magnitudes."""
    generator = random.Random(4)
    return lambda bits=32: [generator.getrandbits(generator.randint(1, bits)) for _ in range(LANES)]


def test_division(draw):
    for _ in range(50):
        above, below = draw(), [value or 1 for value in draw()]
        assert run(DIVISION, "R3", R8=above, R9=below) == [a // b for a, b in zip(above, below, strict=True)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("IADD3 R0, R1, -R2, R3", lambda a, b, c: a - b + c),
        ("IADD3 R0, R1, ~R2, RZ", lambda a, b, c: a - b - 1),
        ("IMAD R0, R1, R2, R3", lambda a, b, c: a * b + c),
        ("IMAD R0, R1, -0x3, R3", lambda a, b, c: c - 3 * a),
        ("IMAD.HI.U32 R0, R1, R2, RZ", lambda a, b, c: a * b >> 32),
        ("IMAD.HI R0, R1, R2, RZ", lambda a, b, c: signed(a) * signed(b) >> 32),
        ("LEA R0, R1, R2, 0x3", lambda a, b, c: (a << 3) + b),
        ("LEA.HI R0, R1, R2, RZ, 0x5", lambda a, b, c: (a >> 27) + b),
        ("LEA.HI.SX32 R0, R1, R2, 0x1a", lambda a, b, c: (signed(a) >> 6) + b),
        ("SHF.L.U32 R0, R1, 0x7, RZ", lambda a, b, c: a << 7),
        ("SHF.R.U32.HI R0, RZ, 0x7, R1", lambda a, b, c: a >> 7),
        ("SHF.R.S32.HI R0, RZ, 0x1f, R1", lambda a, b, c: signed(a) >> 31),
        ("SHF.R.U64 R0, R1, 0x9, R2", lambda a, b, c: (b << 32 | a) >> 9),
        ("SHF.L.U64.HI R0, R1, 0x9, R2", lambda a, b, c: (b << 32 | a) << 9 >> 32),
        ("SHF.L.W.U32.HI R0, R1, R3, R1", lambda a, b, c: (a << 32 | a) << c % 32 >> 32),
        ("LOP3.LUT R0, R1, R2, R3, 0xc0, !PT", lambda a, b, c: a & b),
        ("LOP3.LUT R0, R1, R2, R3, 0xf8, !PT", lambda a, b, c: a | b & c),
        ("LOP3.LUT R0, R1, R2, R3, 0x96, !PT", lambda a, b, c: a ^ b ^ c),
        ("LOP3.LUT R0, R1, R2, R3, 0x0f, !PT", lambda a, b, c: ~a),
        ("PRMT R0, R1, 0x7610, R2", lambda a, b, c: a & 0xFFFF | b & 0xFFFF0000),
        ("PRMT R0, R1, 0x3012, R2", lambda a, b, c: a & 0xFF000000 | a << 16 & 0xFF0000 | a & 0xFF00 | a >> 16 & 0xFF),
        ("IMNMX R0, R1, R2, PT", lambda a, b, c: min(signed(a), signed(b))),
        ("VIMNMX R0, R1, R2, PT", lambda a, b, c: min(signed(a), signed(b))),
        ("VIMNMX.U32 R0, R1, R2, !PT", lambda a, b, c: max(a, b)),
        ("VIADDMNMX R0, R1, 0x1, R2, PT", lambda a, b, c: min(signed((a + 1) % WORD), signed(b))),
        ("IABS R0, R1", lambda a, b, c: abs(signed(a))),
        ("POPC R0, R1", lambda a, b, c: a.bit_count()),
        ("HFMA2.MMA R0, -RZ, RZ, 0, 5.9604644775390625e-08", lambda a, b, c: 1),
        ("HFMA2.MMA R0, -RZ, RZ, 1, 0", lambda a, b, c: 0x3C00 << 16),
        ("ISETP.LT.AND P0, PT, R1, R2, PT\nSEL R0, R1, R2, P0", lambda a, b, c: min(a, b, key=signed)),
        ("ISETP.GT.U32.OR P0, PT, R1, R2, !PT\nSEL R0, R1, R2, P0", lambda a, b, c: max(a, b)),
        ("S2R R0, SR_TID.X", None),
    ],
)
def test_operations(text, expected, draw):
    for _ in range(20):
        values = draw(), draw(), draw()
        found = run(text, "R0", R1=values[0], R2=values[1], R3=values[2])
        if expected is None:
            assert found == list(range(64, 96)), "of the block's third warp"
        else:
            assert found == [expected(*each) % WORD for each in zip(*values, strict=True)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("IADD3 R0, P0, R2, R4, RZ\nIADD3.X R1, R3, R5, RZ, P0, !PT", lambda a, b: a + b),
        ("IADD3 R0, P0, R2, -R4, RZ\nIADD3.X R1, R3, ~R5, RZ, P0, !PT", lambda a, b: a - b),
        ("IMAD.WIDE.U32 R0, R2, R4, R2", lambda a, b: a % WORD * (b % WORD) + a),
        ("IMAD.WIDE R0, R2, R4, RZ", lambda a, b: signed(a % WORD) * signed(b % WORD)),
        ("LEA R0, P1, R2, R4, 0x2\nLEA.HI.X R1, R2, R5, R3, 0x2, P1", lambda a, b: (a << 2) + b),
        ("CS2R R0, SRZ", lambda a, b: 0),
    ],
)
def test_operations_of_64_bits(text, expected, draw):
    for _ in range(20):
        left, right = ([value | 1 << 40 for value in draw(64)] for _ in range(2))
        pairs = [run(text, name, R2=left, R4=right) for name in ("R0", "R1")]
        wanted = [expected(a, b) % (1 << 64) for a, b in zip(left, right, strict=True)]
        assert [low | high << 32 for low, high in zip(*pairs, strict=True)] == wanted


@pytest.mark.parametrize("name", ["EQ", "NE", "LT", "LE", "GT", "GE"])
@pytest.mark.parametrize("unsigned", [True, False])
def test_comparisons_of_64_bits(name, unsigned, draw):
    compare = {"EQ": "__eq__", "NE": "__ne__", "LT": "__lt__", "LE": "__le__", "GT": "__gt__", "GE": "__ge__"}[name]
    kind = ".U32" if unsigned else ""
    text = f"ISETP.{name}.U32.AND P0, PT, R2, R4, PT\nISETP.{name}{kind}.AND.EX P0, PT, R3, R5, PT, P0"
    for _ in range(20):
        left, right = draw(64), draw(64)
        left[:8] = right[:8]
        left[0] = right[0] = 1 << 50  # so that both take two registers
        values = [(a, b) if unsigned else (signed(a, 64), signed(b, 64)) for a, b in zip(left, right, strict=True)]
        assert run(text, "P0", R2=left, R4=right) == [int(getattr(a, compare)(b)) for a, b in values]


def test_arguments_steer_a_loop():
    text = "MOV R0, RZ\nIADD3 R0, R0, 0x1, RZ\nISETP.LT.AND P0, PT, R0, c[0x0][0x214], PT\n@P0 BRA 0x10\nEXIT"
    bank = bytes(0x214) + (7).to_bytes(4, "little")
    warp = make(text, {0: bank})
    assert [issued.at for issued in warp.path()] == [0, *[1, 2, 3] * 7, 4]


def test_what_only_some_lanes_skip_counts():
    """The lanes that skip it keep what they have, and go on with the others."""
    text = """S2R R0, SR_LANEID
    ISETP.LT.AND P0, PT, R0, 0x8, PT
    MOV R1, 0x5
    @P0 BRA 0x50
    MOV R1, 0x6
    IADD3 R1, R1, 0x1, RZ
    EXIT"""
    warp = make(text)
    assert taken(warp) == [0, 1, 2, 3, 4, 5, 6]
    value = warp.lanes.registers["R1"]
    assert value is not None
    assert list(value) == [6] * 8 + [7] * 24


def test_what_all_lanes_skip_does_not():
    assert taken(make("ISETP.EQ.AND P0, PT, RZ, 0x0, PT\n@P0 BRA 0x30\nNOP\nEXIT")) == [0, 1, 3]


def test_instructions_of_no_lane_are_issued_and_do_nothing():
    path = make("ISETP.EQ.AND P0, PT, RZ, 0x1, PT\n@P0 NOP\n@!P0 NOP\nEXIT").path()
    assert path == [(0, True), (1, False), (2, True), (3, True)]


def test_what_depends_on_memory_is_not_skipped():
    text = "LDG.E R0, desc[UR4][R2.64]\nISETP.NE.AND P0, PT, R0, RZ, PT\n@P0 BRA 0x40\nNOP\n@P0 NOP\nEXIT"
    assert taken(make(text)) == [0, 1, 2, 3, 4, 5]


def test_lanes_end_at_different_places():
    text = "S2R R0, SR_LANEID\nISETP.LT.AND P0, PT, R0, 0x8, PT\n@P0 EXIT\nNOP\nEXIT"
    assert taken(make(text)) == [0, 1, 2, 3, 4]
    waiting = "S2R R0, SR_LANEID\nISETP.LT.AND P0, PT, R0, 0x8, PT\n@P0 BRA 0x40\nEXIT\nNOP\nEXIT"
    assert taken(make(waiting)) == [0, 1, 2, 3, 4, 5]


def test_jump_tables_and_calls():
    table = b"".join(at.to_bytes(4, "little") for at in (0x30, 0x40))
    jump = "MOV R0, 0x4\nLDC R1, c[0x2][R0]\nBRX R1 -0x30\nNOP\nEXIT"
    assert taken(make(jump, {2: table})) == [0, 1, 2, 4]
    call = "MOV R20, 0x20\nCALL.REL.NOINC 0x30\nEXIT\nMOV R21, 0x0\nRET.REL.NODEC R20 0x0"
    assert taken(make(call)) == [0, 1, 3, 4, 2]
    assert taken(make("@P0 CALL.REL.NOINC 0x20\nEXIT\nNOP", P0=0)) == [1]
    assert taken(make("BRXU UR4 -0x10\nNOP\nEXIT", UR4=0x20)) == [0, 2]


def test_what_cannot_be_followed_is_an_error(monkeypatch):
    with pytest.raises(WarpError, match="returns from 0x0 to nobody knows where"):
        make("RET.REL.NODEC R20 0x0").path()
    with pytest.raises(WarpError, match="no end after 1 instructions"):
        make("NOP").path()
    monkeypatch.setattr(warps, "MOST", 100)
    with pytest.raises(WarpError, match="no end after 101 instructions"):
        make("BRA 0x0").path()
