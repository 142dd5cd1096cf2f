"""The compile report: it finds nothing wrong with the shipped table, and what is wrong in a bad one.

Kernels that depend on the table are compiled for all rows, in bfloat16 and in float32 with every optional operand, for
64 images. All kernels are compiled for one row of each architecture, also in float16 without the optional operands,
for 1 and 32 images. The command line compiles everything.
"""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from gala_cuda.backends.triton.config import TABLE

ROOT = Path(__file__).resolve().parents[1]
ONE_NUMBER = ("--images", "64")
OF_ROWS = {"gather", "scale", "scale_backward", "grad_x", "local_products"}
OF_ALL = {
    "prepare", "shrink", "finish_hidden", "expand", "finish_map", "expand_and_prepare", "grad_hidden",
    "finish_and_weigh", "small_grads",
}  # fmt: skip
PRODUCTS = {"gather", "grad_x", "local_products"}
# of a warp in one turn of a kernel's main loop, at the paper's shape on sm_90: what an H200 was seen to wait for
BUDGETS = {
    "channels_last": {
        "gather": {"instructions": 110, "shuffles": 0, "barriers": 2, "stores to shared memory": 2},
        "scale": {"instructions": 180, "shuffles": 0, "barriers": 2, "stores to shared memory": 0},
        "scale_backward": {"instructions": 320, "shuffles": 8, "barriers": 2, "stores to shared memory": 1},
        "grad_x": {"instructions": 370, "shuffles": 0, "barriers": 2, "stores to shared memory": 2},
        "local_products": {"instructions": 235, "shuffles": 0, "barriers": 2, "stores to shared memory": 0},
        "shrink": {"instructions": 160, "shuffles": 0, "barriers": 0, "stores to shared memory": 0},
        "expand": {"instructions": 870, "shuffles": 0, "barriers": 6, "stores to shared memory": 16},
        "grad_hidden": {"instructions": 475, "shuffles": 0, "barriers": 16, "stores to shared memory": 11},
        "small_grads": {"instructions": 720, "shuffles": 0, "barriers": 4, "stores to shared memory": 16},
    },
    "nchw": {  # four pixels a load; scale, its backward and local_products: of half as many elements 170, 210 and 190
        "gather": {"instructions": 145},
        "scale": {"instructions": 280},
        "scale_backward": {"instructions": 330},
        "grad_x": {"instructions": 400},
        "local_products": {"instructions": 220},
    },
}
GPUS = {80: (163, "HMMA"), 86: (99, "HMMA"), 90: (227, "HGMMA"), 100: (227, "tcgen05")}  # KiB of shared memory; units

OF_ODD_SIZES = """
import sys, torch
from gala_cuda.backends.triton import config
from tools.kernel_report.launches import Call, build, launches_of
from tools.kernel_report.machine_code import GPUS
arch = int(sys.argv[1])
for n, c, side, r in (32, 1000, 5, 33), (128, 130, 9, 70):
    x = torch.empty(n, c, side, side, dtype=torch.bfloat16, device="meta")
    row = config.row_of(config.read(config.TABLE).rows, arch, 2, False, r)[1]
    for launch in launches_of(Call(x, r, torch.float32, "tf32", bias=True), row, arch, GPUS[arch].sms):
        if launch.kernel == "small_grads":
            build(launch)
            print(launch.kernel)
"""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed"),
]


