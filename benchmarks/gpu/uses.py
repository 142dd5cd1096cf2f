"""Which calls of the operator a step makes on the Triton backend, so that their kernels can be compiled before."""

from typing import NamedTuple

import torch

from gala_cuda.backends.triton.config import Multiprocessors

from .forms import Kind


class Use(NamedTuple):
    """A call of the operator on the Triton backend, with `save` followed by its backward pass."""

    kind: Kind
    weights: torch.dtype
    squash: str = "tanh"
    bias: bool = False
    residual: bool = False
    map: bool = False
    save: bool = True


class Target(NamedTuple):
    """The GPU that kernels are compiled for."""

    arch: int  # compute capability as 10 major + minor
    sms: Multiprocessors
