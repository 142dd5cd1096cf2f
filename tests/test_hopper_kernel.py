"""The forward pass in clusters, run on the host by `shim` in random orders of threads, blocks and bulk copies, against
float64."""

import ctypes
import hashlib
import re
import shutil
import subprocess
from ctypes import byref, c_char_p, c_int64
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from shim import CPP, CUDA, DTYPES, ROOT, SHIM, WORKSPACE_ALIGNMENT, Memory, build, counted, loaded, why_no_compiler
from structs import Execution, FeatureMap, Forward, Shape, WeightPointers
from structs import Problem as NativeProblem
from torch import Tensor

from gala_cuda.backends import reference
from gala_cuda.backends.interface import ForwardCall, Weights
from gala_cuda.backends.layout import is_channels_last
from gala_cuda.backends.saved import mask_words, split_stats, stats_width
from gala_cuda.backends.squash import SQUASHES
from gala_cuda.testing import Case, Problem, draw, tolerance

pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(why_no_compiler()), reason=why_no_compiler() or "")]

BF16, F16 = torch.bfloat16, torch.float16
SHARED_LIMIT = 227 << 10  # bytes a block, as on sm_90
TANH_APPROX = 2**-11
FULL: dict[str, Any] = {"bias": True, "residual": True, "map": True}


@cache
def kernel(source: Path = CUDA / "hopper" / "forward.cu") -> ctypes.CDLL:
    library = loaded(build("cluster", [source, *SHIM, CPP / "ctypes_cluster.cpp"]))
    library.gala_why_not_in_cluster.restype = library.gala_forward_in_cluster.restype = c_char_p
    library.gala_cluster_workspace.restype = c_int64
    return library


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
        self.relu_mask = memory.new(n, height * width, mask_words(reduced), dtype=torch.int32)
        weights = Weights._make(memory.copy(None if t is None else t.float().contiguous()) for t in w)
        maps = (FeatureMap.of(t) for t in (memory.copy(x), memory.copy(residual), self.out))
        self.forward = Forward(
            *maps, *(None if t is None else t.data_ptr() for t in (self.map, self.stats, self.relu_mask))
        )
        self.problem = NativeProblem(
            Shape(n, c, height * width, reduced),
            DTYPES[x.dtype],
            SQUASHES[squash],
            is_channels_last(x),
            WeightPointers.of(weights),
        )

    def why_not(self) -> str | None:
        self.library.shim_set_device(0, SHARED_LIMIT)
        reason = self.library.gala_why_not_in_cluster(byref(self.problem), byref(self.forward))
        return reason.decode() if reason else None

    def run(self, seed: int) -> dict[str, Tensor]:
        """The results by name; RuntimeError where the shim finds something wrong."""
        self.library.shim_set_device(seed, SHARED_LIMIT)
        nbytes = self.library.gala_cluster_workspace(byref(self.problem))
        workspace = self.memory.new(nbytes, dtype=torch.uint8, modulus=WORKSPACE_ALIGNMENT)
        execution = Execution(None, workspace.data_ptr(), False)
        error = self.library.gala_forward_in_cluster(byref(self.problem), byref(self.forward), byref(execution))
        if error:
            raise RuntimeError(error.decode())
        self.memory.check()
        stats = split_stats(self.stats, self.out.shape[1], self.reduced)._asdict()
        results = {"out": self.out, "map": self.map, "relu_mask": self.relu_mask, **stats}
        return {name: t.clone() for name, t in results.items() if t is not None}


def exact(problem: Problem) -> dict[str, Tensor]:
    """The same results in float64."""
    x, w, residual, squash, _, grad_map = problem
    doubled = Weights._make(None if t is None else t.double() for t in w)
    residual = None if residual is None else residual.double()
    call = ForwardCall(x.double(), doubled, residual, SQUASHES[squash], return_map=grad_map is not None, save=True)
    out, attn_map, stats, relu_mask = reference.forward(call)
    assert stats is not None
    saved = split_stats(stats, x.shape[1], w.w_shrink.shape[0])._asdict()
    return {"out": out, "relu_mask": relu_mask, **({} if grad_map is None else {"map": attn_map}), **saved}


def representable(problem: Problem) -> Problem:
    """Rounds v_shrink to x's dtype, as the product does, so that this rounding is no error of the results."""
    v = problem.w.v_shrink
    return problem._replace(w=problem.w._replace(v_shrink=v.to(problem.x.dtype).to(v.dtype)))


