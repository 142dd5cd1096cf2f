"""The host shim itself: its instructions agree with CuTe's layouts, and it finds faults planted in small kernels."""

import ctypes
import subprocess
from ctypes import c_char_p, c_int, c_uint32, c_void_p

import numpy as np
import pytest
import torch
from layouts import places
from shim import CPP, KERNELS, SHIM, Memory, build, counted, loaded, why_no_compiler

pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(why_no_compiler()), reason=why_no_compiler() or "")]

SEEDS = range(50)
ROWS, DEPTH = 90, 200
POISON = 0xFFDBFFDB
LANE = np.arange(32)
OPERANDS = (torch.bfloat16, torch.float16, torch.float32)  # in the order of instructions.cu; the last as TF32


@pytest.fixture(scope="module")
def library() -> ctypes.CDLL:
    library = loaded(build("samples", [*SHIM, CPP / "samples.cu", CPP / "instructions.cu"]))
    pointers = {
        "sample_product": 4,
        "run_load_matrix": 2,
        "run_multiply": 3,
        "run_copies": 2,
        "run_exchange": 2,
        "run_strided": 0,
    }
    for name, count in pointers.items():
        numbers = {"sample_product": 3, "run_load_matrix": 2, "run_multiply": 1, "run_strided": 2}.get(name, 0)
        function = getattr(library, name)
        function.restype, function.argtypes = c_char_p, [c_void_p] * count + [c_int] * numbers
    library.shim_set_device(2, 99 << 10)
    return library


def run(library: ctypes.CDLL, name: str, *arguments: np.ndarray | int) -> list[np.ndarray]:
    """Calls the function `name` with the arrays in memory that the shim guards; returns the arrays afterwards."""
    memory = Memory(library)
    tensors = [memory.new(*a.shape, dtype=torch.from_numpy(a).dtype) for a in arguments if isinstance(a, np.ndarray)]
    for t, a in zip(tensors, arguments, strict=False):
        t.copy_(torch.from_numpy(a))
    numbers = [a for a in arguments if not isinstance(a, np.ndarray)]
    error = getattr(library, name)(*(t.data_ptr() for t in tensors), *numbers)
    assert error is None, error.decode()
    memory.check()
    return [t.numpy().copy() for t in tensors]


@pytest.mark.parametrize("transposed", [False, True])
def test_load_matrix(transposed, library):
    """With rows that do not follow each other in shared memory."""
    halves = np.random.default_rng(0).integers(1, 2**15, (32, 8)).astype(np.int16)
    rows, pitch = halves.view(np.int32), 12
    _, registers = run(library, "run_load_matrix", rows, np.zeros((32, 4), np.int32), pitch, int(transposed))
    want = halves.reshape(-1)[places("load_matrix_transposed" if transposed else "load_matrix")]
    np.testing.assert_array_equal(registers, np.ascontiguousarray(want).view(np.int32))


def held(name: str, matrix: torch.Tensor) -> np.ndarray:
    """The lanes' parts of the matrix, [32, words]; the layout counts its places down the columns."""
    values = matrix.T.contiguous().view(-1)[torch.from_numpy(places(name))]
    return (values.view(torch.int32) if values.itemsize == 2 else values).numpy()


@pytest.mark.parametrize("dtype", OPERANDS, ids=["bf16", "f16", "tf32"])
def test_multiply(dtype, library):
    generator = torch.Generator().manual_seed(0)
    depth = 8 if dtype == torch.float32 else 16
    a, b = (torch.randn(shape, generator=generator).to(dtype) for shape in ((16, depth), (depth, 8)))
    c = torch.randn(16, 8, generator=generator)
    operands = [held(f"mma {depth} {name}", t).view(np.int32) for name, t in (("a", a), ("b", b.T), ("d", c))]
    *_, got = run(library, "run_multiply", *operands[:2], operands[2].view(np.float32), OPERANDS.index(dtype))
    if dtype == torch.float32:  # what the hardware reads of it
        a, b = ((t.view(torch.int32) & ~0x1FFF).view(torch.float32) for t in (a, b))
    want = torch.from_numpy(held(f"mma {depth} d", a.double() @ b.double() + c))
    got = torch.from_numpy(got).double()
    assert ((got - want).abs() / want.abs()).max() < 2**-23
    assert (got.abs() <= want.abs() * (1 + 2**-40)).all(), "rounded away from zero"


def test_copies_happen_at_their_wait(library):
    """Until then the destination is poisoned. Where nothing is to be copied there are zeros, and nothing is read."""
    values = np.arange(1, 129, dtype=np.int32).reshape(32, 4)
    _, seen = run(library, "run_copies", values, np.zeros((4, 32, 4), np.int32))
    values[16:] = 0
    for when, done in enumerate((0, 1, 2, 4)):
        np.testing.assert_array_equal(seen[when, :, :done], values[:, :done])
        assert (seen[when, :, done:].view(np.uint32) == POISON).all()


