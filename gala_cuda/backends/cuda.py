"""The backend "cuda": the CUDA C++ kernels of `csrc/cuda`, compiled when the package is built."""

import functools
import re

import torch
from torch import Tensor

from .. import native
from .compiled import backward, forward  # noqa: F401
from .dtypes import GPU_DTYPES

_OLDEST = (8, 0)
_TEGRA = ((8, 7), (8, 8), (10, 1), (11, 0))  # Orin, Thor: GPUs on one chip with a CPU


def why_not(x: Tensor) -> str | None:
    """None where the CUDA kernels can run on `x`, else the reason."""
    if native.module is None:
        return native.why_not
    if "cuda" not in native.build:
        return f"the compiled extension has no CUDA kernels: {native.build['cuda_missing']}"
    if x.device.type != "cuda":
        return f"x is on {x.device}, expected cuda"
    if torch.version.cuda is None:
        return "torch is not built for CUDA"
    if reason := _why_not_on(x.device):
        return reason
    if x.dtype not in GPU_DTYPES:
        return f"x is {x.dtype}, expected one of {', '.join(map(str, GPU_DTYPES))}"
    if (pixels := x.shape[0] * x.shape[2] * x.shape[3]) >= 2**31 and x.numel():
        return f"x has {pixels} pixels, expected fewer than 2^31"
    return None


@functools.cache
def _why_not_on(device: torch.device) -> str | None:
    capability = torch.cuda.get_device_capability(device)
    reason = unfit(capability, native.module.cuda_driver(), native.build)  # type: ignore[union-attr]
    return reason and f"{device} {reason}"


def unfit(capability: tuple[int, int], driver: int, build: dict) -> str | None:
    """None where a GPU of this compute capability, under a driver for CUDA `driver` (13000 is 13.0), runs the kernels
    of `build`, else what it lacks."""
    name = f"has compute capability {capability[0]}.{capability[1]}"
    if capability < _OLDEST:
        return f"{name}, expected 8.0 or newer"
    matching = [architecture for architecture in build["cuda_architectures"] if _runs(capability, architecture)]
    if not matching:
        return f"{name}, for which the kernels were not built: they are for {' '.join(build['cuda_architectures'])}"
    built, found = (*map(int, build["cuda"].split(".")[:2]), 0)[:2], (driver // 1000, driver % 1000 // 10)
    words = f"has a driver for CUDA {found[0]}.{found[1]}, and the kernels were built with CUDA {build['cuda']}"
    if found[0] < built[0]:
        return words
    if found < built and all(architecture.endswith("+PTX") for architecture in matching):
        needed = f"which takes a driver for CUDA {built[0]}.{built[1]} or newer to compile"
        return f"{words}; it {name}, for which they are PTX alone, {needed}"
    return None


def _runs(capability: tuple[int, int], architecture: str) -> bool:
    """Machine code ("86") runs on its own and later minor versions, also with an "f" ("100f"), with an "a" ("90a") or
    where Tegra has a part in it on its own alone; PTX ("80+PTX") on everything later."""
    number, kind = re.fullmatch(r"(\d+)(a|f|\+PTX|)", architecture).groups()  # type: ignore[union-attr]
    major, minor = divmod(int(number), 10)
    if kind == "+PTX":
        return capability >= (major, minor)
    if kind == "a" or capability in _TEGRA or (major, minor) in _TEGRA:
        return capability == (major, minor)
    return capability[0] == major and capability[1] >= minor
