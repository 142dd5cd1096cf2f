"""How much memory the Triton kernels access: bytes loaded and stored of each tensor, counted in the interpreter."""

import numpy as np
import pytest
import torch
from test_triton import DEVICE

from gala_cuda.backends import triton as backend
from gala_cuda.backends.interface import BackwardCall, ForwardCall
from gala_cuda.backends.squash import SQUASHES, Squash
from gala_cuda.testing import Case, draw

pytest.importorskip("triton", reason="Triton is not installed")
if DEVICE == "cuda":
    pytest.skip("bytes are counted in Triton's interpreter, which is off where there is a GPU", allow_module_level=True)

from triton.runtime.interpreter import InterpreterBuilder

pytestmark = pytest.mark.slow

SHAPE, REDUCED = (4, 256, 14, 14), 64


class Meter:
    """The addresses and sizes of all elements that are loaded and stored."""

    def __init__(self, monkeypatch):
        self.seen: dict[str, list[tuple[np.ndarray, int]]] = {"loaded": [], "stored": []}
        load, store = InterpreterBuilder.create_masked_load, InterpreterBuilder.create_masked_store

        def counting_load(builder, ptrs, mask, *rest, **options):
            self._see("loaded", ptrs, mask)
            return load(builder, ptrs, mask, *rest, **options)

        def counting_store(builder, ptrs, value, mask, *rest, **options):
            self._see("stored", ptrs, mask)
            return store(builder, ptrs, value, mask, *rest, **options)

        monkeypatch.setattr(InterpreterBuilder, "create_masked_load", counting_load)
        monkeypatch.setattr(InterpreterBuilder, "create_masked_store", counting_store)

    def _see(self, kind: str, ptrs, mask) -> None:
        size = ptrs.get_element_ty().primitive_bitwidth // 8
        self.seen[kind].append((ptrs.data[mask.data.astype(bool)], size))

    def times(self, kind: str, t: torch.Tensor) -> float:
        """How many times each element of t was loaded or stored on average."""
        begin, end = t.data_ptr(), t.data_ptr() + t.numel() * t.element_size()
        return sum(int(((at >= begin) & (at < end)).sum()) for at, _ in self.seen[kind]) / t.numel()

    def bytes(self, kind: str) -> int:
        return sum(at.size * size for at, size in self.seen[kind])

    def print(self, title: str, x: torch.Tensor, tensors: dict[str, torch.Tensor]) -> None:
        print(f"\n{title}\n{'times each is':14} {'loaded':>7} {'stored':>7}")
        for name, t in tensors.items():
            print(f"{name:14} {self.times('loaded', t):7.2f} {self.times('stored', t):7.2f}")
        rest = {
            kind: self.bytes(kind) - sum(self.times(kind, t) * t.nbytes for t in tensors.values()) for kind in self.seen
        }
        print(f"{'weights, sums':14} {rest['loaded'] / x.nbytes:7.2f} {rest['stored'] / x.nbytes:7.2f}  in sizes of x")


@pytest.fixture
def meter(monkeypatch) -> Meter:
    return Meter(monkeypatch)


@pytest.mark.parametrize("layout", ["channels_last", "contiguous"])
@pytest.mark.parametrize("residual", [False, True], ids=["plain", "residual"])
def test_forward_reads_x_twice_and_writes_out_once(layout, residual, meter, capsys):
    problem = draw(Case(SHAPE, REDUCED, torch.bfloat16, layout=layout, residual=residual))
    out, _, stats, relu_mask = backend.forward(
        ForwardCall(problem.x, problem.w, problem.residual, Squash.TANH, False, True)
    )
    tensors = {"x": problem.x, "out": out, "stats": stats, "relu_mask": relu_mask}
    if residual:
        tensors["residual"] = problem.residual
    with capsys.disabled():
        meter.print(f"forward, {layout}", problem.x, tensors)
    assert meter.times("loaded", problem.x) <= 2.05
    assert meter.times("stored", out) == 1
    assert meter.times("loaded", out) == meter.times("stored", problem.x) == 0
    assert meter.times("stored", relu_mask) == meter.times("stored", stats) == 1
    if residual:
        assert meter.times("loaded", problem.residual) == 1


def test_more_hidden_units_than_a_tile_holds_cost_a_reading_of_x_each(meter):
    """At R = 512 the hidden layer takes two passes over a tile of x, the second from the L2 cache.

    One pass would need tiles of so few rows that reading the weights for each would cost more.
    """
    problem = draw(Case((1, 64, 7, 7), 512, torch.bfloat16, layout="channels_last"))
    out, *_ = backend.forward(ForwardCall(problem.x, problem.w, None, Squash.TANH, False, True))
    assert meter.times("loaded", problem.x) == 3
    assert meter.times("stored", out) == 1


@pytest.mark.parametrize("layout", ["channels_last", "contiguous"])
@pytest.mark.parametrize("residual", [False, True], ids=["plain", "residual"])
def test_backward_reads_x_and_the_gradient_twice_and_writes_once(layout, residual, meter, capsys):
    problem = draw(Case(SHAPE, REDUCED, torch.bfloat16, layout=layout, residual=residual))
    x, w, shortcut, squash, grad_out, _ = problem
    squash = SQUASHES[squash]
    out, _, stats, relu_mask = backend.forward(ForwardCall(x, w, shortcut, squash, return_map=False, save=True))
    meter.seen = {"loaded": [], "stored": []}
    saved_out = out if residual else None
    call = BackwardCall(grad_out, None, x, w, saved_out, stats, relu_mask, squash, True, True)
    grad_x, _, grad_residual = backend.backward(call)
    tensors = {"x": x, "grad_out": grad_out, "grad_x": grad_x, "stats": stats, "relu_mask": relu_mask}
    if residual:
        tensors |= {"out": out, "grad_residual": grad_residual}
    with capsys.disabled():
        meter.print(f"backward, {layout}", x, tensors)
    assert meter.times("loaded", x) == 2
    assert meter.times("stored", grad_x) == 1
    assert meter.times("loaded", grad_x) == 0
    assert meter.times("loaded", grad_out) == (1 if residual else 2)
    if residual:
        assert (
            meter.times("loaded", out)
            == meter.times("stored", grad_residual)
            == meter.times("loaded", grad_residual)
            == 1
        )