def test_shuffles_and_ballot(library):
    values = np.random.default_rng(0).integers(0, 1000, 32).astype(np.int32)
    _, got = run(library, "run_exchange", values, np.zeros((4, 32), np.int32))
    down = np.where(LANE + 3 < 32, LANE + 3, LANE)
    ballot = np.int64(((values % 2) << LANE.astype(np.int64)).sum()).astype(np.int32)
    for row, want in zip(got, (values[LANE ^ 5], values[down], values[7], ballot), strict=True):
        np.testing.assert_array_equal(row, np.broadcast_to(want, 32))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_every_16_bit_number(dtype, library):
    bits = np.arange(2**16, dtype=np.uint16)
    got = np.empty(2**16, np.float32)
    library.widen_halves(c_void_p(bits.ctypes.data), c_void_p(got.ctypes.data), 2**16, int(dtype == torch.bfloat16))
    want = torch.from_numpy(bits.view(np.int16)).view(dtype).float().numpy()
    np.testing.assert_array_equal(got, want)


def test_rounding(library):
    """To nearest, ties to even; to TF32 ties away from zero. The approximate tanh errs, and by no more than 2^-11."""
    patterns = np.random.default_rng(0).integers(0, 2**32, 200_000, dtype=np.uint64).astype(np.uint32)
    halfway = np.arange(0x38000000, 0x48000000, 0x1000, dtype=np.uint32)
    values = torch.from_numpy(np.concatenate([patterns, halfway]).view(np.float32))
    values = torch.cat([values, torch.tensor([0.0, -0.0, torch.inf, -torch.inf, 65519.9, 65520.0, 3.4e38, 1e-8])])
    count = values.numel()
    bf16s, f16s = (torch.empty(count, dtype=dtype) for dtype in (torch.bfloat16, torch.float16))
    tf32s, tanhs = torch.empty(count), torch.empty(count)
    library.round_values(*(c_void_p(t.data_ptr()) for t in (values, bf16s, f16s, tf32s, tanhs)), count)
    for got in (bf16s, f16s):
        torch.testing.assert_close(got, values.to(got.dtype), rtol=0, atol=0, equal_nan=True)
    finite = values.isfinite() & (values.abs() < 3.3e38)
    bits = values[finite].view(torch.int32).to(torch.int64)
    want = ((bits + 0x1000) & ~0x1FFF).to(torch.int32).view(torch.float32)
    assert torch.equal(tf32s[finite], want)
    assert torch.equal(tf32s.isnan(), values.isnan())
    exact = torch.tanh(values[finite].double())
    error = ((tanhs[finite].double() - exact).abs() / exact.abs().clamp(min=2.0**-126)).max()
    assert 2**-12 < error <= 2**-11 * (1 + 1e-6)


def test_bit_tricks(library):
    for name in ("signs_of_bytes", "high_product"):
        getattr(library, name).restype = c_uint32
    low, high = 0x80FF7F01, 0x017F80FF
    assert [library.signs_of_bytes(c_uint32(low), c_uint32(high), i) for i in range(4)] == [
        0xFFFF0000,
        0xFFFF0000,
        0x0000FFFF,
        0x0000FFFF,
    ]
    assert library.high_product(c_uint32(0xFFFFFFFF), c_uint32(0x12345678)) == 0x12345677


@pytest.mark.parametrize(("pitch", "conflicts"), [(4, 0), (12, 0), (8, 4), (16, 12), (32, 28)])
def test_bank_conflicts_of_matrices(pitch, conflicts, library):
    """Each of four matrices has eight rows of 16 bytes, `pitch` words apart, so that 2, 4 or 8 rows meet in a bank."""
    rows = np.ones((32, 4), np.int32)
    found = counted(library, lambda: run(library, "run_load_matrix", rows, rows, pitch, 0))
    assert [(b.kernel, b.accesses, b.conflicts) for b in found] == [("load_matrix", 1, conflicts)]


@pytest.mark.parametrize(
    ("size", "stride", "conflicts"),
    [
        *((2, 2, 0), (2, 4, 0), (2, 128, 31)),
        *((4, 4, 0), (4, 0, 0), (4, 8, 1), (4, 128, 31), (4, 132, 0)),
        *((8, 8, 0), (8, 16, 2)),
        *((16, 16, 0), (16, 32, 4), (16, 48, 0), (16, 128, 28)),
    ],
)
def test_bank_conflicts_of_loads_and_stores(size, stride, conflicts, library):
    """Lanes' values of `size` bytes, `stride` bytes apart; all at the same place are no conflict."""
    found = counted(library, lambda: run(library, "run_strided", size, stride))
    assert [(b.accesses, b.conflicts) for b in found] == [(1, conflicts)] * 2


