"""The fused forms of the released code's block: against float64, repeatable, and under PyTorch's transforms."""

import copy
import os
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from gala_cuda import ReleasedGALA, backends
from gala_cuda.backends.dtypes import DTYPES, GPU_DTYPES, HALVES
from gala_cuda.backends.released import choose
from gala_cuda.testing import laid_out, tolerance

DOUBLE = torch.float64
# Roundings to x's dtype on the way to a gradient: of the convolution's factors and results, forward and backward; and
# those of the products of the Triton kernels.
ROUNDED = {("cpu", torch.bfloat16): 6, ("triton", torch.bfloat16): 9, ("triton", torch.float16): 4}
KINDS = [*(("cpu", dtype) for dtype in DTYPES), *(("triton", dtype) for dtype in GPU_DTYPES)]
SHAPES = [
    pytest.param((2, 8, 4, 3), 4, id="small"),
    pytest.param((3, 37, 7, 5), 2, id="odd"),  # R 18
    pytest.param((1, 70, 15, 9), 1, id="wide-hidden-layer"),  # R 70
    pytest.param((2, 5, 1, 6), 8, id="one-hidden-unit-and-row"),
    pytest.param((1, 4, 1, 1), 2, id="one-pixel"),
]


@pytest.fixture(params=["cpu", "triton"])
def fused(request):
    """Each fused backend that runs on this machine."""
    reason = backends.why_not(request.param, torch.empty(1, 1, 1, 1))
    if reason:
        pytest.skip(f"backend {request.param!r}: {reason}")
    return request.param


def numbers(*shape, seed, dtype=DOUBLE):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE).to(dtype)


def layer(channels, reduction, seed=0, **options):
    torch.manual_seed(seed)
    made = ReleasedGALA(channels, reduction, **options)
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if name.startswith("b_"):
                parameter.normal_(std=0.3)
    return made


def twin(made, **options):
    """The same layer with other options."""
    other = ReleasedGALA(made.channels, made.reduction, **({"dtype": made.a.dtype} | options))
    other.load_state_dict(made.state_dict())
    return other


class Problem:
    """A layer, what it is given, and the gradients that come in."""

    def __init__(self, shape, reduction, dtype, parameters=None, layout="contiguous", residual=False, seed=0):
        self.made = layer(shape[1], reduction, seed, dtype=parameters or dtype)
        n, _, height, width = shape
        self.x = laid_out(numbers(*shape, seed=seed + 1, dtype=dtype), layout)
        order = layout.partition("/")[0]
        self.grad_out = laid_out(numbers(*shape, seed=seed + 2, dtype=dtype), order)
        self.grad_map = numbers(n, height, width, seed=seed + 3, dtype=DOUBLE if dtype == DOUBLE else torch.float32)
        self.residual = laid_out(numbers(*shape, seed=seed + 4, dtype=dtype), order) if residual else None
        self.keep_off_zero()

    @torch.no_grad()
    def keep_off_zero(self):
        """Moves sums away from 0 that are ReLU's argument and not exact to float32."""
        self.made.v_shrink.copy_(self.made.v_shrink.to(self.x.dtype))  # as tensor cores take it
        if self.x.dtype == torch.bfloat16:  # units behind the convolution are on or off by their bias
            self.made.v_spatial.mul_(0.15)
            self.made.b_v_spatial.copy_(torch.where(torch.arange(len(self.made.b_v_spatial)) % 3 == 2, -1.0, 1.0))
        if self.residual is not None:
            exact = twin(self.made, dtype=DOUBLE)
            total = self.x.double() * exact.attention(self.x.double()) + self.residual.double()
            self.residual += torch.where(total.abs() < 0.1, total.sign() * 0.1, 0.0)

    def results(self, backend, dtype=None):
        """out, map and every gradient by name, on a backend and perhaps in another dtype than the problem's."""
        made, parameters = self.made, {}
        given = {"x": self.x, "residual": self.residual}
        grad_out, grad_map = self.grad_out, self.grad_map
        if dtype is not None:
            made, grad_out, grad_map = twin(made, dtype=dtype), grad_out.to(dtype), grad_map.to(dtype)
            given = {name: None if t is None else t.to(dtype) for name, t in given.items()}
        made.backend = backend
        parameters = dict(made.named_parameters())
        leaves = {name: t.detach().requires_grad_() for name, t in given.items() if t is not None}
        out, attn_map = made(leaves["x"], leaves.get("residual"), return_map=True)
        leaves |= parameters
        grads = torch.autograd.grad((out, attn_map), list(leaves.values()), (grad_out, grad_map))
        found = {"out": out.detach(), "map": attn_map.detach()}
        return found | {f"grad {name}": grad for name, grad in zip(leaves, grads, strict=True)}

    @torch.no_grad()
    def has_ties(self):
        """Whether some unit is so near 0 that its ReLU may fall on the other side of it in the problem's precision."""
        w, x = twin(self.made, dtype=DOUBLE), self.x.double()
        z = F.linear(x.mean((2, 3)), w.w_shrink, w.b_w_shrink)
        g = F.linear(z.relu(), w.w_expand, w.b_w_expand)
        hidden = F.conv2d(x, w.v_shrink[:, :, None, None], w.b_v_shrink)
        seen = F.conv2d(hidden.relu(), w.v_spatial, w.b_v_spatial, padding="same")
        units = (z, 1e-5), (g, 1e-5), (hidden, 1e-5), (seen, 2e-2 if self.x.dtype == torch.bfloat16 else 1e-5)
        return any((t.abs() < margin * t.square().mean().sqrt()).any() for t, margin in units)


