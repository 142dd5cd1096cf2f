"""The predicted times of the Triton kernels: their arithmetic on cases that were computed by hand, and their record."""

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

if importlib.util.find_spec("triton") is None:
    pytest.skip("Triton is not installed", allow_module_level=True)

from tools.kernel_report.banks import wavefronts
from tools.kernel_report.bounds import resident
from tools.kernel_report.fingerprint import KERNELS, fingerprint, outdated
from tools.kernel_report.inductor import Node, least_time
from tools.kernel_report.machine_code import Code
from tools.kernel_report.multiprocessor import Memory, Step, Walk, products, steps
from tools.kernel_report.passes import floor
from tools.kernel_report.rates import GPUS
from tools.kernel_report.sass import TurnsError, Visit, loops, parse, parse_parts, path
from tools.kernel_report.traffic import from_memory
from tools.kernel_report.turns import _PARTS, _TURNS

ROOT = Path(__file__).resolve().parents[1]
H200 = GPUS["H200"]
MEMORY = Memory(rate=8.0, latency=400.0)  # bytes a clock, clocks


def listing(*lines: tuple[str, int]) -> str:
    """What cuobjdump prints of instructions and the control bits above bit 41 of their upper words."""
    return "\n".join(
        f"        /*{16 * i:04x}*/                   {text} ;   /* 0x0000000000000000 */\n"
        f"                                             /* 0x{control << 41:016x} */"
        for i, (text, control) in enumerate(lines)
    )


def control(stall=1, result=7, operands=7, waits=()) -> int:
    return stall | result << 5 | operands << 8 | sum(1 << board for board in waits) << 11


def visited(code: str, turns) -> list[int]:
    return [visit.at for visit in path(parse(code), turns)]


def walked(code: str, turns=(), resident=1, warps=1, programs=1) -> float:
    """The clock at which the last program ends."""
    instructions = parse(code)
    trace = steps(instructions, path(instructions, turns), H200, MEMORY)
    return Walk([trace] * programs, MEMORY, resident, warps).run()[-1]


def test_parse_reads_what_the_scheduler_is_told():
    code = parse(
        listing(
            ("@!P0 LDG.E.128 R4, desc[UR4][R2.64]", control(4, result=2, operands=3)),
            ("FADD R0, R4, R4", control(5, waits=(2, 5))),
            ("@P1 EXIT", control(5)),
            ("EXIT", control(5)),
            ("BRA 0x40", control(0)),
        )
    )
    assert len(code) == 4, "nothing runs after an EXIT that all warps take"
    load, add = code[:2]
    assert (load.predicate, load.opcode, load.width) == ("@!P0", "LDG.E.128", 128)
    assert (load.stall, load.result, load.operands, load.waits) == (4, 2, 3, ())
    assert (add.stall, add.result, add.operands, add.waits) == (5, -1, -1, (2, 5))


def test_a_warp_goes_through_its_loops():
    nest = listing(
        ("MOV R0, RZ", control()),
        ("MOV R1, RZ", control()),  # the outer loop
        ("IADD3 R1, R1, 0x1, RZ", control()),  # the inner loop
        ("@P0 BRA 0x20", control()),
        ("@P1 BRA 0x10", control()),
        ("EXIT", control()),
    )
    assert visited(nest, ((2, (3,)),)) == [0, *[1, *[2, 3] * 3, 4] * 2, 5]
    assert visited(nest, ((1, (0,)),)) == [0, 1, 4, 5]
    (outer,) = loops(parse(nest))
    assert (outer.first, outer.last, [(inner.first, inner.last) for inner in outer.inner]) == (1, 4, [(2, 3)])
    for wrong in ((), (1,), ((1, (1, 1)),), (1, 1)):
        with pytest.raises(TurnsError, match="loops in the machine code, expected"):
            path(parse(nest), wrong)


def test_programs_of_different_parts_meet_different_code():
    parts = listing(
        ("ISETP.GE.AND P0, PT, R0, 0x2, PT", control()),
        ("@P0 BRA 0x40", control()),
        ("FADD R0, R0, R0", control()),
        ("EXIT", control()),
        ("@!P1 BRA 0x60", control()),  # over a part of the second part, which goes on
        ("FMUL R0, R0, R0", control()),
        ("@P1 BRA 0x90", control()),
        ("LDG.E R4, desc[UR4][R2.64]", control()),
        ("BRA 0xa0", control()),
        ("MUFU.TANH R0, R1", control()),
        ("EXIT", control()),
    )
    names = [[one.name for one in code] for code in parse_parts(parts, 3)]
    begin = ["ISETP", "BRA"]
    assert names[0] == [*begin, "FADD", "EXIT"]
    assert names[1] == [*begin, "BRA", "FMUL", "BRA", "LDG", "BRA"]
    assert names[2] == [*begin, "BRA", "FMUL", "BRA", "MUFU", "EXIT"]
    with pytest.raises(TurnsError, match="does not fall into 2 more parts"):
        parse_parts(parts, 4)


