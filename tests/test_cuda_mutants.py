"""Faults planted in the sources of the CUDA kernels: the host shim or a comparison with PyTorch finds each of them."""

import hashlib
import shutil
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from shim import CUDA, ROOT, Shim, kernels, why_no_compiler

from gala_cuda import backends
from gala_cuda.testing import Case, composite, draw, operator, results

pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(why_no_compiler()), reason=why_no_compiler() or "")]


class Mutant(NamedTuple):
    unit: str  # the source that is compiled anew
    file: str  # where in it or in what it includes
    old: str
    new: str
    found: str  # in the error, or the first result that is wrong


MUTANTS = {
    "a wait for one group too few": Mutant(
        "gather.cu",
        "tile.cuh",
        "stages == 3 ? copy_wait<1>()",
        "stages == 3 ? copy_wait<2>()",
        "nothing was written to",
    ),
    "no barrier after the wait": Mutant(
        "gather.cu", "tile.cuh", "block_barrier();  // the step's", "// the step's", "nothing was written to"
    ),
    "a pixel too many": Mutant(
        "gather.cu", "gather.cu", "p.rows - first_row : rows", "p.rows - first_row + 1 : rows", "outside device memory"
    ),
    "an element too many": Mutant("sums.cu", "sums.cu", "row >= sum.rows", "row > sum.rows", "outside device memory"),
    "halves of the left operand swapped": Mutant(
        "gather.cu", "fragment.cuh", "row + half * 8, k * 2, quarter)", "row + quarter * 8, k * 2, half)", "wrong: out"
    ),
    "the neighbouring fragment column": Mutant(
        "local_grads.cu", "local_grads.cu", "+ lane() % 4 * 2;", "+ (lane() + 1) % 4 * 2;", "wrong: grad v_shrink"
    ),
    "sums of the warps read too early": Mutant(
        "gather.cu", "gather.cu", "  block_barrier();\n  const int row", "  const int row", "wrong: out"
    ),
    "a tile stored too early": Mutant(
        "grad_x.cu", "grad_x.cu", "  block_barrier();\n  store_tile", "  store_tile", "wrong: grad x"
    ),
    "a barrier that only some threads reach": Mutant(
        "local_grads.cu",
        "local_grads.cu",
        "  block_barrier();\n  const int index",
        "  if (warp() > 0) block_barrier();\n  const int index",
        "wait for others in vain",
    ),
}


CASE = Case((2, 72, 7, 5), 36, torch.bfloat16, layout="channels_last", bias=True, map=True)


def planted(mutant: Mutant) -> Path:
    """The path of the unit in a copy of `csrc` that has the fault."""
    text = (CUDA / mutant.file).read_text()
    assert text.count(mutant.old) == 1, f"{mutant.file} has changed: {mutant.old!r} is not in it once"
    faulty = text.replace(mutant.old, mutant.new)
    copy = ROOT / "build" / "shim" / "mutants" / hashlib.sha256(faulty.encode()).hexdigest()[:16] / "csrc"
    shutil.copytree(CUDA, copy / "cuda", dirs_exist_ok=True)
    shutil.copy(CUDA.parent / "gala.h", copy)
    (copy / "cuda" / mutant.file).write_text(faulty)
    return copy / "cuda" / mutant.unit


@pytest.mark.parametrize("name", MUTANTS)
def test_a_planted_fault_is_found(name, monkeypatch):
    mutant, problem = MUTANTS[name], draw(CASE)
    instead = planted(mutant)
    kernels(instead)
    monkeypatch.setitem(backends.BACKENDS, "cuda", Shim(seed=3, instead=instead))
    try:
        got = results(operator("cuda"), problem)
    except RuntimeError as error:
        outcome = str(error)
    else:
        want = results(composite, problem)
        close = {n: torch.allclose(t, want[n], rtol=0.1, atol=0.1 * want[n].abs().amax()) for n, t in got.items()}
        outcome = "wrong: " + ", ".join(n for n in got if not close[n])
    assert mutant.found in outcome