def wrong(got: dict[str, Tensor], problem: Problem, case: Case) -> list[str]:
    """The names of the results that are not as accurate as `tolerance` asks; relu_mask must be equal.

    The hardware's tanh, which serves bfloat16, errs by 2^-11 besides; a map of it is float32.
    """
    beyond = []
    for name, want in exact(problem).items():
        if name == "relu_mask":
            right = torch.equal(got[name], want)
        else:
            limit = tolerance(got[name].dtype, case.dtype, case.terms)
            if name == "map" and case.dtype == BF16 and case.squash == "tanh":
                limit += TANH_APPROX
            right = bool(((got[name].double() - want).abs() <= limit * want.abs().amax()).all())
        if not right:
            beyond.append(name)
    return beyond


CASES = {
    "one tile, as many pixels as blocks": Case((1, 64, 2, 4), 1, BF16, layout="channels_last"),
    "four pixels, blocks of one": Case((1, 64, 2, 2), 8, F16, layout="channels_last", **FULL),
    "odd pixels, R 19": Case((3, 64, 5, 5), 19, BF16, torch.float32, "channels_last", **FULL),
    "more tiles than stages": Case((1, 448, 3, 5), 33, F16, layout="channels_last", squash="sigmoid", **FULL),
    "two slices, the second shorter": Case((2, 320, 7, 5), 70, BF16, layout="channels_last", bias=True),
    "R 256": Case((1, 192, 7, 7), 256, BF16, layout="channels_last", map=True),
    "two passes over the weights": Case((1, 64, 25, 25), 40, F16, layout="channels_last", residual=True, map=True),
    "clusters of four": Case((17, 64, 3, 3), 5, BF16, layout="channels_last", **FULL),
    "slice along N": Case((2, 64, 4, 4), 16, F16, layout="channels_last/slice_n", **FULL),
    "cropped": Case((2, 64, 1, 9), 16, BF16, layout="channels_last", residual=True),
}


@pytest.mark.parametrize("name", CASES)
def test_results_match_float64(name):
    """With a seed of its own for each case."""
    case = CASES[name]
    problem = representable(draw(case))
    call = Call(problem, kernel())
    assert call.why_not() is None
    assert wrong(call.run(list(CASES).index(name)), problem, case) == []


@pytest.mark.parametrize("dtype", [BF16, F16], ids=str)
def test_the_order_of_threads_blocks_and_copies_does_not_matter(dtype):
    problem = draw(Case((2, 448, 5, 7), 36, dtype, layout="channels_last", **FULL))
    first = Call(problem, kernel()).run(0)
    for seed in range(1, 7):
        for name, value in Call(problem, kernel()).run(seed).items():
            assert torch.equal(value, first[name]), (name, seed)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_nan_and_infinity_go_where_the_reference_sends_them(value):
    problem = draw(Case((3, 64, 3, 3), 8, F16, layout="channels_last", **FULL))
    problem.x[1, 2, 1, 1] = value
    got, want = Call(problem, kernel()).run(1), exact(problem)
    assert torch.equal(got.pop("relu_mask"), want["relu_mask"])
    for name in got:
        assert torch.equal(got[name].isnan(), want[name].isnan()), name
        assert torch.equal(got[name].isinf(), want[name].isinf()), name


