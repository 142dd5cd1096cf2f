"""Part "machine": describes the device and measures the rates of memory and arithmetic that it reaches."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from gala_cuda.bench.timing import Timing, alternate
from gala_cuda.diagnostics import describe

from .environment import ask_driver
from .records import Step
from .settings import Context

MATRICES = {  # dtype, and torch's float32 matmul precision
    "bfloat16": (torch.bfloat16, "highest"),
    "float16": (torch.float16, "highest"),
    "tf32": (torch.float32, "high"),
    "float32": (torch.float32, "highest"),
}
STATE = (
    "clocks.sm",
    "clocks.mem",
    "clocks.max.sm",
    "clocks.max.mem",
    "power.limit",
    "temperature.gpu",
    "ecc.mode.current",
)


def steps(context: Context) -> list[Step]:
    return [
        Step("properties", partial(_properties, context), 3),
        Step("copy", partial(_copy, context), 5),
        *(Step(f"matrix {name}", partial(_matrix, context, *kind), 4) for name, kind in MATRICES.items()),
    ]


def _properties(context: Context) -> dict[str, Any]:
    if not context.is_cuda:
        return {"name": describe(context.device)}
    found = torch.cuda.get_device_properties(context.device)
    return {
        "name": found.name,
        "compute_capability": f"{found.major}.{found.minor}",
        "num_sms": found.multi_processor_count,
        "memory_bytes": found.total_memory,
        "l2_bytes": found.L2_cache_size,
        "state": ask_driver(*STATE),
    }


def _copy(context: Context) -> dict[str, Any]:
    """Bytes read and written per second by a copy on the device, for several sizes; the best counts."""
    rates = {}
    for size in context.sizes.copies:
        source = torch.zeros(size, dtype=torch.uint8, device=context.device)
        target = torch.empty_like(source)
        rates[size] = 2 * size / _time(partial(target.copy_, source), context).median
    return {"bytes_per_second": max(rates.values()), "by_size": rates}


def _matrix(context: Context, dtype: torch.dtype, precision: str) -> dict[str, Any]:
    """Floating-point operations per second of a square product of random matrices, 2 n^3 each."""
    n = context.sizes.matrix
    generator = torch.Generator(context.device).manual_seed(context.seed)
    a, b = (torch.randn(n, n, generator=generator, device=context.device).to(dtype) for _ in range(2))
    out = torch.empty_like(a)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        timing = _time(partial(torch.mm, a, b, out=out), context)
    finally:
        torch.set_float32_matmul_precision(before)
    return {"flops_per_second": 2 * n**3 / timing.median, "n": n, "spread": timing.spread}


def _time(call: Callable[[], object], context: Context) -> Timing:
    return alternate({"call": call}, context.sizes.seconds, context.device)["call"]