def untied(*args, **options):
    """The first problem without ties."""
    for seed in range(0, 4000, 10):
        problem = Problem(*args, **options, seed=seed)
        if not problem.has_ties():
            return problem
    raise AssertionError("no problem without ties")


def redirected(problem, seed):
    """The same with other signs of the incoming gradients, so that no sum's scale is that of its accidental value."""
    other = copy.copy(problem)
    other.grad_out = problem.grad_out * numbers(*problem.grad_out.shape, seed=seed).sign().to(problem.x.dtype)
    other.grad_map = problem.grad_map * numbers(*problem.grad_map.shape, seed=seed).sign().to(problem.grad_map.dtype)
    return other


def assert_accurate(problem, got, backend):
    want = problem.results("reference", DOUBLE)
    others = [redirected(problem, seed).results("reference", DOUBLE) for seed in range(3)]
    n, c, height, width = problem.x.shape
    terms = max(c, n * height * width, 25 * len(problem.made.v_collapse))
    assert got.keys() == want.keys()
    beyond = {}
    for name, value in got.items():
        scale = max(found[name].abs().max().item() for found in (want, *others)) or 1.0
        error = (value.double() - want[name]).abs().max().item() / scale
        limit = tolerance(value.dtype, problem.x.dtype, terms, ROUNDED.get((backend, problem.x.dtype), 0))
        if not error <= limit:
            beyond[name] = f"{error:.1e} > {limit:.1e}"
    assert not beyond


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize(("fused", "dtype"), KINDS, indirect=["fused"], ids=str)
@pytest.mark.parametrize(("shape", "reduction"), SHAPES)
def test_it_is_the_float64_reference(fused, shape, reduction, dtype, layout):
    """Both with and without a residual, by the layout."""
    problem = untied(shape, reduction, dtype, layout=layout, residual=layout == "channels_last")
    got = problem.results(fused)
    assert_accurate(problem, got, fused)
    assert got["out"].stride() == torch.empty_like(problem.x).stride()
    for name, parameter in problem.made.named_parameters():
        assert got[f"grad {name}"].dtype == parameter.dtype
        assert got[f"grad {name}"].stride() == parameter.stride()