def test_an_unrolled_loop_is_two():
    """Four loads a turn, then what is left, one by one."""
    load = ("LDG.E R4, desc[UR4][R2.64]", control())
    unrolled = listing(*[load] * 4, ("@P0 BRA 0x0", control()), load, ("@P0 BRA 0x50", control()), ("EXIT", control()))
    assert visited(unrolled, (11,)) == [*[0, 1, 2, 3, 4] * 2, *[5, 6] * 3, 7]


def test_copies_that_run_ahead_end_ahead():
    copy, commit = ("LDGSTS.E.BYPASS.128 [R1], desc[UR4][R2.64]", control()), ("LDGDEPBAR", control())
    code = listing(*[copy, commit] * 2, copy, commit, ("@P0 BRA 0x40", control()), ("EXIT", control()))
    visits = path(parse(code), (5,))
    assert [visit.copies for visit in visits if visit.at == 4] == [True] * 3 + [False] * 2
    moved = sum(step.bytes for step in steps(parse(code), visits, H200, MEMORY))
    assert moved == 5 * 512, "five turns take five tiles, however far ahead"


def test_what_instructions_cost():
    def cost(text: str) -> tuple[str, float, int]:
        (step,) = steps(parse(listing((text, control()))), [Visit(0)], H200, MEMORY)
        return step.unit, step.clocks, step.bytes

    assert cost("FFMA R0, R1, R2, R3") == ("float32", 1, 0)
    assert cost("LOP3.LUT R0, R1, R2, R3, 0xc0, !PT") == ("whole numbers", 2, 0)
    assert cost("MUFU.TANH R0, R1") == ("special functions", 8, 0)
    assert cost("LDS R0, [R1]") == ("shared memory", 4, 0)
    assert cost("STG.E.64 desc[UR4][R2.64], R0") == ("shared memory", 8, 256)
    assert cost("LDGSTS.E [R1], desc[UR4][R2.64]") == ("shared memory", 4, 0), "through L1"
    assert cost("HGMMA.64x256x16.F32.BF16 R24, gdesc[UR8], R24") == ("tensor cores", 128, 0)
    wide, tf32 = (parse(listing((text, control())))[0] for text in ("HMMA.16816.F32.BF16 R0", "HMMA.1688.F32.TF32 R0"))
    assert products(wide) == products(tf32) == 16 * 8 * 16, "TF32 at half the rate"
    assert cost("HMMA.16816.F32.BF16 R0, R4, R6, R0")[1] == pytest.approx(2048 * 4 / 1270)


@pytest.mark.parametrize(
    ("access", "stride", "turns"),
    [
        ("LDS R0, [R1+0x80]", 4, 1),  # a word for each bank
        ("LDS R0, [R1]", 8, 2),
        ("LDS R0, [R1]", 0, 1),  # one word for all
        ("STS [R1+UR4], R0", 128, 32),  # all in one bank
        ("LDS.128 R0, [R1]", 16, 4),
        ("LDS.128 R0, [R1]", 128, 32),
        ("LDSM.16.M88.4 R0, [R1]", 16, 4),
        ("LDSM.16.M88.4 R0, [R1]", 256, 32),  # the eight rows of a matrix in the same four banks
        ("LDSM.16.M88.4 R0, [R1]", 144, 4),  # padded
    ],
)
def test_lanes_that_meet_in_a_bank_take_turns(access, stride, turns):
    address = ("S2R R2, SR_TID.X", control()), (f"IMAD R1, R2, {stride:#x}, RZ", control())
    assert wavefronts(parse(listing(*address, (access, control()))))[2] == turns


def test_addresses_are_computed_by_lanes():
    """Rows of 128 bytes whose 16-byte parts are swapped by the row's number, as Triton lays tiles out."""
    swizzled = (
        "S2R R2, SR_TID.X", "SHF.R.U32.HI R3, RZ, 0x3, R2", "LOP3.LUT R4, R2, 0x7, RZ, 0xc0, !PT",
        "LOP3.LUT R5, R4, R3, RZ, 0x3c, !PT", "IMAD.SHL.U32 R6, R4, 0x80, RZ", "LEA R1, R5, R6, 0x4",
    )  # fmt: skip
    code = parse(listing(*((text, control()) for text in (*swizzled, "LDSM.16.M88.4 R8, [R1]", "STS.128 [R6], R8"))))
    assert wavefronts(code) == {6: 4, 7: 32}
    masked = ("S2R R2, SR_TID.X", "ISETP.GT.U32.AND P0, PT, R2, 0x3, PT", "IMAD.SHL.U32 R1, R2, 0x80, RZ")
    code = parse(listing(*((text, control()) for text in (*masked, "@!P0 STS [R1], R2", "@P1 STS [R1], R2"))))
    assert wavefronts(code) == {3: 4, 4: 32}, "four lanes; all where the predicate is not known"


