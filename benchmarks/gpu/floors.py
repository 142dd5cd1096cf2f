"""The least time that a pass can take on a machine whose rates were measured.

Forward reads x and writes out, and multiplies once by V_shrink; backward reads x and the gradient of out, writes the
gradient of x, and multiplies twice. Everything else is small beside that.
"""

from typing import Any, NamedTuple

from .settings import Context

PASSES = ("forward", "backward", "forward+backward")
BYTES = {"bfloat16": 2, "float16": 2, "float32": 4, "float64": 8}


class Rates(NamedTuple):
    """The measured rates of a machine, in bytes and floating-point operations per second."""

    bytes: float
    flops: float


def rates(context: Context, dtype: str) -> Rates | None:
    """What part "machine" measured, or None if that part is missing.

    A float32 product may also be made of three TF32 products (its errors stay those of float32); the faster way counts.
    """
    copy = context.measured("machine", "copy")
    product, tf32 = context.measured("machine", f"matrix {dtype}"), context.measured("machine", "matrix tf32")
    if copy is None or product is None or tf32 is None:
        return None
    flops = product["flops_per_second"]
    if dtype == "float32":
        flops = max(flops, tf32["flops_per_second"] / 3)
    return Rates(copy["bytes_per_second"], flops)


def floors(shape: tuple[int, int, int, int], reduced: int, dtype: str, rates: Rates) -> dict[str, dict[str, Any]]:
    """The least time of each pass in seconds, and whether memory or arithmetic sets it."""
    n, c, height, width = shape
    size = n * c * height * width * BYTES[dtype]
    product = 2 * n * height * width * c * reduced
    found: dict[str, dict[str, Any]] = {}
    for kind, tensors, products in (("forward", 2, 1), ("backward", 3, 2)):
        memory, arithmetic = tensors * size / rates.bytes, products * product / rates.flops
        found[kind] = {"seconds": max(memory, arithmetic), "set_by": "memory" if memory >= arithmetic else "arithmetic"}
    both = found["forward"]["seconds"] + found["backward"]["seconds"]
    found["forward+backward"] = {"seconds": both, "set_by": "the sum of both"}
    return found
