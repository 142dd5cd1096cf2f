"""The backends that are measured, and further forms of them, which not every problem has."""

import contextlib
import os
from collections.abc import Iterator
from typing import NamedTuple
from unittest import mock

import torch
from torch import Tensor

from gala_cuda import backends
from gala_cuda.backends.layout import is_channels_last
from gala_cuda.diagnostics import dtype_name

CLUSTER = "cuda-cluster"  # the cuda backend with an image held by a cluster
FORMS = {CLUSTER: "cuda"}  # by contestant: the backend whose form it is
GPU_BACKENDS = ("triton", "cuda", CLUSTER)
DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32, "float16": torch.float16, "float64": torch.float64}
_HOPPER = (9, 0)


class Kind(NamedTuple):
    """What decides whether a problem has a form. `layout` is "channels_last" or "nchw"."""

    shape: tuple[int, int, int, int]  # N, C, H, W
    reduced: int
    dtype: torch.dtype
    layout: str

    @property
    def x(self) -> Tensor:
        """x of this kind, on the device "meta"."""
        n, c, height, width = self.shape
        if self.layout == "channels_last":
            return torch.empty(n, height, width, c, dtype=self.dtype, device="meta").permute(0, 3, 1, 2)
        return torch.empty(self.shape, dtype=self.dtype, device="meta")

    def __str__(self) -> str:
        return f"{'x'.join(map(str, self.shape))} {dtype_name(self.dtype)} {self.layout}"


@contextlib.contextmanager
def running(contestant: str) -> Iterator[str]:
    """Gives the backend behind a contestant's name, which inside `with` takes that contestant's form."""
    chosen = {"GALA_CUDA_CLUSTER": "1"} if contestant == CLUSTER else {}
    with mock.patch.dict(os.environ, chosen):
        yield FORMS.get(contestant, contestant)


def why_not(contestant: str, kind: Kind, device: torch.device) -> str | None:
    """None if the contestant runs, in its own form, on x of `kind` on `device`; else the reason why not."""
    probe = torch.zeros(1, 1, 1, 1, dtype=kind.dtype, device=device)
    if reason := backends.why_not(FORMS.get(contestant, contestant), probe):
        return reason
    return _no_cluster(kind, device) if contestant == CLUSTER else None


def _no_cluster(kind: Kind, device: torch.device) -> str | None:
    if torch.cuda.get_device_capability(device) != _HOPPER:
        return f"no cluster form: {device} is not of compute capability 9.0"
    _, channels, height, width = kind.shape
    x = kind.x
    if kind.dtype.itemsize != 2 or not is_channels_last(x) or channels % 64 or kind.reduced > 256 or height * width < 4:
        return (
            "no cluster form: it takes bfloat16 or float16, channels_last, C a multiple of 64, R of at most 256 and at "
            "least 4 pixels"
        )
    return None
