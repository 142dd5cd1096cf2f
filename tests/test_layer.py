"""``GALA``: parameters, initialisation, state, copies, and the layer under torch.compile, torch.export and ONNX."""

import copy
import math
import re

import pytest
import torch
from torch import nn
from torch._dynamo.backends.common import aot_autograd
from torch._functorch.aot_autograd import make_boxed_func

import gala_cuda
from gala_cuda import GALA
from gala_cuda.backends import reference
from gala_cuda.backends.squash import SQUASHES
from gala_cuda.testing import laid_out

PLAIN = ["w_shrink", "w_expand", "v_shrink", "v_collapse", "a", "m"]
BIASES = ["b_w_shrink", "b_w_expand", "b_v_shrink", "b_v_collapse"]


def layer_and_input(channels=8, shape=(2, 3, 4), **options):
    torch.manual_seed(0)
    layer = GALA(channels, init="paper", **options)
    with torch.no_grad():
        for name, parameter in layer.named_parameters():
            if name.startswith("b_"):
                parameter.normal_()
    return layer, torch.randn(shape[0], channels, *shape[1:])


@pytest.mark.parametrize(
    ("channels", "reduction", "reduced"), [(8, 4, 2), (1024, 4, 256), (7, 2, 3), (3, 4, 1), (1, 1, 1)]
)
def test_parameters(channels, reduction, reduced):
    layer = GALA(channels, reduction, bias=True)
    shapes = {name: tuple(parameter.shape) for name, parameter in layer.named_parameters()}
    assert shapes == {
        "w_shrink": (reduced, channels),
        "w_expand": (channels, reduced),
        "v_shrink": (reduced, channels),
        "v_collapse": (reduced,),
        "a": (channels,),
        "m": (channels,),
        "b_w_shrink": (reduced,),
        "b_w_expand": (channels,),
        "b_v_shrink": (reduced,),
        "b_v_collapse": (1,),
    }