def report(folder, *arguments):
    """(what is printed, the exit code, report.json's kernels, report.md) of the command line."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "tools.kernel_report.triton_report", "--jobs", "2", "--output", folder, *arguments]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert (folder / "report.json").exists(), done.stderr
    kernels = json.loads((folder / "report.json").read_text())["kernels"]
    return done.stdout, done.returncode, kernels, (folder / "report.md").read_text()


def check(kernels):
    """Asserts no spills, shared memory within the limit, and tensor cores in the products, from the figures."""
    for kernel in kernels:
        shared, units = GPUS[kernel["arch"]]
        spilled = {name: kernel[name] for name in ("stack", "local", "spill_loads", "spill_stores") if kernel[name]}
        assert not spilled, kernel
        assert kernel["shared"] <= 1024 * shared, kernel
        assert kernel["before_wait"] == (0 if kernel["arch"] >= 90 else None), kernel
        if kernel["kernel"] in PRODUCTS:
            assert kernel["tensor_cores"].get(units, 0) > 0 if kernel["bits"] == [16] else kernel["tensor_cores"], (
                kernel
            )


@pytest.mark.parametrize(("variant", "bits"), [("bfloat16-full", 16), ("tf32x3-full", 32)], ids=["bfloat16", "float32"])
def test_kernels_of_all_rows(tmp_path, variant, bits):
    printed, code, kernels, markdown = report(tmp_path, "--kernels", *OF_ROWS, "--variants", variant, *ONE_NUMBER)
    assert code == 0, printed
    check(kernels)
    rows = [row for row in json.loads(TABLE.read_text())["rows"] if 8 * row["for"]["bytes"] == bits]
    assert {row["for"]["arch"] for row in rows} == set(GPUS)
    for name in OF_ROWS:
        compiled_for = {row for kernel in kernels if kernel["kernel"] == name for row in kernel["rows"]}
        assert len(compiled_for) == len(rows), name
    assert all(f"## sm_{arch} " in markdown for arch in GPUS)


def test_all_kernels_of_one_row(tmp_path):
    arguments = ("--variants", "bfloat16-full", "float16-plain", "--images", "1", "32")
    printed, code, kernels, _ = report(tmp_path, "--rows", "*-16-channels_last-256", *arguments)
    assert code == 0, printed
    check(kernels)
    for arch in GPUS:
        assert {kernel["kernel"] for kernel in kernels if kernel["arch"] == arch} == OF_ROWS | OF_ALL
    assert {number for kernel in kernels for number in kernel["images"]} == {1, 32}


@pytest.mark.parametrize("layout", BUDGETS)
def test_loops_keep_to_their_budgets(layout, tmp_path):
    rows = ("--rows", f"90-16-{layout}-256", "--variants", "bfloat16-plain", *ONE_NUMBER)
    _, _, kernels, _ = report(tmp_path, *rows, "--kernels", *BUDGETS[layout])
    loops = {kernel["kernel"]: kernel["loop"] for kernel in kernels}
    assert loops.keys() == BUDGETS[layout].keys()
    over = {
        f"{name}: {what}": f"{loops[name][what]}, budget {most}"
        for name, budget in BUDGETS[layout].items()
        for what, most in {**budget, "local memory": 0}.items()
        if loops[name][what] > most
    }
    assert not over
    assert all(loops[name]["products"] and loops[name]["loads of 128 bits"] for name in PRODUCTS)


def test_an_architecture_without_rows_takes_an_older_ones(tmp_path):
    """120 takes those of 86, which has as much shared memory."""
    arguments = ("--arch", "120", "--rows", "*-16-*-64", "--variants", "bfloat16-plain", "--kernels", "scale", "gather")
    printed, code, kernels, _ = report(tmp_path, *arguments)
    assert code == 0, printed
    assert {row for kernel in kernels for row in kernel["rows"]} == {"120-16-channels_last-64", "120-16-nchw-64"}
    assert all(kernel["shared"] <= 99 << 10 for kernel in kernels)


@pytest.mark.parametrize("arch", [86, 90])
def test_sizes_at_which_a_compiler_crashed(arch):
    """In a process of its own, as LLVM ends it."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-c", OF_ODD_SIZES, str(arch)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.split()) == (0, ["small_grads"] * 2), done.stderr


def test_bad_rows_are_found(tmp_path):
    shipped = json.loads(TABLE.read_text())["rows"][0]
    bad = (
        (80, 256, {"ROWS": 512, "REDUCED": 256, "DEPTH": 32, "warps": 4, "stages": 1}, "spills"),
        (86, 64, {"ROWS": 128, "REDUCED": 64, "DEPTH": 128, "warps": 8, "stages": 4}, "bytes of shared memory"),
        (90, 128, {"ROWS": 32, "REDUCED": 64, "DEPTH": 64, "warps": 4, "stages": 2}, "no HGMMA instruction"),
    )
    rows = [
        {**shipped, "for": {"arch": arch, "bytes": 2, "reduced": reduced, "channels_last": True}, "gather": tile}
        for arch, reduced, tile, _ in bad
    ]
    table = tmp_path / "table.json"
    table.write_text(json.dumps({"rows": rows}))
    arguments = ("--kernels", "gather", "--variants", "bfloat16-plain", *ONE_NUMBER)
    printed, code, kernels, markdown = report(tmp_path, "--table", table, *arguments)
    assert code == 1
    for (arch, *_, fault), kernel in zip(bad, kernels, strict=True):
        assert kernel["arch"] == arch
        assert any(fault in found for found in kernel["faults"])
        assert all(found in printed and found in markdown for found in kernel["faults"])


@pytest.mark.parametrize(
    ("code", "fault"),
    [
        (("S2R R0, SR_TID.X", "ACQBULK", "LDG.E R2, desc[UR4][R2.64]", "PREEXIT"), []),
        (("LDS R0, [R1]", "ATOMS.OR RZ, [UR7], R4", "ACQBULK", "UTMALDG.2D [UR8], [UR4]"), []),
        (("LDGSTS.E.BYPASS.128 [R7], desc[UR6][R4.64]", "ACQBULK", "PREEXIT"), ["reads or writes too early"]),
        (("STG.E desc[UR4][R2.64], R0", "EXIT"), ["does not wait for the kernel before"]),
    ],
    ids=["waits", "shared-memory-before", "reads-before", "never-waits"],
)
def test_kernels_that_read_before_the_kernel_before_has_ended_are_found(code, fault):
    from tools.kernel_report import machine_code  # which imports Triton

    lines = [f"        /*{16 * i:04x}*/                   {each} ;" for i, each in enumerate(code)]
    found = machine_code.examine("\n".join(["REG:8 STACK:0 LOCAL:0", *lines]), shared=0, tensor_columns=0)
    launch = SimpleNamespace(kernel="scale", arch=90, constants={"PDL": True})
    assert machine_code.faults(launch, 2, found) == fault
    assert machine_code.faults(SimpleNamespace(**{**vars(launch), "constants": {"PDL": False}}), 2, found) == []
