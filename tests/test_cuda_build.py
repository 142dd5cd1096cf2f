"""The compiled CUDA kernels: each exists for every architecture and spills no registers."""

import importlib.util
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import setuptools
import torch

from gala_cuda import native
from tools.kernel_report import cuda_report

ROOT = Path(__file__).resolve().parents[1]
BUILD = native.module.build_info() if native.module is not None else {"cuda_missing": native.why_not}
CUOBJDUMP = cuda_report.tool("cuobjdump")
SOURCES = "\n".join(path.read_text() for path in (ROOT / "csrc" / "cuda").rglob("*.cu"))
KERNELS = set(re.findall(r"GALA_KERNEL\([^)]*\)\s*(\w+)\(", SOURCES))

needs_cuda = pytest.mark.skipif("cuda" not in BUILD, reason=f"no CUDA kernels: {BUILD.get('cuda_missing')}")
needs_cuobjdump = pytest.mark.skipif(CUOBJDUMP is None, reason="cuobjdump is not installed")

LISTING = """
Fatbin elf code:
================
arch = sm_80
code version = [1,8]

Resource usage:
 Common:
  GLOBAL:0
 Function _ZN4gala4cuda12_GLOBAL__N_113gather_kernelIfLi64EEEvNS0_6ParamsE:
  REG:168 STACK:0 SHARED:16 LOCAL:0 CONSTANT[0]:440 TEXTURE:0 SURFACE:0 SAMPLER:0
 Function _ZN4gala4cuda10sum_kernelENS0_6ParamsE:
  REG:32 STACK:{stack} SHARED:0 LOCAL:0 CONSTANT[0]:440 TEXTURE:0 SURFACE:0 SAMPLER:0

Fatbin elf code:
================
arch = sm_90a
code version = [1,8]

Resource usage:
 Common:
  GLOBAL:0
 Function _ZN4gala4cuda10sum_kernelENS0_6ParamsE:
  REG:40 STACK:0 SHARED:0 LOCAL:0 CONSTANT[0]:440 TEXTURE:0 SURFACE:0 SAMPLER:0
"""


@pytest.fixture(scope="module")
def kernels():
    return cuda_report.compiled(CUOBJDUMP, Path(native.module.__file__))


@needs_cuda
@needs_cuobjdump
def test_every_kernel_is_compiled_for_every_architecture(kernels):
    architectures = [arch for arch in BUILD["cuda_architectures"] if not arch.endswith("+PTX")]
    assert {kernel.arch for kernel in kernels} == set(architectures)
    assert KERNELS
    for arch in architectures:
        assert {kernel.name for kernel in kernels if kernel.arch == arch} == KERNELS
    assert cuda_report.faults(kernels) == []


@needs_cuda
@needs_cuobjdump
def test_other_gpus_find_ptx():
    """It is of the oldest architecture, so that drivers of all later ones can compile it."""
    (oldest,) = (arch.removesuffix("+PTX") for arch in BUILD["cuda_architectures"] if arch.endswith("+PTX"))
    assert int(oldest) == min(int(re.match(r"\d+", arch)[0]) for arch in BUILD["cuda_architectures"])
    command = [CUOBJDUMP, "--list-ptx", native.module.__file__]
    listing = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert len(listing) == len(list((ROOT / "csrc" / "cuda").rglob("*.cu")))
    assert all(line.endswith(f"sm_{oldest}.ptx") for line in listing)


@needs_cuda
@pytest.mark.parametrize("name", ["forward", "backward"])
def test_cuda_tensors_reach_the_kernels(name):
    assert torch._C._dispatch_has_kernel_for_dispatch_key(f"gala_native::{name}", "CUDA")


def test_setup_passes_its_options_to_cmake(tmp_path, monkeypatch):
    spec = importlib.util.spec_from_file_location("gala_setup", ROOT / "setup.py")
    setup_py = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(setup_py)
    commands = []
    monkeypatch.setattr(setup_py.subprocess, "run", lambda command, **_: commands.append(command))
    for name, value in {"cmake": "cmake", "torch_folder": "torch"}.items():
        monkeypatch.setattr(setup_py, name, lambda value=value: value)
    monkeypatch.setattr(setup_py.shutil, "which", lambda name, path: name)
    monkeypatch.setenv("GALA_CUDA", "ON")
    monkeypatch.setenv("GALA_CUDA_ARCHITECTURES", "80;90a")
    builder = setup_py.BuildNative(setuptools.Distribution())
    builder.build_temp, builder.build_lib = str(tmp_path / "temp"), str(tmp_path / "lib")
    builder.build_extension(setuptools.Extension("gala_cuda._C", sources=[]))
    assert {"-DGALA_CUDA=ON", "-DGALA_CUDA_ARCHITECTURES=80;90a"} <= set(commands[0])


def test_the_listing_is_read():
    first, second, third = cuda_report.parse(LISTING.format(stack=24))
    assert (first.arch, first.name, first.registers, first.shared) == ("80", "gather_kernel", 168, 16)
    assert (second.arch, second.name, second.registers, second.stack) == ("80", "sum_kernel", 32, 24)
    assert (third.arch, third.name) == ("90a", "sum_kernel")


def test_spills_and_missing_kernels_are_faults():
    kernels = cuda_report.parse(LISTING.format(stack=24))
    spill, missing = cuda_report.faults(kernels)
    assert spill.startswith("sm_80 sum_kernel spills 24 bytes")
    assert missing.startswith("sm_90a has no _ZN4gala4cuda12_GLOBAL__N_113gather_kernel")
    assert cuda_report.faults(kernels[2:]) == []
    from_ptx = kernels[1]._replace(arch="90a from PTX")
    assert cuda_report.faults([from_ptx])[0].startswith("sm_90a from PTX sum_kernel spills 24 bytes")
    assert cuda_report.faults([kernels[2], from_ptx]) == []  # no GPU takes it
    assert cuda_report.summary(kernels)["sm_80"] == [
        ("gather_kernel", "1", "168", "0", "16"),
        ("sum_kernel", "1", "32", "24", "0"),
    ]


SPILLING = """
namespace gala::cuda {
__global__ void __launch_bounds__(1024, 2) spilling_kernel(float* p) {
  float v[64];
  for (int i = 0; i < 64; ++i) v[i] = p[i * 1024 + threadIdx.x];
  __syncthreads();
  for (int i = 0; i < 64; ++i)
    for (int j = 0; j < 64; ++j) v[i] += v[j] * v[63 - i];
  for (int i = 0; i < 64; ++i) p[i * 1024 + threadIdx.x] = v[i];
}
}
"""


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not on PATH")
@needs_cuobjdump
def test_the_report_finds_a_kernel_that_spills(tmp_path, capsys):
    """Both in its machine code and in what ptxas makes of its PTX for another GPU."""
    source, compiled = tmp_path / "spilling.cu", tmp_path / "spilling.o"
    source.write_text(SPILLING)
    subprocess.run(["nvcc", "-arch=sm_80", "-c", source, "-o", compiled], check=True, capture_output=True)
    assert cuda_report.main([str(compiled), "--ptx", "90", "--output", str(tmp_path)]) == 1
    found = capsys.readouterr().out
    faults = [re.search(f"{name} spilling_kernel spills .*", found)[0] for name in ("sm_80", "sm_90 from PTX")]
    assert "\n".join(["## Faults\n", *(f"- {fault}" for fault in faults)]) in (tmp_path / "report.md").read_text()