@pytest.mark.parametrize(
    ("x", "exception", "message"),
    [
        pytest.param(torch.randn(2, 4, 3, 3), ValueError, "x has 4 channels, (2, 4, 3, 3); expected this layer's 8",
                     id="channels"),
        pytest.param(torch.randn(8, 3, 3), ValueError, "x has shape (8, 3, 3); expected 4 dimensions", id="dimensions"),
        pytest.param(torch.randn(2, 8, 3, 3, device="meta"), ValueError,
                     "x is on meta; expected this layer's device, cpu", id="device"),
        pytest.param(torch.randn(2, 8, 3, 3).double(), TypeError,
                     "x is torch.float64; expected this layer's torch.float32, bfloat16 or float16", id="dtype"),
        pytest.param(torch.ones(2, 8, 3, 3, dtype=torch.int64), TypeError, "x is torch.int64; expected one of",
                     id="integers"),
        pytest.param([1.0], TypeError, "x is a list; expected a tensor [N, C, H, W]", id="list"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("call", ["forward", "attention"])
def test_an_x_that_is_not_for_the_layer_is_named(x, exception, message, call):
    with pytest.raises(exception, match="^" + re.escape(message)):
        getattr(GALA(8), call)(x)


def test_a_half_x_is_not_for_a_layer_of_doubles():
    with pytest.raises(TypeError, match=r"x is torch\.bfloat16; expected this layer's torch\.float64$"):
        GALA(8, dtype=torch.float64)(torch.ones(1, 8, 2, 2, dtype=torch.bfloat16))


def test_the_paper_has_no_biases():
    assert [name for name, _ in GALA(8, init="paper").named_parameters()] == PLAIN
    assert list(GALA(8, init="paper").state_dict()) == PLAIN
    assert list(GALA(8, init="paper", bias=True).state_dict()) == PLAIN + BIASES
    assert list(GALA(8).state_dict()) == PLAIN + BIASES
    assert list(GALA(8, bias=False).state_dict()) == PLAIN
    assert [GALA(8, init=init).squash for init in ("half", "paper")] == ["sigmoid", "tanh"]


def test_size_at_the_papers_width():
    """790,273 parameters a block with biases."""
    assert sum(parameter.numel() for parameter in GALA(1024, bias=True, device="meta").parameters()) == 790_273


def test_initialisation_as_in_the_paper():
    torch.manual_seed(0)
    layer = GALA(512, init="paper", bias=True)
    assert layer.w_shrink.std().item() == pytest.approx(math.sqrt(2 / 512), rel=0.02)
    assert layer.v_shrink.std().item() == pytest.approx(math.sqrt(2 / 512), rel=0.02)
    assert layer.w_expand.std().item() == pytest.approx(1 / math.sqrt(128), rel=0.02)
    assert layer.a.abs().max() <= 2
    assert layer.m.abs().max() <= 2
    assert layer.a.std().item() == pytest.approx(0.88, rel=0.1)  # N(0, 1) cut at 2
    assert all(getattr(layer, name).eq(0).all() for name in BIASES)


@pytest.mark.parametrize("squash", ["tanh", "sigmoid"])
def test_initialisation_near_half(squash):
    """Everything but the last weights, and with tanh a and the bias of g, is drawn as in the paper's start."""
    layers = []
    for init in ("half", "paper"):
        torch.manual_seed(0)
        layers.append(GALA(256, squash=squash, init=init, bias=True))
    half, paper = layers
    changed = {name for name, p in half.named_parameters() if not torch.equal(p, paper.get_parameter(name))}
    assert changed == {"w_expand", "v_collapse"} | ({"a", "b_w_expand"} if squash == "tanh" else set())
    torch.testing.assert_close(half.w_expand, 0.1 * paper.w_expand)
    attention = half.attention(torch.randn(8, 256, 6, 6))
    assert attention.mean().item() == pytest.approx(0.5, abs=0.1)
    assert 0.005 < attention.std().item() < 0.15
    half.reset_parameters()
    assert half.attention(torch.randn(8, 256, 6, 6)).mean().item() == pytest.approx(0.5, abs=0.1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"channels": 0}, "channels is 0; expected an integer of at least 1"),
        ({"channels": 2.0}, "channels is 2.0"),
        ({"reduction": 0}, "reduction is 0"),
        ({"squash": "relu"}, "squash is 'relu'; expected one of 'tanh', 'sigmoid'"),
        ({"init": "random"}, "init is 'random'; expected one of 'half', 'paper'"),
        ({"squash": "tanh", "bias": False}, "bias is False; expected True with init='half' and tanh"),
        ({"backend": "fast"}, "backend is 'fast'; expected None or one of"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_bad_arguments_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        GALA(**{"channels": 8, **options})


def test_device_and_dtype():
    layer = GALA(8, bias=True, dtype=torch.float64, device="meta")
    assert all(p.dtype == torch.float64 and p.device.type == "meta" for p in layer.parameters())
    assert layer.to_empty(device="cpu").w_shrink.device.type == "cpu"


@pytest.mark.parametrize("bias", [False, True], ids=["plain", "bias"])
@pytest.mark.parametrize("squash", ["tanh", "sigmoid"])
def test_forms_of_the_call(backend, squash, bias):
    layer, x = layer_and_input(squash=squash, bias=bias, backend=backend)
    shortcut = torch.randn_like(x)
    out, attn_map = layer(x, return_map=True)
    attention = layer.attention(x)
    torch.testing.assert_close(out, x * attention)
    torch.testing.assert_close(attn_map, attention.norm(dim=1))
    torch.testing.assert_close(layer(x), out)
    fused, fused_map = layer(x, residual=shortcut, return_map=True)
    torch.testing.assert_close(fused, torch.relu(x * attention + shortcut))
    torch.testing.assert_close(fused_map, attn_map)
    torch.testing.assert_close(attention, reference.attention(x, layer.weights, SQUASHES[squash]))
    direct = gala_cuda.gala(x, *layer.weights, squash=squash, backend=backend)
    assert torch.equal(direct, layer(x))


def test_state_copies_and_pickles(tmp_path):
    layer, x = layer_and_input(bias=True, squash="sigmoid")
    torch.save(layer, tmp_path / "layer.pt")
    loaded = torch.load(tmp_path / "layer.pt", weights_only=False)
    other = GALA(8, bias=True, squash="sigmoid")
    other.load_state_dict(layer.state_dict())
    for same in (loaded, other, copy.deepcopy(layer)):
        assert torch.equal(same(x), layer(x))
    assert "8, reduction=4, squash='sigmoid', bias=True, init='paper'" in repr(layer)


def test_trains():
    """A few steps towards a target that the layer can reach lower the loss."""
    torch.manual_seed(0)
    layer, x = layer_and_input(bias=True)
    teacher = copy.deepcopy(layer)
    layer.reset_parameters()
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    losses = []
    for _ in range(20):
        loss = nn.functional.mse_loss(layer(x), teacher(x).detach())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


class CountedGraphs:
    """A compiler that runs graphs as they are and keeps them."""

    def __init__(self):
        self.forward, self.backward = [], []

    def __call__(self, graph, inputs):
        def keep(kept):
            def compiler(traced, _):
                kept.append(traced)
                return make_boxed_func(traced)

            return compiler

        return aot_autograd(fw_compiler=keep(self.forward), bw_compiler=keep(self.backward))(graph, inputs)

    def calls(self, target) -> int:
        return sum(node.target is target for graph in self.forward + self.backward for node in graph.graph.nodes)


COMPILED = [
    pytest.param({}, False, False, id="plain"),
    pytest.param({"bias": True}, True, False, id="residual"),
    pytest.param({"squash": "sigmoid"}, False, True, id="map"),
    pytest.param({"bias": True}, True, True, id="residual-map"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("options", "residual", "return_map"), COMPILED)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_compile_is_one_graph_forward_and_one_backward(backend, options, residual, return_map, layout):
    layer, x = layer_and_input(backend=backend, **options)
    x = x.to(memory_format=layout).requires_grad_()
    shortcut = torch.randn_like(x, requires_grad=True) if residual else None
    leaves = [x, *layer.parameters(), *([shortcut] if residual else [])]
    torch._dynamo.reset()
    graphs = CountedGraphs()
    found = []
    for run in (layer, torch.compile(layer, fullgraph=True, backend=graphs)):
        outputs = run(x, residual=shortcut, return_map=return_map)
        outputs = outputs if return_map else (outputs,)
        grads = torch.autograd.grad(sum(t.square().sum() for t in outputs), leaves)
        found.append([*outputs, *grads])
    assert (len(graphs.forward), len(graphs.backward)) == (1, 1)
    for target in (torch.ops.gala_cuda.gala.default, torch.ops.gala_cuda.gala_backward.default):
        assert graphs.calls(target) == (0 if backend == "reference" else 1)
    for got, want in zip(found[1], found[0], strict=True):
        torch.testing.assert_close(got, want)
        assert got.stride() == want.stride()


def test_compiled_by_inductor(cpu_backend):
    layer, x = layer_and_input(backend=cpu_backend)
    torch._dynamo.reset()
    found = []
    for run in (layer, torch.compile(layer, fullgraph=True)):
        out = run(x)
        found.append((out, *torch.autograd.grad(out, list(layer.parameters()), torch.ones_like(out))))
    for got, want in zip(*found, strict=True):
        torch.testing.assert_close(got, want)


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "channels_last/slice_c"])
def test_compiled_for_several_batch_sizes(backend, layout):
    """From the second size on torch.compile makes the sizes symbols."""
    layer, x = layer_and_input(backend=backend)
    torch._dynamo.reset()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    for images in (2, 3, 5):
        batch = laid_out(x.detach()[:1].expand(images, -1, -1, -1), layout).requires_grad_()
        out, want = compiled(batch), layer(batch)
        torch.testing.assert_close(out, want)
        assert out.stride() == want.stride()
        grads = (torch.autograd.grad(result, batch, torch.ones_like(want))[0] for result in (out, want))
        torch.testing.assert_close(*grads)


class WithMap(nn.Module):
    """A residual block's end, for the exporters: two inputs, two outputs."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x, shortcut):
        return self.layer(x, residual=shortcut, return_map=True)


def test_export_with_any_batch(backend):
    layer, x = layer_and_input(backend=backend, bias=True)
    model, batch = WithMap(layer).eval(), {0: torch.export.Dim("batch")}
    program = torch.export.export(model, (x, torch.randn_like(x)), dynamic_shapes=(batch, batch))
    if backend != "reference":
        assert any(node.target is torch.ops.gala_cuda.gala.default for node in program.graph.nodes)
    for n in (1, 2, 5):
        inputs = torch.randn(n, 8, 3, 4), torch.randn(n, 8, 3, 4)
        torch.testing.assert_close(program.module()(*inputs), model(*inputs))


@pytest.mark.slow
def test_onnx(backend, tmp_path):
    """Whatever the backend, ONNX gets the reference's standard operators."""
    onnx = pytest.importorskip("onnx", reason="onnx is not installed")
    pytest.importorskip("onnxscript", reason="onnxscript is not installed")
    layer, x = layer_and_input(backend=backend, bias=True)
    model, path = WithMap(layer).eval(), tmp_path / "gala.onnx"
    inputs = x, torch.randn_like(x)
    torch.onnx.export(model, inputs, path, dynamo=True, verbose=False)
    exported = onnx.load(path)
    onnx.checker.check_model(exported)
    assert {node.domain for node in exported.graph.node} <= {"", "ai.onnx"}
    session = onnx.reference.ReferenceEvaluator(exported)
    names = [value.name for value in exported.graph.input]
    outputs = session.run(None, {name: t.numpy() for name, t in zip(names, inputs, strict=True)})
    for got, want in zip(outputs, model(*inputs), strict=True):
        torch.testing.assert_close(torch.from_numpy(got), want.detach())
