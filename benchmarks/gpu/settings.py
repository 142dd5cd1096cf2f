"""How large and how long the measurements are, on a GPU or in a dry run on the CPU, and what every step knows."""

import gc
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from gala_cuda import backends

from . import forms
from .attempts import Trials
from .forms import CLUSTER, FORMS, Kind

CLUSTER_KERNEL = "image_kernel"  # part of the name of a kernel that the cluster form alone launches
REDUCTION = 4  # the layer's default


@dataclass(frozen=True)
class Sizes:
    """Shapes are N, C, H, W; stages C, H, W. `seconds` is the time for one timing of all contestants."""

    copies: tuple[int, ...]  # bytes
    matrix: int  # rows and columns of the square matrices
    problems: tuple[tuple[tuple[int, int, int, int], int], ...]  # checked against float64: shape and reduced width
    repeated: tuple[int, int, int, int]  # shape of the robustness checks
    repeats: int
    stages: tuple[tuple[int, int, int], ...]  # the paper's first
    batches: tuple[int, ...]  # in order of importance
    first_batches: tuple[int, ...]  # of part "operators"; also those that max-autotune is timed at
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
    problems=(  # every width of the table's rows; N of 16 specialise kernels as the batches below do
        ((48, 1024, 14, 14), 256),
        ((16, 512, 28, 28), 128),
        ((16, 256, 56, 56), 64),
        ((16, 2048, 7, 7), 512),
        ((7, 130, 31, 17), 70),
        ((5, 33, 13, 11), 33),
        ((130, 8, 1, 1), 2),
        ((6, 1, 5, 3), 2),
    ),
    repeated=(32, 1024, 14, 14),
    repeats=1000,
    stages=((1024, 14, 14), (512, 28, 28), (256, 56, 56), (2048, 7, 7)),
    batches=(256, 32, 128, 8, 1),
    first_batches=(256, 32),
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
    first_batches=(2,),
    seconds=0.01,
    compiler="aot_eager",  # traces forward and backward; generating C++ would take half a minute
    depth=18,
    width=8,
    classes=10,
    image=32,
    network_batches=(2,),
)


def cluster_step(stage: tuple[int, ...]) -> str:
    """The step of part "kernels" that sees the cluster form at C, H, W."""
    return f"{CLUSTER} {'x'.join(map(str, stage))}"


@dataclass(frozen=True)
class Context:
    """What every step knows: its device, its sizes, the seed of random data, the results so far, who is being tried."""

    device: torch.device
    sizes: Sizes
    seed: int
    folder: Path
    trials: Trials = field(default_factory=Trials)

    @property
    def is_cuda(self) -> bool:
        return self.device.type == "cuda"

    @property
    def repeated(self) -> Kind:
        """The paper's shape in bfloat16, channels_last, as most checks take it."""
        shape = self.sizes.repeated
        return Kind(shape, max(1, shape[1] // REDUCTION), torch.bfloat16, "channels_last")

    def candidates(self) -> list[str]:
        """The fused backends and their other forms."""
        return [name for name in (*backends.NAMES, *FORMS) if name != "reference"]

    def usable(self, kind: Kind) -> tuple[list[str], dict[str, str]]:
        """(the fused backends and forms that run on x of `kind`, why the others do not)."""
        reasons = {name: self.why_not(name, kind) for name in self.candidates()}
        left_out = {name: reason for name, reason in reasons.items() if reason is not None}
        return [name for name in reasons if name not in left_out], left_out

    def why_not(self, contestant: str, kind: Kind) -> str | None:
        """The reason why the contestant does not run, in its own form, on x of `kind`, or None.

        Part "kernels" has seen for every stage whether an image fits into a cluster, by what was launched.
        """
        reason = forms.why_not(contestant, kind, self.device)
        if reason is None and contestant == CLUSTER:
            seen = self.measured("kernels", cluster_step(kind.shape[1:])) or {"seconds": {"in calls": {}}}
            launched = seen["seconds"]["in calls"]
            if launched and not any(CLUSTER_KERNEL in name for name in launched):
                return "no cluster form: an image does not fit into the shared memory of a cluster"
        return reason

    def start_afresh(self) -> None:
        """Drops what torch.compile has made, and gives unused memory back."""
        torch.compiler.reset()
        gc.collect()
        if self.is_cuda:
            torch.cuda.empty_cache()

    def measured(self, part: str, step: str) -> dict[str, Any] | None:
        """The result of an earlier step, or None if there is none."""
        path = self.folder / f"{part}.json"
        if not path.exists():
            return None
        return json.loads(path.read_text())["steps"].get(step, {}).get("result")

    def as_dict(self) -> dict[str, Any]:
        return {"device": str(self.device), **asdict(self.sizes)}
