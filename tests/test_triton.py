"""The Triton kernels against float64, in Triton's interpreter where there is no GPU; their plans and their choice."""

import json
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from gala_cuda import backends
from gala_cuda.backends import reference
from gala_cuda.backends import triton as backend
from gala_cuda.backends.interface import ForwardCall, Weights, weight_shapes
from gala_cuda.backends.saved import mask_words, split_stats
from gala_cuda.backends.squash import Squash
from gala_cuda.testing import Case, Problem, assert_accurate, composite, draw, exact, operator, results

pytest.importorskip("triton", reason="Triton is not installed")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

from gala_cuda.backends.triton import assembler, kept, launch  # noqa: E402
from gala_cuda.backends.triton.config import Multiprocessors  # noqa: E402

SMALL = {
    "gather": {"ROWS": 16, "DEPTH": 16, "REDUCED": 32, "warps": 4, "stages": 2},
    "scale": {"PIXELS": 16, "CHANNELS": 16, "warps": 4, "stages": 2},
    "scale_backward": {"PIXELS": 16, "CHANNELS": 32, "warps": 4, "stages": 2},
    "grad_x": {"ROWS": 32, "DEPTH": 32, "CHANNELS": 16, "warps": 4, "stages": 2},
    "local_products": {"ROWS": 16, "REDUCED": 32, "CHANNELS": 32, "warps": 4, "stages": 2},
}
# their products take v_collapse v_shrink or ds in x's dtype. On a GPU tanh in bfloat16 is the hardware's, within 2^-11:
# by simulation, where N H W < 64 and little averages out, grad v_collapse may err by a few percent there
ROUNDED = ("grad x", "grad v_shrink", "grad v_collapse")


@pytest.fixture
def table(tmp_path, monkeypatch):
    """Writes a table of blocks so small that small problems have many, and makes it the one in use."""

    def use() -> None:
        kinds = [(size, lanes) for size in (2, 4) for lanes in (True, False)]
        rows = [
            {"for": {"arch": 80, "bytes": size, "channels_last": lanes, "reduced": 512}, **SMALL}
            for size, lanes in kinds
        ]
        path = tmp_path / "table.json"
        path.write_text(json.dumps({"rows": rows}))
        monkeypatch.setenv("GALA_TRITON_TABLE", str(path))
        kept.clear_plans()

    yield use
    kept.clear_plans()


def representable(problem: Problem) -> Problem:
    """Rounds v_shrink to x's dtype, as the products do, so that this rounding is no error of the results."""
    v = problem.w.v_shrink
    return problem._replace(w=problem.w._replace(v_shrink=v.to(problem.x.dtype).to(v.dtype)))


def check(case: Case, seed: int = 0) -> None:
    problem = representable(draw(case, seed))
    assert_accurate(results(operator("triton"), to_device(problem)), problem, case, ROUNDED)


def to_device(problem: Problem) -> Problem:
    def move(t):
        return t if t is None or DEVICE == "cpu" else t.to(DEVICE)

    x, w, residual, squash, grad_out, grad_map = problem
    return Problem(move(x), type(w)(*map(move, w)), move(residual), squash, move(grad_out), move(grad_map))


FULL: dict[str, Any] = {"bias": True, "residual": True, "map": True}
CASES = {
    "one of everything": Case((1, 1, 1, 1), 1),
    "one of everything, full": Case((1, 1, 1, 1), 1, layout="channels_last", dtype=torch.bfloat16, **FULL),
    "C 7": Case((3, 7, 5, 5), 2, layout="channels_last"),
    "C 7, NCHW": Case((3, 7, 5, 5), 2, **FULL),
    "C 96, 7x7": Case((5, 96, 7, 7), 24, layout="channels_last", **FULL),
    "C 96, 7x7, NCHW": Case((5, 96, 7, 7), 24, squash="sigmoid", **FULL),
    "14x14": Case((2, 40, 14, 14), 10, layout="channels_last", **FULL),
    "14x14, bfloat16": Case((3, 40, 14, 14), 10, torch.bfloat16, layout="channels_last", **FULL),
    "14x14, float16": Case((2, 24, 14, 14), 6, torch.float16, squash="sigmoid", map=True),
    "wide weights, bfloat16": Case((2, 33, 6, 6), 9, torch.bfloat16, torch.float32, "channels_last", **FULL),
    "wide weights, float16": Case((2, 33, 6, 6), 9, torch.float16, torch.float32, "channels_last"),
    "R 40 of 32 a block": Case((2, 40, 4, 4), 40, layout="channels_last", **FULL),
    "slice along C": Case((2, 24, 5, 5), 6, torch.float16, layout="channels_last/slice_c", **FULL),
    "slice along N": Case((2, 24, 5, 5), 6, layout="contiguous/slice_n", **FULL),
    "misaligned": Case((2, 24, 5, 5), 6, torch.bfloat16, layout="channels_last/misaligned", **FULL),
    "crop": Case((2, 24, 5, 5), 6, layout="channels_last/crop", **FULL),
    "height 1": Case((3, 16, 1, 9), 4, layout="channels_last"),
}
QUICK = ("one of everything, full", "C 7")