REFUSED = {
    "neither bfloat16 nor float16": Case((1, 64, 4, 4), 8, layout="channels_last"),
    "not channels_last": Case((1, 64, 4, 4), 8, BF16),
    "not a multiple of 64": Case((1, 96, 4, 4), 8, BF16, layout="channels_last"),
    "not between 1 and 256": Case((1, 64, 4, 4), 257, BF16, layout="channels_last"),
    "not aligned to 16 bytes": Case((1, 64, 4, 4), 8, BF16, layout="channels_last/misaligned"),
    "fewer pixels than": Case((1, 64, 1, 3), 8, BF16, layout="channels_last"),
    "does not fit into the shared memory": Case((1, 128, 90, 90), 8, BF16, layout="channels_last"),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_what_it_does_not_take_is_refused_with_the_reason(reason):
    call = Call(draw(REFUSED[reason]), kernel())
    assert reason in (call.why_not() or "")
    with pytest.raises(RuntimeError, match=reason):
        call.run(0)


class Mutant(NamedTuple):
    file: str  # in csrc/cuda/hopper
    old: str
    new: str
    found: str  # a pattern in the error, or in the list of results that are wrong


MUTANTS = {
    "no fence before the products": Mutant(
        "local_path.cuh", "products_begin();", "", "without having begun a group of products"
    ),
    "products not waited for": Mutant("local_path.cuh", "products_wait(sums);", "", "wrong: .*'s'"),
    "the weights' phase awaited with the wrong parity": Mutant(
        "local_path.cuh",
        "block.full + ring.stage, ring.parity",
        "block.full + ring.stage, !ring.parity",
        "nothing was|in vain",
    ),
    "a stage refilled with the wrong parity": Mutant(
        "local_path.cuh",
        "block.empty + ring.stage, ring.parity",
        "block.empty + ring.stage, !ring.parity",
        "arrives once more",
    ),
    "a phase that expects too few bytes": Mutant(
        "local_path.cuh",
        "full + stage, kTileBytes<padded>)",
        "full + stage, bytes)",
        "was to have .* bytes less|nothing was written",
    ),
    "a stage given back to one block only": Mutant(
        "local_path.cuh",
        "if (lane() < p.cluster) arrive_at(block.empty",
        "if (lane() < 1) arrive_at(block.empty",
        "in vain",
    ),
    "rows beyond the block's last": Mutant(
        "local_path.cuh",
        "lesser(row + lane() % 16, block.rows.size() - 1)",
        "row + lane() % 16",
        "nothing was|bytes at",
    ),
    "another swizzle": Mutant("forward.cu", "vector ^ row % 8", "vector ^ row % 4", "wrong: .*'s'"),
    "no cluster barrier before the first access": Mutant(
        "forward.cu", "  cluster_barrier();\n    if (warp()", "  block_barrier();\n    if (warp()", "not made"
    ),
    "no cluster barrier before the block ends": Mutant(
        "forward.cu", "cluster_barrier();  // the last", "block_barrier();  // the last", "wrong: .*'out'|has ended"
    ),
    "peers' sums read too early": Mutant(
        "global_path.cuh", "meet_peers(p, block, 1)", "meet_peers(p, block, 0)", "in vain|wrong: "
    ),
}


# of one dtype and one hidden width, to compile faster
FEWER = (
    ("padded == 64 ? image_kernel<T, 64> : padded == 128 ? image_kernel<T, 128> : ", "padded != 64 ? nullptr : "),
    ("image_kernel<T, 256>", "image_kernel<T, 64>"),
    ("run<f16>", "run<bf16>"),
)


def planted(mutant: Mutant) -> Path:
    """The kernel's source in a copy of `csrc` that has the fault."""
    texts = {path.name: path.read_text() for path in (CUDA / "hopper").iterdir()}
    edits = [(mutant.file, mutant.old, mutant.new), *(("forward.cu", *edit) for edit in FEWER)]
    for file, old, new in edits:
        assert texts[file].count(old) == 1, f"{file} has changed: {old!r} is not in it once"
        texts[file] = texts[file].replace(old, new)
    name = hashlib.sha256("".join(texts.values()).encode()).hexdigest()[:16]
    copy = ROOT / "build" / "shim" / "mutants" / name / "csrc"
    shutil.copytree(CUDA, copy / "cuda", dirs_exist_ok=True)
    shutil.copy(CUDA.parent / "gala.h", copy)
    for file, text in texts.items():
        (copy / "cuda" / "hopper" / file).write_text(text)
    return copy / "cuda" / "hopper" / "forward.cu"


@pytest.mark.parametrize("name", MUTANTS)
def test_a_planted_fault_is_found(name):
    """In at least one of some orders; in the others there may be no fault to see."""
    case = Case((1, 448, 5, 5), 19, BF16, layout="channels_last", **FULL)
    problem = representable(draw(case))
    library = kernel(planted(MUTANTS[name]))
    outcomes = []
    for seed in (1, 2, 3, 6):
        try:
            outcomes.append(f"wrong: {wrong(Call(problem, library).run(seed), problem, case)}")
        except RuntimeError as error:
            outcomes.append(str(error))
    found = [outcome for outcome in outcomes if outcome != "wrong: []"]
    assert found
    assert all(re.search(MUTANTS[name].found, outcome) for outcome in found), found


@pytest.mark.parametrize("reduced", [40, 200])
def test_bank_conflicts(reduced):
    """There are none but where pooled sums and gates are accessed, of which each lane holds eight neighbours."""
    problem = draw(Case((1, 320, 8, 8), reduced, BF16, layout="channels_last", **FULL))
    found = counted(kernel(), lambda: Call(problem, kernel()).run(1))
    assert "image_kernel" in {one.kernel for one in found}
    conflicts = {one.place.split(":")[0]: one.conflicts / one.accesses for one in found if one.conflicts}
    assert conflicts == {"forward.cu": 4, "global_path.cuh": 4}


@pytest.mark.parametrize("seed", [1, 2])
def test_there_is_no_race(seed):
    """With two slices of channels, and hidden units that do not fill whole words of the ReLU mask."""
    sources = [*SHIM, CPP / "cluster_races.cpp", CUDA / "hopper" / "forward.cu"]
    program = build("cluster_races", sources, races=True)
    arguments = (1, 320, 9, 19, seed)
    done = subprocess.run([program, *map(str, arguments)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
