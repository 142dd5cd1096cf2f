"""The C++ library, which knows neither torch nor Python: built, installed, and used by a program of its own."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from test_packaging import OF_TORCH, needs_nm, undefined_symbols

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[1]
EXAMPLE = ROOT / "examples" / "cpp"
QUICK = ["-DCMAKE_BUILD_TYPE=Debug", "-DGALA_CUDA=OFF"]


def tool(name):
    program = shutil.which(name, path=Path(sys.executable).parent) or shutil.which(name)
    if program is None:
        pytest.skip(f"{name} is not installed")
    return program


def run(program, *arguments):
    command = [tool(program), *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    assert done.returncode == 0, done.stdout
    return done.stdout


def built(source, build, *options):
    """Configures ``source`` with ``options`` and builds it, in ``build``."""
    tool("c++")
    generator = ["-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={tool('ninja')}"]
    run("cmake", "-S", source, "-B", build, *generator, *options)
    run("cmake", "--build", build)
    return build


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("libgala")
    run("cmake", "--install", built(ROOT, folder / "build", "-DGALA_PYTHON=OFF", *QUICK), "--prefix", folder / "prefix")
    return folder / "prefix"


def test_a_program_finds_links_and_runs_it(installed, tmp_path):
    """The example's own tests: out and every gradient against loops and differences of them."""
    build = built(EXAMPLE, tmp_path, f"-DCMAKE_PREFIX_PATH={installed}")
    assert "100% tests passed" in run("ctest", "--test-dir", build, "--output-on-failure")


def test_headers_are_those_of_the_sources(installed):
    (header,) = (installed / "include").rglob("*.h")
    assert header.relative_to(installed / "include") == Path("gala", "gala.h")
    assert header.read_text() == (ROOT / "csrc" / "gala.h").read_text()


@needs_nm
def test_it_needs_neither_torch_nor_python(installed):
    (library,) = {path.resolve() for path in installed.rglob("libgala.so*")}
    undefined = undefined_symbols(library)
    assert any(symbol.startswith("std::") for symbol in undefined)
    assert [symbol for symbol in undefined if OF_TORCH.search(symbol) or re.match(r"_?Py", symbol)] == []


@needs_nm
def test_it_exports_its_interface_alone(installed):
    (library,) = {path.resolve() for path in installed.rglob("libgala.so*")}
    listing = subprocess.run(["nm", "-DC", "--defined-only", library], capture_output=True, text=True, check=True)
    strong = {line.split(maxsplit=2)[2] for line in listing.stdout.splitlines() if " T " in line}
    assert {re.sub(r"\(.*", "", symbol) for symbol in strong} == {
        "gala::cpu::forward",
        "gala::cpu::backward",
        "gala::cpu::isa",
        "gala::cpu::gather",
        "gala::cpu::scale",
        "gala::cpu::scale_backward",
        "gala::cpu::gather_backward",
    }


@pytest.mark.parametrize(
    ("options", "message"),
    [
        pytest.param(["-DGALA_CUDA=MAYBE"], "GALA_CUDA is 'MAYBE', expected AUTO, ON or OFF", id="choice"),
        pytest.param(["-DGALA_CUDA_ARCHITECTURES=80;70"], "GALA_CUDA_ARCHITECTURES has '70'", id="too-old"),
        pytest.param(["-DGALA_CUDA_ARCHITECTURES=sm_80"], "GALA_CUDA_ARCHITECTURES has 'sm_80'", id="spelling"),
    ],
)
def test_wrong_options_are_named(options, message, tmp_path):
    command = [tool("cmake"), "-S", ROOT, "-B", tmp_path, "-DGALA_PYTHON=OFF", *options]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    assert done.returncode != 0
    assert message in " ".join(done.stdout.split())


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not on PATH")
@pytest.mark.parametrize("choice", ["AUTO", "ON"])
def test_a_host_compiler_that_nvcc_refuses(choice, tmp_path, monkeypatch):
    """It costs the CUDA kernels alone, and is an error where they were asked for; either way the reason is told."""
    refused = tmp_path / "g++"
    refused.write_text("#!/bin/sh\necho '#error -- unsupported GNU version' >&2\nexit 1\n")
    refused.chmod(0o755)
    monkeypatch.setenv("CUDAHOSTCXX", str(refused))
    command = [tool("cmake"), "-S", ROOT, "-B", tmp_path / "build", "-DGALA_PYTHON=OFF", f"-DGALA_CUDA={choice}"]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    assert (done.returncode == 0) == (choice == "AUTO")
    assert "compiles nothing with this host's compiler (CUDAHOSTCXX names another)" in " ".join(done.stdout.split())
