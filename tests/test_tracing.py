"""torch.fx and torch.jit.trace: ``gala`` is one operation of what they trace, and the networks keep their names."""

import io

import pytest
import torch
from networks import images, network, relative_difference
from torch import fx, nn
from torch.fx.experimental.optimization import fuse

import gala_cuda
from gala_cuda import GALA, convert

feature_extraction = pytest.importorskip("torchvision.models.feature_extraction", reason="torchvision is not installed")
FX_NETWORKS = {
    "resnet18": lambda: gala_cuda.resnet18(5, width=16),
    "se_resnet18": lambda: gala_cuda.se_resnet18(5, width=16),
    "gala_resnet26": lambda: gala_cuda.gala_resnet26(5, width=16, bias=True),
    "torchvision": lambda: convert(network("torchvision-basic", torch.float32)),
    "torchvision-keep-output": lambda: convert(network("torchvision-bottleneck", torch.float32), keep_output=True),
    "timm": lambda: convert(network("timm-basic", torch.float32)),
    "timm-drop-path": lambda: convert(network("timm-drop-path", torch.float32)),
}
NAMES = ("layer2", "layer3.0", "layer3", "layer4")


class Own(nn.Module):
    """A network of somebody else, with the function and the layer."""

    def __init__(self):
        super().__init__()
        self.conv, self.layer = nn.Conv2d(3, 8, 3, padding=1), GALA(8)

    def forward(self, x):
        x = self.conv(x)
        x = self.layer(x, residual=x)
        return gala_cuda.gala(x, *self.layer.weights)


@pytest.fixture(params=FX_NETWORKS)
def model(request):
    torch.manual_seed(0)
    return FX_NETWORKS[request.param]().eval()


@pytest.fixture
def x():
    return images(2, 32, torch.float32)


def calls(traced, function=gala_cuda.gala):
    return [node for node in traced.graph.nodes if node.target is function]


@pytest.mark.slow
@torch.no_grad()
def test_networks_are_traced_with_names_and_features(model, x):
    traced = fx.symbolic_trace(model)
    layers = [module for module in model.modules() if isinstance(module, GALA)]
    assert len(calls(traced)) == len(layers)
    assert torch.equal(traced(x), model(x))
    features, handles = {}, []
    for name in NAMES:

        def keep(module, inputs, out, name=name):
            features[name] = out.clone()

        handles.append(model.get_submodule(name).register_forward_hook(keep))
    model(x)
    for handle in handles:
        handle.remove()
    found = feature_extraction.create_feature_extractor(model, list(NAMES))(x)
    assert {name: torch.equal(found[name], features[name]) for name in NAMES} == dict.fromkeys(NAMES, True)


@pytest.mark.slow
@torch.no_grad()
def test_batchnorm_is_fused_into_the_convolutions(model, x):
    fused = fuse(model)
    left = [name for name, module in fused.named_modules() if type(module) is nn.BatchNorm2d]
    assert not left
    assert relative_difference(fused(x), model(x)) < 1e-4


def test_a_traced_network_has_gradients(x):
    model = gala_cuda.gala_resnet18(5, width=16)
    traced = fx.symbolic_trace(model)
    expected = torch.autograd.grad(model(x).square().sum(), list(model.parameters()))
    found = torch.autograd.grad(traced(x).square().sum(), list(model.parameters()))
    assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-5) for a, b in zip(found, expected, strict=True))


@torch.no_grad()
def test_maps_of_a_traced_network(x):
    model = gala_cuda.gala_resnet18(5, width=16).eval()
    with pytest.raises(AssertionError, match="return_maps is True, but the network was traced without maps"):
        fx.symbolic_trace(model)(x, return_maps=True)
    logits, maps = fx.symbolic_trace(model, concrete_args={"return_maps": True})(x, True)
    expected_logits, expected = model(x, return_maps=True)
    assert torch.equal(logits, expected_logits)
    assert list(maps) == list(expected) == ["layer3.0", "layer3.1"]
    assert all(torch.equal(maps[name], expected[name]) for name in maps)


@torch.no_grad()
def test_parts_of_a_network_are_traced_too(x):
    own = Own()
    traced = fx.symbolic_trace(own)
    assert len(calls(traced)) == 2
    assert torch.equal(traced(x), own(x))
    stage, features = gala_cuda.gala_resnet18(5, width=16).eval().layer3, torch.randn(2, 32, 8, 8)
    for part in (GALA(32), stage, stage[0]):
        assert torch.equal(fx.symbolic_trace(part)(features), part(features))
    traced = fx.symbolic_trace(part := GALA(4))
    x = torch.randn(2, 4, 3, 3)
    for got, expected in zip(traced(x, x, return_map=True), part(x, x, return_map=True), strict=True):
        assert torch.equal(got, expected)


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning", "ignore:.*torch.jit.*:FutureWarning")
@pytest.mark.parametrize("grad", [False, True], ids=["no-grad", "grad"])
@pytest.mark.parametrize("return_map", [False, True], ids=["out", "map"])
def test_jit_trace(backend, grad, return_map, recwarn):
    torch.manual_seed(0)
    layer = GALA(8, bias=True, backend=backend)

    class Call(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = layer

        def forward(self, x):
            return self.layer(x, residual=x, return_map=return_map)

    model, sample = Call(), torch.randn(2, 8, 5, 5)
    with torch.set_grad_enabled(grad):
        traced = torch.jit.trace(model, sample.requires_grad_(grad))
    assert not [w for w in recwarn if issubclass(w.category, torch.jit.TracerWarning)]
    file = io.BytesIO()
    torch.jit.save(traced, file)
    file.seek(0)
    x = torch.randn(3, 8, 4, 6, requires_grad=True)

    def answers(module):
        out = module(x)
        loss = sum(part.square().sum() for part in (out if return_map else (out,)))
        return loss, *torch.autograd.grad(loss, [x, *module.parameters()])

    for module in (traced, torch.jit.load(file)):
        for found, expected in zip(answers(module), answers(model), strict=True):
            assert torch.allclose(found, expected, rtol=1e-4, atol=1e-5)
