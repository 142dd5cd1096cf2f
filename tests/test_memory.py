"""Private memory: nothing is read before it is written, nothing is written outside an output, no input is changed."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from gala_cuda import backends
from gala_cuda.backends.interface import BackwardCall, ForwardCall, Weights
from gala_cuda.backends.squash import SQUASHES
from gala_cuda.testing import Case, Problem, draw, laid_out, operator, results

FLANK = 256  # bytes on either side of each output
POISON = 0xFF  # NaN in every floating dtype, -1 in int32

CASES = [
    pytest.param(Case((2, 16, 4, 4), 4), id="round"),
    pytest.param(Case((3, 37, 5, 3), 33, layout="channels_last", bias=True, residual=True, map=True), id="odd"),
    pytest.param(
        Case((2, 19, 3, 7), 5, torch.float64, layout="contiguous/misaligned", squash="sigmoid", residual=True),
        id="fp64-misaligned",
    ),
    pytest.param(Case((2, 21, 5, 5), 70, torch.bfloat16, layout="channels_last/slice_c", bias=True), id="bf16-slice"),
    pytest.param(
        Case((2, 17, 3, 5), 9, torch.float16, torch.float32, "channels_last/misaligned", residual=True, map=True),
        id="fp16-misaligned",
    ),
    pytest.param(Case((4, 13, 1, 7), 3, torch.bfloat16, layout="contiguous/slice_n", map=True), id="bf16-slice_n"),
    pytest.param(Case((1, 1, 1, 1), 1, bias=True, residual=True, map=True), id="one-of-everything"),
    pytest.param(Case((1, 130, 13, 11), 31, layout="contiguous/slice_c", residual=True), id="large-slice"),
]


class Guarded(TorchDispatchMode):
    """Gives every fresh tensor poisoned memory inside poisoned flanks, those of the compiled extension too."""

    factories = (
        torch.ops.aten.empty.memory_format,
        torch.ops.aten.empty_like.default,
        torch.ops.aten.empty_strided.default,
        torch.ops.aten.new_empty.default,
        torch.ops.aten.new_empty_strided.default,
    )

    def __init__(self):
        super().__init__()
        self.memory: list[tuple[torch.Tensor, int]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func.namespace == "gala_native":
            with self:  # the kernel itself, so that this mode sees what it allocates
                return func._op_dk(torch._C.DispatchKey.CPU, *args, **kwargs)
        result = func(*args, **kwargs)
        if func not in self.factories:
            return result
        size = result.untyped_storage().nbytes()
        memory = torch.full((size + 2 * FLANK,), POISON, dtype=torch.uint8)
        self.memory.append((memory, size))
        body = memory[FLANK : FLANK + size].view(result.dtype)
        return body.as_strided(result.shape, result.stride(), body.storage_offset())

    def intact(self) -> bool:
        return all((m[:FLANK] == POISON).all() and (m[FLANK + size :] == POISON).all() for m, size in self.memory)


def stages(problem: Problem, backend: str):
    """Both stages of the backend, as the operator calls them: every output that it allocates."""
    module, x, w, squash = backends.BACKENDS[backend], problem.x, problem.w, SQUASHES[problem.squash]
    with_map = problem.grad_map is not None
    out, attn_map, stats, relu_mask = module.forward(ForwardCall(x, w, problem.residual, squash, with_map, True))
    kept = None if problem.residual is None else out
    call = BackwardCall(problem.grad_out, problem.grad_map, x, w, kept, stats, relu_mask, squash, True, True)
    grad_x, grad_w, grad_residual = module.backward(call)
    return {
        **{
            "out": out,
            "map": attn_map,
            "stats": stats,
            "relu_mask": relu_mask,
            "grad x": grad_x,
            "grad residual": grad_residual,
        },
        **grad_w._asdict(),
    }


@pytest.mark.parametrize("case", CASES)
def test_outputs_are_written_completely_and_nothing_beside_them(backend, case):
    """``draw`` has put NaN between and around the elements of x and of the residual, too."""
    problem = draw(case)
    want = stages(problem, backend)
    with Guarded() as guard:
        got = stages(problem, backend)
    assert guard.memory
    assert guard.intact()
    for name, value in got.items():
        if value is not None:
            assert torch.equal(value, want[name]), name
            assert value.isfinite().all(), name


@pytest.mark.parametrize("case", CASES)
def test_torchs_uninitialised_memory_is_not_read(backend, case):
    """The whole operator, with torch filling each fresh tensor with NaN."""
    problem = draw(case)
    want = results(operator(backend), problem)
    assert torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    try:
        assert torch.empty(3).isnan().all()
        got = results(operator(backend), problem)
    finally:
        torch.use_deterministic_algorithms(False)
    for name, value in got.items():
        assert torch.equal(value, want[name]), name


@pytest.mark.parametrize("case", CASES)
def test_nothing_is_left_over_from_an_earlier_call(backend, case):
    """A larger call on NaN leaves NaN in whatever workspace a backend keeps; a fresh one follows it bitwise."""
    problem = draw(case)
    want = results(operator(backend), problem)
    n, c, height, width = case.shape
    larger = draw(case._replace(shape=(n, c + 40, height + 3, width + 2), reduced=case.reduced + 20))
    for t in (larger.x, larger.grad_out, *(t for t in larger.w if t is not None)):
        t.fill_(torch.nan)
    assert results(operator(backend), larger)["out"].isnan().all()
    for name, value in results(operator(backend), problem).items():
        assert torch.equal(value, want[name]), name


@pytest.mark.parametrize("case", CASES)
def test_inputs_are_left_as_they_were(backend, case):
    """The bits of their whole memory: elements, gaps and flanks."""
    problem = draw(case)
    inputs = [t for t in (problem.x, *problem.w, problem.residual, problem.grad_out, problem.grad_map) if t is not None]

    def memory(t):
        return torch.empty(0, dtype=torch.uint8).set_(t.untyped_storage())

    before = [memory(t).clone() for t in inputs]
    results(operator(backend), problem)
    for t, kept in zip(inputs, before, strict=True):
        assert torch.equal(memory(t), kept)


def test_misaligned_weights_and_gradients(backend):
    """Every pointer one element past an aligned one."""
    problem = draw(Case((2, 18, 3, 5), 7, bias=True, residual=True, map=True))

    def shifted(t):
        return None if t is None else torch.cat([t.new_full((1,), torch.nan), t.flatten()])[1:].view(t.shape)

    moved = Problem(
        laid_out(problem.x, "contiguous/misaligned"),
        Weights(*map(shifted, problem.w)),
        laid_out(problem.residual, "contiguous/misaligned"),
        problem.squash,
        laid_out(problem.grad_out, "contiguous/misaligned"),
        shifted(problem.grad_map),
    )
    want = results(operator(backend), problem)
    for name, value in results(operator(backend), moved).items():
        torch.testing.assert_close(value, want[name], rtol=1e-5, atol=1e-5, msg=name)
