"""Passes of the operator as predictions: their kernels, the sums of these, and the floor."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch

from gala_cuda.backends.triton import config

from .bounds import Kernel, predict
from .launches import Call, Launch, Planned, planned
from .machine_code import Code
from .rates import LAUNCH, SHARE, Gpu
from .traffic import from_memory

REDUCTION = 4
STAGES = ((256, 56, 56), (512, 28, 28), (1024, 14, 14), (2048, 7, 7))  # C, H, W behind the stages of ResNet-50
BATCHES = (1, 8, 32, 256)
DTYPE = torch.bfloat16
Shape = tuple[int, int, int, int]  # N, C, H, W
Compiled = Callable[[Launch], tuple[Code, str]]  # a launch's code and listing


class Plan(NamedTuple):
    """The launches of a problem, forward and backward, and the numbers of the tensors that are there before."""

    shape: Shape
    launches: list[Planned]
    inputs: list[int]

    @property
    def forward(self) -> list[Planned]:
        """The launches up to the one that writes out."""
        names = [each.launch.kernel for each in self.launches]
        return self.launches[: names.index("scale") + 1]


class Pass(NamedTuple):
    """What is predicted of one pass: its kernels, and times in microseconds."""

    kernels: list[Kernel]
    total: float
    floor: float


def plan(shape: Shape, gpu: Gpu) -> Plan:
    """bfloat16, channels_last, parameters in float32, the paper's form, as `make gpu` times it. Raises LookupError."""
    reduced = max(1, shape[1] // REDUCTION)
    x = torch.empty(shape, dtype=DTYPE, device="meta").to(memory_format=torch.channels_last)
    row = config.row_of(config.read(config.TABLE).rows, gpu.arch, DTYPE.itemsize, True, reduced)[1]
    sms = config.Multiprocessors(gpu.num_sms, gpu.shared, gpu.arch >= config.OLDEST_PDL)
    return Plan(shape, *planned(Call(x, reduced, torch.float32, "tf32"), row, gpu.arch, sms))


def passes(found: Plan, compiled: Compiled, gpu: Gpu) -> dict[str, Pass]:
    """The forward pass by itself, and both together, each repeated without end."""
    return {
        "forward": _pass(found, found.forward, 1, compiled, gpu),
        "both": _pass(found, found.launches, 3, compiled, gpu),
    }


def _pass(found: Plan, launches: Sequence[Planned], products: int, compiled: Compiled, gpu: Gpu) -> Pass:
    memory = from_memory([each.tensors for each in launches], found.inputs, gpu.l2)
    kernels = [
        predict(each, *compiled(each.launch), from_memory=size, gpu=gpu)
        for each, size in zip(launches, memory, strict=True)
    ]
    total = sum(kernel.bounds.walked for kernel in kernels) + 1e6 * LAUNCH * len(kernels)
    return Pass(kernels, total, floor(found.shape, products, gpu))


def floor(shape: Shape, products: int, gpu: Gpu) -> float:
    """Microseconds below which no pass is: tensors of x's size once each (2 forward, 5 in all), or the products."""
    n, c, height, width = shape
    tensors = {1: 2, 3: 5}[products]
    size, work = n * c * height * width * DTYPE.itemsize, n * height * width * c * max(1, c // REDUCTION)
    rate = gpu.products * gpu.num_sms * gpu.clock
    forward = max(2 * size / (gpu.memory * SHARE), work / rate)
    backward = max((tensors - 2) * size / (gpu.memory * SHARE), (products - 1) * work / rate)
    return 1e6 * (forward + backward)
