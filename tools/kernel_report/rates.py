"""The rates of the GPUs that times are predicted for, each with its source.

- Multiprocessors, clocks (boost), memory, L2, and 16-bit products a clock from the peak rate: NVIDIA's whitepapers of
  GA100, AD102 and GH100 and its data sheets of the H200 and the B200. The H200's clock is the one it was found at
  (benchmarks/results/nvidia-h200-2026-11-26).
- What else a multiprocessor does in a clock: CUDA C++ Programming Guide, throughput of native arithmetic instructions.
- Latencies: Luo et al., Benchmarking and Dissecting the Nvidia Hopper GPU Architecture, arXiv:2402.13499, which also
  has mma.sync at 62 % of wgmma's rate on the H100; written down from memory, not compared with its tables. The B200,
  which it has not, is assumed to be as the H100.
- SHARE: of its peak the H200's memory gave 89 % to a copy (the same folder). Assumed of all.
- L2: 5.5 TB/s of an H100 PCIe, 114 multiprocessors at 1.755 GHz, in published measurements: 27.5 bytes a clock and
  multiprocessor. Assumed of all but the RTX 4090, of which 5 TB/s are published: 15.5.
"""

from typing import NamedTuple

SHARE = 4.27 / 4.8  # of the peak rate of memory, for a copy
# Seconds between the last instruction of a kernel and the first one of the next: what the H200's passes in CUDA graphs
# took beyond their kernels by themselves without ALONE, over their launches (1.6 at N = 256, 2.5 at N = 32).
LAUNCH = 2.0e-6
# What CUDA events add to a kernel that is timed by itself, launch included: what the H200 took for the kernels that do
# next to nothing, beyond their walks (3.1 to 3.4).
ALONE = 3.3e-6


class Gpu(NamedTuple):
    """One GPU. Rates are of one multiprocessor and clock, latencies in clocks."""

    name: str
    arch: int
    num_sms: int
    clock: float  # Hz
    memory: float  # bytes/s, the peak
    l2: int  # bytes
    l2_rate: float  # bytes, while all multiprocessors ask
    products: int  # multiply-adds of 16 bits on the tensor cores, the most there are
    mma: int  # the same by mma.sync
    floats: int  # lanes for float32; for whole numbers there are 64, for special functions 16
    warps: int  # at most, resident
    blocks: int
    shared: int  # bytes for all resident programs
    latency: int  # of memory
    l2_latency: int


GPUS = {
    gpu.name: gpu
    for gpu in (
        Gpu("A100", 80, 108, 1.41e9, 2.039e12, 40 << 20, 27.5, 1024, 1024, 64, 64, 32, 164 << 10, 466, 262),
        Gpu("RTX4090", 89, 128, 2.52e9, 1.008e12, 72 << 20, 15.5, 256, 256, 128, 48, 24, 100 << 10, 542, 273),
        Gpu("H100", 90, 132, 1.83e9, 3.35e12, 50 << 20, 27.5, 2048, 1270, 128, 64, 32, 228 << 10, 479, 263),
        Gpu("H200", 90, 132, 1.98e9, 4.8e12, 60 << 20, 27.5, 2048, 1270, 128, 64, 32, 228 << 10, 479, 263),
        Gpu("B200", 100, 148, 1.85e9, 8e12, 126 << 20, 27.5, 4096, 1024, 128, 64, 32, 228 << 10, 479, 263),
    )
}