@pytest.mark.parametrize("layout", [
    "contiguous/slice_n", "contiguous/slice_c", "contiguous/crop", "contiguous/misaligned", "channels_last/slice_n",
    "channels_last/slice_c", "channels_last/crop", "channels_last/misaligned",
])  # fmt: skip
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_slices_are_read_among_nan(fused, layout, dtype):
    problem = untied((2, 12, 5, 6), 4, dtype, layout=layout, residual=True)
    assert_accurate(problem, problem.results(fused), fused)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_float32_parameters_beside_16_bits(fused, dtype):
    problem = untied((2, 12, 5, 6), 3, dtype, torch.float32, "channels_last", residual=True)
    got = problem.results(fused)
    assert_accurate(problem, got, fused)
    assert got["grad v_spatial"].dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        within = problem.results(fused)
    for name, value in within.items():
        assert torch.equal(value, got[name]), name


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf], ids=str)
def test_what_is_not_finite_stays_in_its_image_and_goes_where_the_reference_sends_it(fused, value, layout):
    problem = Problem((3, 8, 9, 8), 2, torch.float32, layout=layout, residual=True)
    clean = problem.results(fused)
    problem.x[1, 2, 1, 1] = value
    got, want = problem.results(fused), problem.results("reference")
    for name in ("out", "map", "grad x", "grad residual"):
        assert torch.equal(got[name].isfinite(), want[name].isfinite()), name
        assert torch.equal(got[name][[0, 2]], clean[name][[0, 2]]), name
    assert not got["out"][1].isfinite().all()
    for name, grad in got.items():
        if name not in ("grad a", "grad m"):  # 0 times infinity where the attention is saturated: test_cpu.py
            assert torch.equal(grad.isfinite(), want[name].isfinite()), name


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("residual", [False, True], ids=["plain", "residual"])
def test_gradcheck_of_first_and_second_order(cpu_backend, layout, residual):
    problem = Problem((1, 4, 3, 2), 2, DOUBLE, layout=layout, residual=residual)
    problem.made.backend = cpu_backend
    names = [name for name, _ in problem.made.named_parameters()]
    inputs = [t for t in (problem.x, problem.residual, *problem.made.parameters()) if t is not None]

    def call(x, *tensors):
        shortcut, parameters = (tensors[0], tensors[1:]) if residual else (None, tensors)
        given = dict(zip(names, parameters, strict=True))
        return torch.func.functional_call(problem.made, given, (x, shortcut, True))

    leaves = [t.detach().requires_grad_() for t in inputs]
    assert torch.autograd.gradcheck(call, leaves)
    assert torch.autograd.gradgradcheck(call, leaves, fast_mode=True)


@pytest.mark.parametrize("wanted", ["x", "residual", "v_spatial", "a"])
def test_gradients_of_some_inputs_only(fused, wanted):
    problem = Problem((2, 8, 4, 3), 2, torch.float32, residual=True)
    everything = problem.results(fused)
    made = problem.made.requires_grad_(False)
    given = {"x": problem.x, "residual": problem.residual}
    leaf = given[wanted].requires_grad_() if wanted in given else getattr(made, wanted).requires_grad_()
    out, attn_map = made(problem.x, problem.residual, return_map=True)
    outputs, incoming = (out, attn_map), (problem.grad_out, problem.grad_map)
    (grad,) = torch.autograd.grad(outputs, leaf, incoming)
    torch.testing.assert_close(grad, everything[f"grad {wanted}"])


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_repeats_are_bitwise_equal_on_any_number_of_threads(fused, layout, dtype):
    problem = untied((3, 40, 7, 5), 3, dtype, layout=layout, residual=True)
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            first = problem.results(fused)
            assert_accurate(problem, first, fused)
            for name, value in problem.results(fused).items():
                assert torch.equal(value, first[name]), name
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_no_image(fused, dtype):
    problem = Problem((0, 8, 4, 3), 2, dtype, residual=True)
    for name, value in problem.results(fused).items():
        assert not value.any(), name
    assert problem.results(fused)["out"].shape == (0, 8, 4, 3)


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "layout"), [
    (torch.float32, "contiguous"), (torch.float32, "channels_last"), (torch.bfloat16, "channels_last/slice_c"),
    (torch.float16, "contiguous/crop"),
])  # fmt: skip
def test_opcheck(fused, dtype, layout):
    problem = Problem((2, 6, 3, 2), 2, dtype, layout=layout, residual=True)
    forward, backward = torch.ops.gala_cuda.released.default, torch.ops.gala_cuda.released_backward.default
    weights = [t.detach() for t in (*problem.made.weights, *problem.made.spatial)]
    torch.library.opcheck(forward, (problem.x, *weights, problem.residual, True, False, fused))
    out, _, *saved = forward(problem.x, *weights, problem.residual, True, True, fused)
    leaves = [t.clone().requires_grad_() for t in (problem.x, *weights)]
    torch.library.opcheck(forward, (*leaves, problem.residual, True, False, fused))
    incoming = problem.grad_out, problem.grad_map
    torch.library.opcheck(backward, (*incoming, problem.x, *weights, out, *saved, True, True, fused))
    with pytest.raises(TypeError, match=r"seen is torch\.int32; expected"):
        backward(*incoming, problem.x, *weights, out, *saved[:2], saved[2].int(), True, True, fused)