def test_ways_that_exclude_each_other_begin_alike():
    """The first way, for no turn of a loop, spoils the register that the second one's address is made of."""
    ways = (
        "S2R R2, SR_TID.X", "@P0 BRA 0x40", "MOV R2, RZ", "BRA 0x60", "IMAD R1, R2, 0x10, RZ", "LDSM.16.M88.4 R8, [R1]",
        "EXIT",
    )  # fmt: skip
    assert wavefronts(parse(listing(*((text, control()) for text in ways)))) == {5: 4}


def test_walk_of_dependent_loads():
    """Each waits for the one before: 400 clocks, and one for the instruction that waits."""
    load = ("LDG.E R2, desc[UR4][R2.64]", control(1, result=0, waits=(0,)))
    assert walked(listing(load, load, load, ("EXIT", control(1, waits=(0,))))) == 3 * 400 + 1


def test_walk_of_what_warps_share():
    adds = listing(*[("FADD R0, R0, R0", control(4))] * 100)
    assert walked(adds) == 400, "a warp by itself stalls for 4 clocks each"
    assert walked(adds, warps=4) == pytest.approx(400, abs=4), "four fill them"
    assert walked(adds, warps=8) == pytest.approx(800, abs=8), "the scheduler issues one a clock"
    logic = listing(*[("LOP3.LUT R0, R0, R1, R2, 0xc0, !PT", control(1))] * 100)
    assert walked(logic, warps=4) == pytest.approx(800, abs=8), "a unit takes an instruction for 2 clocks"


def test_walk_of_products_that_a_barrier_waits_for():
    """Four tiles of tcgen05 at 1,024 multiply-adds a clock and quarter."""
    tile = ("UTCHMMA gdesc[UR4], gdesc[UR6], tmem[UR8], tmem[UR10], idesc[UR11], !UPT", control())
    end, wait = ("UTCBAR [UR4], URZ", control()), ("SYNCS.PHASECHK.TRANS64.TRYWAIT P0, [UR4], R0", control())
    code = parse(listing(*[tile] * 4, end, wait))
    trace = steps(code, path(code, ()), GPUS["B200"], MEMORY, tile=64 * 256 * 16 / 4)
    assert Walk([trace], MEMORY, 1, 1).run()[-1] == 4 * 64 + 1


def test_a_loop_that_sleeps_is_none():
    sleep = listing(("NANOSLEEP 0x20", control()), ("@P0 BRA 0x0", control()), ("EXIT", control()))
    assert visited(sleep, ()) == [0, 1, 2]


def test_walk_of_memory_that_all_ask_for():
    """64 programs load 512 bytes at 8 bytes a clock; only the last one's latency shows."""
    load = listing(("LDG.E.128 R4, desc[UR4][R2.64]", control(1, result=0)), ("EXIT", control(1, waits=(0,))))
    assert walked(load, resident=64, programs=64) == 63 * 512 / 8 + 400 + 1
    one_by_one = walked(load, resident=1, programs=64)
    assert one_by_one == 64 * 401


def test_walk_of_copies_and_barriers():
    copy = ("LDGSTS.E.BYPASS.128 [R1], desc[UR4][R2.64]", control())
    commit, wait = ("LDGDEPBAR", control()), ("DEPBAR.LE SB0, 0x1", control())
    assert walked(listing(copy, commit, copy, commit, wait)) == 400 + 1, "one group of two may be under way"
    assert walked(listing(copy, commit, copy, commit, ("DEPBAR.LE SB0, 0x0", control()))) == 512 / 8 + 400 + 1
    late = [Step("", 0, 0, 0, stall, -1, -1, (), "", 0) for stall in (50,)]
    barrier = Step("", 0, 0, 0, 1, -1, -1, (), "barrier", 0)
    assert Walk([[*late, barrier]], MEMORY, 1, 2).run()[-1] == 52, "the second warp is a clock behind"


def test_walk_of_different_programs():
    """Three short ones beside a long one, two at a time."""
    adds = {number: parse(listing(*[("FADD R0, R0, R0", control(4))] * number)) for number in (10, 100)}
    short, long = (steps(code, path(code, ()), H200, MEMORY) for code in adds.values())
    assert Walk([long, short, short, short], MEMORY, 2, 1).run() == pytest.approx([40, 80, 120, 400], abs=4)


