"""A third squash that is added in one place alone fails loudly everywhere else, and never computes a sigmoid."""

import enum
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from shim import DEFINED, compiler, why_no_compiler

import gala_cuda
from gala_cuda import functional, operator
from gala_cuda.backends import BACKENDS
from gala_cuda.backends.interface import BackwardCall, ForwardCall
from gala_cuda.backends.squash import HALFWAY, Squash
from gala_cuda.testing import Case, draw

ROOT = Path(__file__).parents[1]
needs_compiler = pytest.mark.skipif(bool(why_no_compiler()), reason=why_no_compiler() or "")
Third = enum.IntEnum("Third", "TANH SIGMOID SOFTSIGN", start=0)
REFUSED = {
    "reference": pytest.raises(NotImplementedError, match=r"the reference has no .*SOFTSIGN: 2"),
    "cpu": pytest.raises(RuntimeError, match="squash is 2, expected 0 for tanh or 1 for sigmoid"),
}


def test_python_and_cpp_number_them_alike():
    header = (ROOT / "csrc" / "gala.h").read_text()
    (enumerators,) = re.findall(r"enum class Squash : int64_t \{ (.*?) \};", header)
    assert {name: int(code) for name, code in re.findall(r"(\w+) = (\d+)", enumerators)} == {
        squash.name.lower(): squash.value for squash in Squash
    }


def test_keep_output_knows_where_each_is_a_half():
    for squash, at in HALFWAY.items():
        assert getattr(torch, squash.name.lower())(torch.tensor(at, dtype=torch.float64)) == pytest.approx(0.5)
    assert set(HALFWAY) == set(Squash)


def test_an_operator_called_with_an_unknown_code_refuses_it(backend):
    problem = draw(Case((1, 4, 3, 3), 2))
    with pytest.raises(ValueError, match="2 is not a valid Squash"):
        torch.ops.gala_cuda.gala(problem.x, *problem.w, None, 2, False, False, backend)


def test_a_backend_refuses_what_pythons_enum_alone_has(backend):
    problem = draw(Case((1, 4, 3, 3), 2))
    x, w = problem.x, problem.w
    _, _, stats, relu_mask = BACKENDS[backend].forward(ForwardCall(x, w, None, Squash.TANH, False, True))
    with REFUSED[backend]:
        BACKENDS[backend].forward(ForwardCall(x, w, None, Third.SOFTSIGN, False, False))
    with REFUSED[backend]:
        saved = None, stats, relu_mask
        BACKENDS[backend].backward(BackwardCall(x, None, x, w, *saved, Third.SOFTSIGN, True, True))


def test_the_function_reaches_that_refusal(backend, monkeypatch):
    monkeypatch.setattr(operator, "Squash", Third)
    monkeypatch.setattr(functional, "SQUASHES", {squash.name.lower(): squash for squash in Third})
    problem = draw(Case((1, 4, 3, 3), 2))
    with REFUSED[backend]:
        gala_cuda.gala(problem.x, *problem.w, squash="softsign", backend=backend)


def errors(folder: Path, source: str, *options: str) -> set[tuple[str, int]]:
    """(file, line) of what the compiler refuses in `source` for the third enumerator, with the flags of CMake."""
    flags = ("-std=c++20", "-fsyntax-only", "-Werror=switch", "-DGALA_ISA=baseline", "-I.", *options)
    done = subprocess.run([*compiler(), *flags, source], cwd=folder, capture_output=True, text=True)
    found = re.findall(r"^(\S+?):(\d+):\d+: error: (.*)$", done.stderr, re.MULTILINE)
    assert all("softsign" in words or "a squash without its" in words for *_, words in found), done.stderr
    assert bool(found) == bool(done.returncode), done.stderr
    return {(str((folder / file).resolve().relative_to(folder)), int(line)) for file, line, _ in found}


def lines(folder: Path, file: str, pattern: str) -> set[tuple[str, int]]:
    """(file, line) of what matches `pattern` in `file`."""
    return {(file, i) for i, line in enumerate((folder / file).read_text().splitlines(), 1) if re.search(pattern, line)}


@pytest.fixture
def sources(tmp_path) -> Path:
    """A copy of `csrc` whose header has a third enumerator."""
    shutil.copytree(ROOT / "csrc", tmp_path, dirs_exist_ok=True)
    header = tmp_path / "gala.h"
    header.write_text(header.read_text().replace("sigmoid = 1 };", "sigmoid = 1, softsign = 2 };"))
    assert "softsign" in header.read_text()
    return tmp_path.resolve()


