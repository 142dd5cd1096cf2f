"""What is measured, how large and how long: on a GPU, or as a dry run on the CPU."""

import contextlib
import gc
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from gala_cuda import backends

PARTS = {  # in order of importance; the share of the time that a part may take, the last ones what is left
    "machine": 1.0,
    "correctness": 0.25,
    "robustness": 0.15,
    "operators": 0.5,
    "networks": 1.0,
    "shapes": 1.0,
}
DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32, "float16": torch.float16, "float64": torch.float64}
TICKETS = "triton-tickets"  # the triton backend with its forward pass as tickets of one launch
CLUSTER = "cuda-cluster"  # the cuda backend with an image held by a cluster where that is possible
FORMS = {TICKETS: "triton", CLUSTER: "cuda"}  # other forms of a backend
GPU_BACKENDS = ("triton", TICKETS, "cuda", CLUSTER)
HOPPER = (9, 0)


@contextlib.contextmanager
def running(contestant: str) -> Iterator[str]:
    """The backend behind a contestant's name, inside in that contestant's form."""
    if contestant == TICKETS:
        from gala_cuda.backends.triton import config

        form: contextlib.AbstractContextManager = config.form("tickets")
    elif contestant == CLUSTER:
        form = mock.patch.dict(os.environ, GALA_CUDA_CLUSTER="1")
    else:
        form = contextlib.nullcontext()
    with form:
        yield FORMS.get(contestant, contestant)


@dataclass(frozen=True)
class Sizes:
    """Shapes are N, C, H, W; stages C, H, W. ``seconds`` is the time for one timing of all contestants."""

    copies: tuple[int, ...]  # bytes
    matrix: int  # rows and columns of the square matrices
    problems: tuple[tuple[tuple[int, int, int, int], int], ...]  # checked against float64: shape and reduced width
    repeated: tuple[int, int, int, int]  # shape of the robustness checks
    repeats: int
    stages: tuple[tuple[int, int, int], ...]  # the paper's first
    batches: tuple[int, ...]  # in order of importance
    autotuned: tuple[int, ...]  # batches at which the first stage's contestants include max-autotune
    seconds: float
    compiler: str  # of torch.compile
    depth: int  # of the ResNets
    width: int  # channels of their first stage
    classes: int
    image: int  # height and width
    network_batches: tuple[int, ...]  # the first that fits


GPU = Sizes(
    copies=(2**30, 2**31, 2**32),
    matrix=8192,
    problems=(
        ((6, 1, 5, 3), 2),
        ((2, 7, 3, 5), 3),
        ((3, 96, 7, 7), 24),
        ((130, 8, 1, 1), 2),
        ((5, 33, 13, 11), 33),
        ((7, 130, 31, 17), 70),
        ((64, 24, 14, 14), 6),
        ((1, 1000, 9, 5), 250),
        ((40, 1024, 14, 14), 256),
        ((8, 256, 56, 56), 64),
        ((8, 512, 28, 28), 128),
        ((16, 2048, 7, 7), 512),
    ),
    repeated=(32, 1024, 14, 14),
    repeats=1000,
    stages=((1024, 14, 14), (512, 28, 28), (256, 56, 56), (2048, 7, 7)),
    batches=(256, 32, 128, 8, 1),
    autotuned=(256, 32),
    seconds=0.5,
    compiler="inductor",
    depth=50,
    width=64,
    classes=1000,
    image=224,
    network_batches=(256, 128, 64),
)
DRY_RUN = Sizes(
    copies=(2**20,),
    matrix=64,
    problems=(((6, 1, 5, 3), 2), ((2, 7, 3, 5), 3), ((2, 16, 5, 5), 4)),
    repeated=(2, 16, 5, 5),
    repeats=3,
    stages=((16, 5, 5), (8, 3, 7)),
    batches=(2,),
    autotuned=(),
    seconds=0.01,
    compiler="aot_eager",  # traces forward and backward; generating C++ would take half a minute
    depth=18,
    width=8,
    classes=10,
    image=32,
    network_batches=(2,),
)


@dataclass(frozen=True)
class Context:
    """What every step knows: where it runs, its sizes, the seed of random data, the results so far."""

    device: torch.device
    sizes: Sizes
    seed: int
    folder: Path

    @property
    def is_cuda(self) -> bool:
        return self.device.type == "cuda"

    def usable(self, dtype: torch.dtype = torch.float32) -> list[str]:
        """The fused backends that run on a tensor of ``dtype`` here, and their other forms."""
        names = [name for name in (*backends.NAMES, *FORMS) if name != "reference"]
        return [name for name in names if self.why_not(name, dtype) is None]

    def why_not(self, backend: str, dtype: torch.dtype) -> str | None:
        x = torch.zeros(1, 1, 1, 1, dtype=dtype, device=self.device)
        if reason := backends.why_not(FORMS.get(backend, backend), x):
            return reason
        if backend != CLUSTER:
            return None
        if torch.cuda.get_device_capability(self.device) != HOPPER:
            return f"{self.device} is not of compute capability 9.0"
        return None if dtype.itemsize == 2 else f"x is {dtype}, expected bfloat16 or float16"

    def start_afresh(self) -> None:
        """Forgets what torch.compile made, and gives memory back that nobody uses."""
        torch.compiler.reset()
        gc.collect()
        if self.is_cuda:
            torch.cuda.empty_cache()

    def measured(self, part: str, step: str) -> dict[str, Any] | None:
        """The result of an earlier step, or None where there is none."""
        path = self.folder / f"{part}.json"
        if not path.exists():
            return None
        return json.loads(path.read_text())["steps"].get(step, {}).get("result")

    def as_dict(self) -> dict[str, Any]:
        return {"device": str(self.device), **asdict(self.sizes)}
