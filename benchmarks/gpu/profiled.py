"""Finds which kernels a call launches on the GPU and how long each takes, with torch's profiler.

A process that has profiled may launch more slowly ever after, so nothing else is timed in it (`worker.run`).
"""

import re
from collections.abc import Callable

import torch
from torch.autograd import DeviceType

profiles = 0  # that this process has made


def kernel_times(call: Callable[[], object], calls: int = 1) -> dict[str, float]:
    """Seconds of each kernel in one call, its launches together, by name in order of first launch.

    Empty where the profiler sees nothing, such as on the CPU or where the driver keeps its counters to itself.
    """
    global profiles
    call()
    profiles += 1
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        for _ in range(calls):
            call()
        torch.cuda.synchronize()
    found: dict[str, float] = {}
    for event in sorted(profile.events(), key=lambda event: event.time_range.start):
        if event.device_type == DeviceType.CUDA:
            name = short(event.name)
            found[name] = found.get(name, 0.0) + 1e-6 * event.time_range.elapsed_us() / calls
    return found


def short(signature: str) -> str:
    """A kernel's name and template arguments without its result, namespaces of the package and parameters."""
    return re.sub(r"^void |gala::cuda::|\(.*\)$", "", signature)
