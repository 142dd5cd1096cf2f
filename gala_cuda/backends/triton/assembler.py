"""Whether ptxas, the assembler that comes with Triton, knows a GPU's architecture, which may be newer than it."""

import functools
import re
import subprocess

KNOWN = {(8, 0), (8, 6), (8, 9), (9, 0), (10, 0), (12, 0)}  # by the ptxas of each Triton that comes with torch >= 2.10


@functools.cache
def why_not(capability: tuple[int, int]) -> str | None:
    """None where kernels can be assembled for the compute capability, else the reason and what to do."""
    if capability in KNOWN:
        return None
    from triton import __version__
    from triton.backends.nvidia.compiler import get_ptxas

    variable = f"TRITON_PTXAS{'_BLACKWELL' if capability >= (10, 0) else ''}_PATH"
    remedy = f"name a newer ptxas in the environment variable {variable}, or install a newer Triton"
    try:
        if knows(capability):
            return None
        tool = get_ptxas(10 * capability[0] + capability[1])
    except (RuntimeError, OSError, subprocess.CalledProcessError) as error:
        return f"Triton {__version__} has no ptxas that runs ({error}); {remedy}"
    return (
        f"Triton {__version__} assembles with {tool.path} of CUDA {tool.version}, which does not know "
        f"{_name(capability)}, compute capability {capability[0]}.{capability[1]}; {remedy}"
    )


def knows(capability: tuple[int, int]) -> bool:
    """Whether the ptxas that Triton would take lists the architecture that Triton would name."""
    from triton.backends.nvidia.compiler import get_ptxas

    tool = get_ptxas(10 * capability[0] + capability[1])
    listed = subprocess.run([tool.path, "--help"], capture_output=True, text=True, check=True).stdout
    return re.search(rf"\b{_name(capability)}\b", listed) is not None


def _name(capability: tuple[int, int]) -> str:
    from triton.backends.nvidia.compiler import sm_arch_from_capability

    return sm_arch_from_capability(10 * capability[0] + capability[1])