@pytest.mark.parametrize(
    "case",
    [pytest.param(case, id=name, marks=[] if name in QUICK else pytest.mark.slow) for name, case in CASES.items()],
)
def test_forward_and_gradients_match_float64(case, table):
    """With small blocks, so that there are several tiles, several images in a tile, and odd ends."""
    table()
    check(case)


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(Case((1, 72, 5, 7), 72, torch.bfloat16, layout="channels_last", **FULL), id="bfloat16"),
        pytest.param(Case((3, 40, 4, 9), 100), id="float32, NCHW", marks=pytest.mark.slow),
    ],
)
def test_programs_share_hidden_units_where_tiles_are_few(case, table, monkeypatch):
    """Each block of 32 has a program, and `scale` adds up their parts of the local map."""
    monkeypatch.setattr("gala_cuda.backends.triton.problem.multiprocessors", lambda _: Multiprocessors(64, 64 << 10))
    grids = {}
    call = launch.KernelLaunch.__call__

    def keep(step, *tensors, stream):
        grids[step.kernel.__name__] = step
        call(step, *tensors, stream=stream)

    monkeypatch.setattr(launch.KernelLaunch, "__call__", keep)
    table()
    check(case)
    names = [name for name in grids["scale"].kernel.arg_names if name.isupper()]
    blocks = -(-case.reduced // 32)
    assert grids["scale"].constants[names.index("SHARES")] == blocks
    assert grids["gather"].grid[0] % blocks == 0


def test_infinite_x_where_programs_share_hidden_units(monkeypatch):
    """A tile of two images, one of which has an infinite x: the other's results are as without it."""
    monkeypatch.setattr("gala_cuda.backends.triton.problem.multiprocessors", lambda _: Multiprocessors(16, 64 << 10))
    kept.clear_plans()
    problem = to_device(draw(Case((2, 48, 5, 5), 64, torch.bfloat16, layout="channels_last")))
    spoilt = problem.x.clone()
    spoilt[1, 3, 2, 2] = float("inf")
    found = [backend.forward(ForwardCall(x, problem.w, None, Squash.TANH, False, True)) for x in (problem.x, spoilt)]
    kept.clear_plans()
    assert torch.equal(found[0].out[0], found[1].out[0])
    assert torch.equal(found[0].stats[0], found[1].stats[0])
    assert not found[1].stats[1].isfinite().all()


@pytest.mark.slow
@pytest.mark.parametrize(
    "case",
    [
        Case((2, 1000, 1, 1), 250, layout="channels_last"),
        Case((3, 1000, 7, 7), 62, torch.bfloat16, layout="channels_last"),
        Case((2, 96, 14, 14), 24, bias=True),
    ],
    ids=lambda case: f"{case.shape}",
)
def test_with_the_shipped_table(case):
    check(case)


def test_two_runs_are_bitwise_equal(table):
    table()
    problem = to_device(draw(Case((4, 24, 5, 5), 6, layout="channels_last", **FULL)))
    first, second = (results(operator("triton"), problem) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_saved_for_backward_is_as_the_interface_says(table):
    """s, p and z are those of the reference, relu_mask exactly; nothing of x's size is saved."""
    table()
    problem = draw(Case((3, 20, 5, 5), 40, layout="channels_last", bias=True))
    args = (*(None if t is None else t for t in problem.w), None, Squash.TANH, False, True)
    moved = to_device(problem)
    _, attn_map, stats, relu_mask = backend.forward(ForwardCall(moved.x, moved.w, None, Squash.TANH, False, True))
    want = torch.ops.gala_cuda.gala(problem.x, *args, "reference")
    assert attn_map is None
    assert torch.equal(relu_mask.cpu(), want[3])
    for got, expected in zip(split_stats(stats.cpu(), 20, 40), split_stats(want[2], 20, 40), strict=True):
        torch.testing.assert_close(got, expected)
    assert relu_mask.shape == (3, 25, mask_words(40))


def test_nothing_is_kept_without_save(table):
    table()
    problem = to_device(draw(Case((2, 8, 3, 3), 2)))
    _, attn_map, stats, relu_mask = backend.forward(ForwardCall(problem.x, problem.w, None, Squash.TANH, False, False))
    assert (attn_map, stats, relu_mask) == (None, None, None)


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")  # numpy's, of the interpreter
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_nan_and_infinity_go_where_the_reference_sends_them(value, layout, dtype, table):
    """They reach all of the image that holds them and no other, though tiles hold rows of several images."""
    table()
    problem = draw(Case((3, 8, 3, 3), 2, dtype, layout=layout))
    problem.x[1, 2, 1, 1] = value
    moved = to_device(problem)
    got = operator("triton")(moved.x, moved.w, None, "tanh", False)[0].cpu()
    want = operator("reference")(problem.x, problem.w, None, "tanh", False)[0]
    torch.testing.assert_close(got, want, equal_nan=True)


@pytest.mark.filterwarnings("ignore:(invalid value|overflow) encountered:RuntimeWarning")
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_hidden_units_that_a_block_has_too_many_do_not_spread_infinity(layout, table):
    """Their weights are 0, and 0 times an infinite x is NaN: out at that pixel is x times a saturated attention."""
    table()
    problem = draw(Case((2, 8, 3, 3), 4, layout=layout))
    problem.x[0, 1, 1, 1] = torch.inf
    problem.w.v_shrink.abs_()
    problem.w.v_collapse.abs_()
    moved = to_device(problem)
    _, _, stats, relu_mask = backend.forward(ForwardCall(moved.x, moved.w, None, Squash.TANH, False, True))
    assert stats[0, 4] == torch.inf
    _, _, _, want = reference.forward(ForwardCall(problem.x, problem.w, None, Squash.TANH, False, True))
    assert torch.equal(relu_mask.cpu(), want)


@pytest.mark.filterwarnings("ignore:(invalid value|overflow) encountered:RuntimeWarning")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_gradients_where_finite_x_overflows_the_attention(dtype, table):
    """g s is infinite and its attention saturated, with derivative 0. The closed form gives float64's values, such as
    a finite d m, where autograd of the formulas in float32 would multiply 0 by infinity.
    """
    table()
    case = Case((2, 8, 3, 3), 4, dtype, layout="channels_last", **FULL)
    problem = representable(draw(case))
    problem.x[0, 1] = problem.x[0, 1].sign() * torch.finfo(dtype).max / 16
    moved = to_device(problem)
    got = results(operator("triton"), moved)
    want = results(operator("reference"), problem)
    assert results(composite, problem)["grad m"].isnan().any()
    torch.testing.assert_close(got["grad m"].cpu().double(), exact(problem)["grad m"], rtol=2e-2, atol=2e-2)
    for name, value in got.items():
        assert torch.equal(value.isfinite().cpu(), want[name].isfinite()), name


def test_offsets_beyond_32_bits(table):
    """Two images 2^31 elements apart: memory that is never touched costs nothing."""
    table()
    apart = 2**31 + 64
    memory = torch.empty(apart + 600, dtype=torch.float16, device=DEVICE)
    problem = representable(draw(Case((2, 6, 5, 5), 2, torch.float16, torch.float32)))
    x = memory.as_strided((2, 6, 5, 5), (apart, 1, 30, 6)).copy_(problem.x)
    problem = problem._replace(x=problem.x.to(memory_format=torch.channels_last))
    moved = to_device(problem)
    got = operator("triton")(x, moved.w, None, "tanh", False)[0]
    torch.testing.assert_close(got.cpu(), operator("reference")(problem.x, problem.w, None, "tanh", False)[0])


def test_no_images():
    x = torch.empty(0, 8, 3, 3, device=DEVICE, requires_grad=True)
    w = to_device(draw(Case((1, 8, 3, 3), 2))).w
    out, _ = operator("triton")(x, w, None, "tanh", False)
    out.sum().backward()
    assert out.shape == x.grad.shape == (0, 8, 3, 3)


def test_opcheck(table):
    table()
    problem = to_device(draw(Case((2, 8, 3, 3), 4, layout="channels_last", **FULL)))
    args = (*problem.w, problem.residual, Squash.TANH, True, True, "triton")
    torch.library.opcheck(torch.ops.gala_cuda.gala.default, (problem.x, *args))


@pytest.mark.slow
def test_autocast_and_compile(table):
    """Mixed precision inside one graph gives what eager mode gives, bit by bit."""
    from gala_cuda import GALA

    table()
    torch.manual_seed(0)
    layer = GALA(8, backend="triton", device=DEVICE)
    x = torch.randn(2, 8, 4, 4, device=DEVICE).bfloat16().to(memory_format=torch.channels_last).requires_grad_()

    def step(call) -> tuple[Tensor, ...]:
        with torch.autocast(DEVICE, dtype=torch.bfloat16):
            out = call(x)
        return (out, *torch.autograd.grad(out.float().square().sum(), [x, *layer.parameters()]))

    eager, compiled = step(layer), step(torch.compile(layer, fullgraph=True))
    assert eager[0].dtype == torch.bfloat16
    assert all(torch.equal(a, b) for a, b in zip(eager, compiled, strict=True))


def test_reasons():
    if DEVICE == "cpu":
        assert backends.why_not("triton", torch.empty(1, 1, 1, 1)) is None
    assert "float64" in backend.why_not(torch.empty(1, 1, 1, 1, dtype=torch.float64, device=DEVICE))
    assert backend.why_not(torch.empty(0, device=DEVICE)) is None  # a device and a dtype alone
    one, most = torch.empty(1, 1, 1, 1, device=DEVICE), 2047 * 2**20
    for shape in ((1, 1, 2047, 2**20), (2047, 3, 2**10, 2**10), (2, most, 1, 1)):
        assert backend.why_not(one.expand(shape)) is None
    for shape, count in (
        ((1, 1, 2047, 2**20 + 1), f"{most + 2047} pixels"),
        ((2, most + 1, 1, 1), f"{most + 1} channels"),
    ):
        assert f"x has {count}, expected at most {most} (2^31 - 2^20)" in backend.why_not(one.expand(shape))


def test_more_hidden_units_than_offsets_reach_are_refused():
    x = torch.empty(1, 1, 1, 1, device="meta")
    w = Weights(*(torch.empty(shape, device="meta") for shape in weight_shapes(1, 2047 * 2**20 + 1)[:6]))
    with pytest.raises(ValueError, match="w_shrink has 2146435073 hidden units, expected at most 2146435072"):
        backend.forward(ForwardCall(x, w, None, Squash.TANH, False, True))


@pytest.mark.parametrize(
    ("capability", "knows", "reason"),
    [
        pytest.param((9, 0), "", None, id="every-triton"),
        pytest.param((11, 0), "sm_110, sm_110a", None, id="knows"),
        pytest.param((12, 1), "sm_120a, sm_121f", "does not know sm_121a, compute capability 12.1", id="family"),
        pytest.param((11, 0), "sm_101a, sm_1100a", "TRITON_PTXAS_BLACKWELL_PATH, or install", id="blackwell"),
        pytest.param((8, 8), "sm_87, sm_89", "TRITON_PTXAS_PATH, or install", id="before-blackwell"),
    ],
)
def test_a_gpu_that_tritons_assembler_does_not_know_is_refused(capability, knows, reason, tmp_path, monkeypatch):
    """The assembler here is one of CUDA 12.9 that knows these architectures only."""
    ptxas = tmp_path / "ptxas"
    ptxas.write_text(
        f"#!/bin/sh\necho 'Cuda compilation tools, release 12.9, V12.9.86'\necho 'sm_80, {knows}, sm_90a'\n"
    )
    ptxas.chmod(0o755)
    for name in ("TRITON_PTXAS_PATH", "TRITON_PTXAS_BLACKWELL_PATH"):
        monkeypatch.setenv(name, str(ptxas))
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assembler.why_not.cache_clear()
    x = SimpleNamespace(
        device=torch.device("cuda:0"), dtype=torch.float32, shape=torch.Size((2, 3, 4, 5)), numel=lambda: 120
    )
    found = backend.why_not(x)
    assembler.why_not.cache_clear()
    assert found is None if reason is None else reason in found and f"{ptxas} of CUDA 12.9" in found


def test_the_assemblers_of_this_triton_know_what_is_not_asked_of_them():
    assert all(assembler.knows(capability) for capability in assembler.KNOWN)


def test_reason_on_the_cpu_without_the_interpreter(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert "x is on cpu, expected cuda" in backend.why_not(torch.empty(1, 1, 1, 1))