@pytest.mark.slow
@needs_compiler
def test_the_cpu_stages_do_not_compile_with_an_enumerator_more(sources):
    """At each place that tells one squash from another: first their one switch, then what it calls."""
    switch = lines(sources, "cpu/blocks.h", r"switch \(problem\.squash\)")
    assert len(switch) == 1
    units = [f"cpu/{path.name}" for path in (sources / "cpu").glob("*.cpp") if "specialise(" in path.read_text()]
    assert sorted(units) == ["cpu/released.cpp", "cpu/stages.cpp"]
    assert all(errors(sources, unit) == switch for unit in units)

    blocks = sources / "cpu" / "blocks.h"
    case = re.compile(r"(    case Squash::)sigmoid(: return .*<T, Squash::)sigmoid(>.*\n)")
    blocks.write_text(case.sub(r"\g<0>\1softsign\2softsign\3", blocks.read_text()))
    functions = lines(sources, "cpu/squash.h", r'static_assert\(squash == Squash::sigmoid, "a squash without its')
    assert len(functions) == len(lines(sources, "cpu/squash.h", "== Squash::tanh")) == 2
    assert all(errors(sources, unit) == functions for unit in units)


@pytest.mark.slow
@needs_compiler
def test_torchs_bindings_do_not_compile_with_an_enumerator_more(sources):
    options = f"-isystem{Path(torch.__file__).parent / 'include'}", "-DTORCH_TARGET_VERSION=0x020a000000000000"
    switches = lines(sources, "torch_tensors.h", r"switch \(.*static_cast<Squash>")
    assert len(switches) == 1
    assert errors(sources, "torch_bindings.cpp", *options) == switches


@pytest.mark.slow
@needs_compiler
def test_the_cuda_kernels_do_not_compile_with_an_enumerator_more(sources):
    """Their host code refuses it, then their one switch for all kernels, then what that calls."""
    options = *DEFINED, "-xc++"
    units = [path for path in sources.rglob("*.cu") if "squash.cuh" in path.read_text()]
    squashing = [str(path.relative_to(sources)) for path in units]
    assert len(squashing) == 4
    known = lines(sources, "cuda/launchers.h", r"switch \(squash\)")
    choice = lines(sources, "cuda/squash.cuh", r"switch \(kind\)")
    functions = lines(sources, "cuda/squash.cuh", r'static_assert\(kind == Squash::sigmoid, "a squash without its')
    assert len(known) == len(choice) == 1
    assert len(functions) == len(lines(sources, "cuda/squash.cuh", "== Squash::tanh")) == 2
    assert all(errors(sources, unit, *options) == known | choice for unit in squashing)
    assert errors(sources, "cuda/stages.cu", *options) == known

    header = sources / "cuda" / "squash.cuh"
    case = re.compile(r"(    case Squash::)sigmoid(: return body.template operator\(\)<Squash::)sigmoid(>.*\n)")
    header.write_text(case.sub(r"\g<0>\1softsign\2softsign\3", header.read_text()))
    functions = lines(sources, "cuda/squash.cuh", r'static_assert\(kind == Squash::sigmoid, "a squash without its')
    found = {unit: errors(sources, unit, *options) - known for unit in squashing}
    assert found.pop("cuda/scale_backward.cu") == functions
    assert all(one < functions and len(one) == 1 for one in found.values())


def test_such_a_switch_is_an_error_in_every_build():
    builds = "\n".join((ROOT / name).read_text() for name in ("CMakeLists.txt", "cmake/cuda.cmake"))
    for target in ("gala_flags", "gala_cuda"):
        assert re.search(rf"target_compile_options\({target} [^)]*-Werror=switch\b", builds), target


@pytest.mark.slow
def test_triton_refuses_it(tmp_path):
    """Where it runs kernels, in the interpreter or on a GPU, and where it compiles those that squash."""
    triton = pytest.importorskip("triton", reason="Triton is not installed")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    drawn = draw(Case((1, 4, 3, 3), 2), device=device)
    with pytest.raises(triton.TritonError, match="the Triton kernels have no squash 2"):
        BACKENDS["triton"].forward(ForwardCall(drawn.x, drawn.w, None, Third.SOFTSIGN, False, False))
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path)
    command = [sys.executable, "-c", COMPILE_FOR_A_GPU]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["scale", "scale_backward", "grad_x"], done.stderr


COMPILE_FOR_A_GPU = """
import enum, traceback, torch, triton
from gala_cuda.backends.triton import config
from tools.kernel_report.launches import Call, build, launches_of
from tools.kernel_report.machine_code import GPUS
x = torch.empty(2, 32, 4, 4, dtype=torch.bfloat16, device="meta").to(memory_format=torch.channels_last)
third = enum.IntEnum("Third", "TANH SIGMOID SOFTSIGN", start=0).SOFTSIGN
call = Call(x, 8, torch.float32, "tf32", squash=third)
row = config.row_of(config.read(config.TABLE).rows, 90, 2, True, 8)[1]
for launch in launches_of(call, row, 90, GPUS[90].sms):
    try:
        build(launch)
    except triton.TritonError as error:
        if "no squash 2" in "".join(traceback.format_exception(error)):
            print(launch.kernel)
"""
