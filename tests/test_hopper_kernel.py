"""The forward of an image a cluster on the host (``shim``), against float64: in every order of threads, blocks and bulk
copies that a seed gives."""

import ctypes
from ctypes import byref, c_char_p, c_int64
from functools import cache

import pytest
import torch
from oracle import Case, Problem, assert_accurate, draw
from shim import CPP, CUDA, DTYPES, SHIM, WORKSPACE_ALIGNMENT, Memory, build, loaded, why_no_compiler
from structs import Execution, FeatureMap, Forward, Shape, WeightPointers
from structs import Problem as NativeProblem
from torch import Tensor

from gala_cuda.backends import reference
from gala_cuda.backends.contract import Weights, bit_words, channel_lanes, split_stats, stats_width

pytestmark = pytest.mark.skipif(bool(why_no_compiler()), reason=why_no_compiler() or "")

BF16, F16 = torch.bfloat16, torch.float16
SHARED_LIMIT = 227 << 10  # bytes a block, as on sm_90
FULL = {"bias": True, "residual": True, "map": True}


def opened(library: ctypes.CDLL) -> ctypes.CDLL:
    library.gala_why_not_in_cluster.restype = library.gala_forward_in_cluster.restype = c_char_p
    library.gala_cluster_workspace.restype = c_int64
    return library


@cache
def kernel() -> ctypes.CDLL:
    return opened(loaded(build("cluster", [*SHIM, CPP / "cluster.cpp", CUDA / "hopper" / "forward.cu"])))


class Call:
    """One forward: its tensors in guarded memory, and the structs that name them."""

    def __init__(self, problem: Problem, library: ctypes.CDLL):
        x, w, residual, squash, _, grad_map = problem
        n, c, height, width = x.shape
        reduced = w.w_shrink.shape[0]
        self.library, self.memory, self.reduced = library, Memory(library), reduced
        memory = self.memory
        self.out, self.stats = memory.like(x), memory.new(n, stats_width(height * width, c, reduced))
        self.map = None if grad_map is None else memory.new(n, height, width)
        self.bits = memory.new(n, height * width, bit_words(reduced), dtype=torch.int32)
        weights = Weights(*(memory.copy(None if t is None else t.float().contiguous()) for t in w))
        maps = (FeatureMap.of(t) for t in (memory.copy(x), memory.copy(residual), self.out))
        self.forward = Forward(
            *maps, *(None if t is None else t.data_ptr() for t in (self.map, self.stats, self.bits))
        )
        self.problem = NativeProblem(
            Shape(n, c, height * width, reduced),
            DTYPES[x.dtype],
            ("tanh", "sigmoid").index(squash),
            channel_lanes(x),
            WeightPointers.of(weights),
        )

    def why_not(self) -> str | None:
        self.library.shim_set_device(0, 132, 50 << 20, SHARED_LIMIT)
        reason = self.library.gala_why_not_in_cluster(byref(self.problem), byref(self.forward))
        return reason.decode() if reason else None

    def run(self, seed: int) -> dict[str, Tensor]:
        """The results by name; RuntimeError where the shim finds something wrong."""
        self.library.shim_set_device(seed, 132, 50 << 20, SHARED_LIMIT)
        nbytes = self.library.gala_cluster_workspace(byref(self.problem))
        workspace = self.memory.new(nbytes, dtype=torch.uint8, modulus=WORKSPACE_ALIGNMENT)
        execution = Execution(None, workspace.data_ptr(), False)
        error = self.library.gala_forward_in_cluster(byref(self.problem), byref(self.forward), byref(execution))
        if error:
            raise RuntimeError(error.decode())
        self.memory.check()
        stats = split_stats(self.stats, self.out.shape[1], self.reduced)._asdict()
        results = {"out": self.out, "map": self.map, "bits": self.bits, **stats}
        return {name: t.clone() for name, t in results.items() if t is not None}


def exact(problem: Problem) -> dict[str, Tensor]:
    """The same results in float64."""
    x, w, residual, squash, _, grad_map = problem
    doubled = Weights(*(None if t is None else t.double() for t in w))
    residual = None if residual is None else residual.double()
    out, amap, stats, bits = reference.forward(x.double(), doubled, residual, squash, grad_map is not None, True)
    saved = split_stats(stats, x.shape[1], w.w_shrink.shape[0])._asdict()
    return {"out": out, "bits": bits, **({} if grad_map is None else {"map": amap}), **saved}