# the number of the fault in samples.cu, and what the error says; None where the result is wrong
FAULTS = {
    "no barrier after the wait": (1, "nothing was written to"),
    "wait for too few groups": (3, "nothing was written to"),
    "wrong fragment column": (4, None),
    "wrong order of matrices": (5, None),
    "reads a row too many": (6, "outside device memory"),
    "writes a row too many": (7, "outside device memory"),
    "shared memory too short": (8, "bytes into shared memory"),
    "reads past the end without a primitive": (9, None),
    "misaligned copy": (10, "not aligned to 16"),
    "rows not filled": (11, "nothing was written to"),
    "divergent barrier": (12, "is not where others of its block wait"),
    "divergent shuffle": (13, "wait for others in vain"),
    "a thread ends before a barrier": (14, "wait for others in vain"),
    "zeros copied from a misaligned address": (16, "copies zeros from an address that is not aligned to 16"),
    "copies not waited for": (15, "asynchronous copies that it has not waited for"),
}
NO_BARRIER_BEFORE_REFILL = 2


def outcome(library: ctypes.CDLL, seed: int, fault: int) -> str | None:
    """What the sample ends with: its error, "wrong" where only its result is wrong, or None where all is well."""
    generator = torch.Generator().manual_seed(0)
    memory = Memory(library)
    x, w = (memory.copy(torch.randn(n, DEPTH, generator=generator).bfloat16()) for n in (ROWS, 8))
    out, sums = memory.new(ROWS, 8), memory.new(ROWS)
    library.shim_set_device(seed, 99 << 10)
    error = library.sample_product(*(t.data_ptr() for t in (x, w, out, sums)), ROWS, DEPTH, fault)
    if error:
        return error.decode()
    want = x.float() @ w.float().T
    right = torch.allclose(out, want, atol=1e-3) and torch.allclose(sums, want.sum(1), atol=1e-3)
    return None if right else "wrong"


def test_without_a_fault_every_order_passes(library):
    assert [outcome(library, seed, 0) for seed in SEEDS] == [None] * len(SEEDS)


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_caught_in_every_order(name, library):
    fault, message = FAULTS[name]
    for seed in SEEDS:
        found = outcome(library, seed, fault)
        assert found is not None, seed
        assert (message or "wrong") in found


def test_a_buffer_refilled_too_early_is_caught_in_most_orders(library):
    """It is in orders in which one warp gets ahead of the other. ThreadSanitizer finds it in any order, see below."""
    caught = sum(outcome(library, seed, NO_BARRIER_BEFORE_REFILL) is not None for seed in SEEDS)
    assert caught > 0.7 * len(SEEDS)


def test_writes_beside_a_tensor_are_found(library):
    memory = Memory(library)
    t = memory.new(3, dtype=torch.int16)
    ctypes.memset(t.data_ptr() + 6, 0, 1)
    with pytest.raises(RuntimeError, match=r"written beside a tensor \(3,\)"):
        memory.check()


@pytest.fixture(scope="module")
def races():
    """Runs the program that ThreadSanitizer watches; returns its output where it has found something, else None."""
    try:
        program = build("races", [*SHIM, CPP / "races.cpp", CPP / "samples.cu", *KERNELS], races=True)
    except RuntimeError as error:
        if "tsan" not in str(error):
            raise
        pytest.skip(f"the compiler has no ThreadSanitizer: {str(error).splitlines()[-1]}")

    def call(*arguments: object) -> str | None:
        command = [program, *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True)
        if "unexpected memory mapping" in done.stderr:  # older sanitizers bear less randomness of addresses
            done = subprocess.run(["setarch", "-R", *command], capture_output=True, text=True)
        return done.stderr or f"exit status {done.returncode}" if done.returncode else None

    return call


def test_races_of_the_samples_are_found(races):
    """They are reported with file and line, even that of a sum without atomics, which is right in every order here."""
    assert races("product", 0) is None
    assert races("sum", 0) is None
    assert "data race" in races("product", NO_BARRIER_BEFORE_REFILL)
    found = races("sum", 1)
    assert "data race" in found
    assert "samples.cu" in found


@pytest.mark.parametrize(
    ("shape", "dtype", "channels_last"),
    [
        pytest.param((2, 40, 35, 5), 0, 1, id="float32-channels_last"),
        pytest.param((2, 8, 35, 33), 1, 0, id="bfloat16-contiguous"),
        pytest.param((2, 24, 40, 5), 2, 1, id="float16-channels_last"),
    ],
)
def test_the_kernels_have_no_race(shape, dtype, channels_last, races):
    """Shapes are images, channels, pixels, reduced width; small, as each CUDA thread costs a third of a millisecond."""
    assert races("kernels", *shape, dtype, channels_last) is None