@pytest.mark.slow
@pytest.mark.parametrize("dynamic", [False, True])
def test_compiled_it_is_one_graph_with_the_same_results(cpu_backend, dynamic):
    problem = Problem((2, 8, 4, 3), 2, torch.float32, layout="channels_last", residual=True)
    want = problem.results(cpu_backend)
    torch._dynamo.reset()
    problem.made.forward = torch.compile(problem.made.forward, fullgraph=True, dynamic=dynamic)
    got = problem.results(cpu_backend)
    for name, value in got.items():
        torch.testing.assert_close(value, want[name], msg=name)
    del problem.made.forward
    graphs = []
    torch._dynamo.reset()
    torch.compile(problem.made, backend=lambda graph, _: graphs.append(graph) or graph.forward)(problem.x)
    (graph,) = graphs
    assert any(node.target is torch.ops.gala_cuda.released.default for node in graph.graph.nodes)


def test_transforms_of_torch_func(cpu_backend):
    problem = Problem((3, 4, 3, 2), 2, DOUBLE)
    fast, plain = problem.made, twin(problem.made, backend="reference")
    fast.backend = cpu_backend
    x, tangent = problem.x, problem.grad_out
    torch.testing.assert_close(torch.func.vmap(lambda image: fast(image[None])[0])(x), plain(x))
    loss, other = (lambda x: fast(x).square().sum()), (lambda x: plain(x).square().sum())
    torch.testing.assert_close(torch.func.grad(loss)(x), torch.func.grad(other)(x))
    for got, want in zip(torch.func.jvp(fast, (x,), (tangent,)), torch.func.jvp(plain, (x,), (tangent,)), strict=True):
        torch.testing.assert_close(got, want)


def test_what_is_kept_for_the_backward(cpu_backend):
    """stats and both hidden layers: with float32 and r = 4 half of x, with 16 bits on a CPU all of it."""
    made, kept = layer(64, 4), {}
    made.backend = cpu_backend
    x = numbers(2, 64, 14, 14, seed=1, dtype=torch.float32).requires_grad_()
    own = {t.untyped_storage().data_ptr() for t in (x, *made.parameters())}
    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: kept.setdefault(t.untyped_storage().data_ptr(), t) is None or t, lambda t: t
    ):
        made(x)
    extra = sum(t.untyped_storage().nbytes() for pointer, t in kept.items() if pointer not in own)
    assert extra == x.nbytes // 2 + 4 * 2 * (14 * 14 + 64 + 16)


@pytest.mark.parametrize("backward", [False, True])
def test_the_count_of_flops_is_the_references(fused, backward):
    def counted(backend):
        made = layer(12, 3)
        made.backend = backend
        x = numbers(3, 12, 5, 7, seed=0, dtype=torch.float32).requires_grad_()
        with FlopCounterMode(display=False) as counter:
            out = made(x)
            if backward:
                out.sum().backward()
        return counter.get_total_flops()

    assert counted(fused) == counted("reference") > 0


@pytest.mark.slow
@pytest.mark.parametrize("isa", ["baseline", "avx2"])
def test_every_instruction_set(isa):
    reason = backends.why_not("cpu", torch.empty(1, 1, 1, 1))
    if reason:
        pytest.skip(f"backend 'cpu': {reason}")
    tests = f"{__file__}::test_it_is_the_float64_reference"
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-k", "cpu and (odd or wide)", tests],
        env=os.environ | {"GALA_CPU_ISA": isa}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    assert "16 passed" in done.stdout


def test_which_backend_runs(monkeypatch, cpu_backend):
    x = torch.zeros(1, 4, 2, 2)
    assert choose(x, "") == cpu_backend
    assert choose(x, "reference") == "reference"
    assert choose(torch.empty(1, 4, 2, 2, device="meta"), "") == "reference"
    reason = backends.why_not("triton", x)
    if reason is None:
        assert choose(x, "triton") == "triton"
    else:
        with pytest.raises(RuntimeError, match="backend 'triton' cannot run"):
            choose(x, "triton")
    made = layer(4, 2)
    monkeypatch.setenv("GALA_BACKEND", "cuda")
    with pytest.raises(RuntimeError, match="backend 'cuda' cannot run: it has no kernels for the released"):
        made(x)
    assert layer(4, 2, backend="cpu")(x).shape == x.shape
    with pytest.raises(ValueError, match="backend is 'gpu'"):
        layer(4, 2, backend="gpu")


def test_the_state_is_what_it_was():
    names = [
        "w_shrink", "w_expand", "v_shrink", "v_collapse", "a", "m", "b_w_shrink", "b_w_expand", "b_v_shrink",
        "b_v_collapse", "v_spatial", "b_v_spatial",
    ]  # fmt: skip
    assert list(ReleasedGALA(8).state_dict()) == names
