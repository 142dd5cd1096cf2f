"""Compiles the Triton kernels of the released code's block for every architecture, without a GPU; says what is wrong.

python -m tools.kernel_report.released_report
"""

import itertools
import sys
from unittest import mock

import torch
from rich.console import Console

from gala_cuda.backends.interface import Spatial, Weights, weight_shapes
from gala_cuda.backends.triton import config, kept, problem, released
from gala_cuda.backends.triton.released import kernels
from gala_cuda.diagnostics import dtype_name

from . import tables
from .launches import Launch, launched
from .machine_code import GPUS, compiled, faults

COLUMNS = ("kernel", "x", "registers", "shared KiB", "tensor cores", "instructions")
DTYPES = (torch.bfloat16, torch.float16, torch.float32)
CHANNELS, REDUCED, IMAGES = 1024, 256, 64


def main() -> int:
    uses: dict[Launch, tuple[str, int]] = {}  # of which x, and the bytes of its elements
    for arch, dtype, channels_last in itertools.product(GPUS, DTYPES, (True, False)):  # all, before one is compiled
        x = f"{dtype_name(dtype)} {'channels_last' if channels_last else 'NCHW'}"
        for each in _own(arch, dtype, channels_last):
            uses.setdefault(each, (x, dtype.itemsize))
    sections: tables.Sections = {}
    wrong = []
    for each, (x, element) in uses.items():
        code = compiled(each)
        wrong += [f"sm_{each.arch} {x} {each.kernel}: {fault}" for fault in faults(each, element, code)]
        if not isinstance(code, str):
            units = ", ".join(f"{count} {name}" for name, count in code.tensor_cores.items())
            numbers = str(code.registers), f"{code.shared / 1024:.0f}", units, str(code.instructions)
            sections.setdefault(f"sm_{each.arch} ({GPUS[each.arch].name})", []).append((each.kernel, x, *numbers))
    total = f"{len(uses)} kernels, {len(wrong)} faults"
    tables.show(sections, COLUMNS, wrong, total, Console(width=None if sys.stdout.isatty() else 140))
    return 1 if wrong else 0


def _own(arch: int, dtype: torch.dtype, channels_last: bool) -> list[Launch]:
    """What the stages launch of `kernels`, with the tiles of an architecture."""
    with (
        mock.patch.object(config, "architecture", return_value=arch),
        mock.patch.object(problem, "multiprocessors", return_value=GPUS[arch].sms),
    ):
        found = launched(arch, lambda: _run_stages(dtype, channels_last))
    kept.clear_plans()
    return [each for each in found if each.module == kernels.__name__]


def _run_stages(dtype: torch.dtype, channels_last: bool) -> None:
    order = torch.channels_last if channels_last else torch.contiguous_format
    x = torch.empty(IMAGES, CHANNELS, 14, 14, dtype=dtype, device="meta").to(memory_format=order)
    shapes: tuple = weight_shapes(CHANNELS, REDUCED)
    w = Weights(*(torch.empty(shape, device="meta") for shape in shapes))
    spatial = Spatial(torch.empty(REDUCED, REDUCED, 5, 5, device="meta"), torch.empty(REDUCED, device="meta"))
    gates = released.Gates(*(torch.empty(IMAGES, CHANNELS, device="meta") for _ in range(2)))
    stats, hidden = released.gather(x, w)
    out, attn_map = released.scale(x, x, hidden, w, gates, stats, True)
    call = released.BackwardCall(x, attn_map, x, w, spatial, out, stats, hidden, hidden, True, True)
    grads = released.scale_backward(call, gates, torch.empty_like(x))
    assert grads.residual is not None
    released.gather_backward(call, gates, grads.residual, grads.seen, grads.alpha, torch.empty_like(x))


if __name__ == "__main__":
    sys.exit(main())