def test_resident_programs():
    code = Code(128, 0, 0, 64 << 10, 0, 0, 0, {}, 0, 0, 0, None, {})
    assert resident(code, 8, H200) == 2, "256 threads of 128 registers: half of 65,536"
    assert resident(code._replace(registers=32), 8, H200) == 3, "65 KiB of 228 each"
    assert resident(code._replace(registers=32, shared=0), 8, H200) == 8, "64 warps"
    assert resident(code._replace(registers=255, shared=227 << 10), 8, H200) == 1


def test_what_comes_from_memory():
    a_pass = [{"x": 60, "s": 1}, {"s": 1, "x": 60, "out": 60}]
    assert from_memory(a_pass, ["x"], 1000) == [0, 0], "repeated, all stays in L2"
    assert from_memory(a_pass, ["x"], 100) == [61, 121], "x and out do not fit together"
    assert from_memory([{"x": 60}, {"x": 60}, {"x": 60, "out": 60}], ["x"], 100) == [60, 0, 120]


def test_floor_at_the_papers_shape():
    """103 MB twice and five times at 4.27 TB/s."""
    assert floor((256, 1024, 14, 14), 1, H200) == pytest.approx(48.1, abs=0.1)
    assert floor((256, 1024, 14, 14), 3, H200) == pytest.approx(120.3, abs=0.1)


def test_every_kernel_has_its_turns():
    kernels = {name for path in KERNELS.glob("*.py") for name in _launched(path.read_text())}
    assert kernels <= _PARTS.keys() | _TURNS.keys()
    assert (kernels - _PARTS.keys()) | {part for parts in _PARTS.values() for part in parts} == _TURNS.keys()


def _launched(source: str) -> set[str]:
    """Names of kernels that a plan launches."""
    return {name.split(".")[-1] for name in re.findall(r"KernelLaunch\(\s*([a-z_.]+),", source)}


def test_fingerprint_is_of_the_code(tmp_path):
    folder = tmp_path / "triton"
    shutil.copytree(KERNELS, folder, ignore=shutil.ignore_patterns("__pycache__"))
    assert fingerprint(folder) == fingerprint()
    scale = folder / "scale.py"
    text = scale.read_text()
    scale.write_text(text.replace('"""One program', '"""A program') + "# a comment\n")
    assert scale.read_text() != text
    assert fingerprint(folder) == fingerprint()
    scale.write_text(text.replace("value = relu(", "value = 2 * relu("))
    assert fingerprint(folder) != fingerprint()
    scale.write_text(text)
    table = folder / "table.json"
    table.write_text(table.read_text().replace('"stages": 3', '"stages": 2', 1))
    assert fingerprint(folder) != fingerprint()


def test_the_record_is_of_these_kernels(tmp_path):
    assert outdated() is None
    assert "python -m tools.kernel_report.prediction --record" in str(outdated(tmp_path))


@pytest.mark.slow
def test_the_command_says_that_it_predicts(tmp_path):
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "tools.kernel_report.prediction", "--shapes", "1x2048x7x7", "--jobs", "1"]
    done = subprocess.run([*command, "--record", tmp_path], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if "1x2048x7x7" in line]
    assert len(lines) == 2
    assert all("a prediction, not measured" in line for line in lines)
    assert outdated(tmp_path) is None


def test_least_time_of_torch_compiles_kernels():
    """Memory at 4.27 TB/s, L2 at 7.19 TB/s, products at 1,070 TFLOP/s, and 2 us for each launch."""
    inputs = frozenset({"primals_1"})
    large = Node("generated", {"primals_1": 427_000_000, "out": 427_000_000}, 0, inputs)
    assert least_time([large], H200) == pytest.approx(200 + 2, rel=1e-3)
    small = Node("generated", {"primals_1": 7_190_000}, 0, inputs)
    assert least_time([small, small], H200) == pytest.approx(2 * (1 + 2), rel=1e-2)
    product = Node("extern_kernels.mm", {"primals_1": 1}, 107_000_000_000, inputs)
    assert least_time([product], H200) == pytest.approx(100 + 2, rel=1e-2)


@pytest.mark.slow
def test_torch_compiles_kernels_are_had_without_a_gpu():
    """In a process of its own: Inductor keeps what it has learnt of the GPU that is not there."""
    n, c, side = 8, 64, 8
    program = f"""
import json
from tools.kernel_report.inductor import compiled_kernels
from tools.kernel_report.rates import GPUS
print(json.dumps(compiled_kernels(({n}, {c}, {side}, {side}), 4, GPUS["H200"]), default=list))
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    forward, backward = ([Node(*node) for node in nodes] for nodes in json.loads(done.stdout))
    product = 2 * n * side * side * c * (c // 4)
    assert next(node.flops for node in forward if "convolution" in node.name) == product
    assert 2 * product in [node.flops for node in backward]
    x = 2 * n * c * side * side
    assert sum(sum(node.touched.values()) for node in forward) > 4 * x, "x three times, and out"
    assert any(node.name == "generated" for node in forward), "fused by Inductor for a GPU"
