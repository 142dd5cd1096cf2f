"""Which bytes of a pass come from memory, and which the L2 cache still holds.

A pass is taken as repeated without end, as it is timed. A tensor is in L2 if all that was touched since its own last
touch fits there beside it; else none of it is, though the end of a large one may be.
"""

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

Touched = Mapping[Any, int]  # the bytes that a kernel touches of each tensor


def from_memory(kernels: Sequence[Touched], inputs: Sequence[Hashable], l2: int) -> list[int]:
    """The bytes that each kernel reads from memory and that memory has to take of what it writes.

    A kernel writes a tensor that no kernel before it has touched and that is no input, and reads all others.
    """
    found, seen = [], set(inputs)
    for i, kernel in enumerate(kernels):
        total = 0
        for tensor, size in kernel.items():
            written = tensor not in seen
            if _between(kernels, i, tensor, 1 if written else -1) + size > l2:
                total += size
        seen |= kernel.keys()
        found.append(total)
    return found


def _between(kernels: Sequence[Touched], start: int, tensor: Hashable, direction: int) -> int:
    """Bytes of other tensors touched from this kernel to the next, or with -1 the last, that touches `tensor`."""
    others: dict[Hashable, int] = {}
    for step in range(len(kernels) + 1):
        kernel = kernels[(start + direction * step) % len(kernels)]
        others |= {other: size for other, size in kernel.items() if other != tensor}
        if step and tensor in kernel:
            break
    return sum(others.values())
