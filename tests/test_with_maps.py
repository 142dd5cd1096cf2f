"""Attention maps of converted networks: in the same pass, taught by the map loss, compiled, trained, evaluated."""

import copy
import pickle

import pytest
import timm
import torch
import torchvision
from torch import nn

import gala_cuda
from gala_cuda import GALA, WithMaps, convert, gala_resnet18
from gala_cuda.clickme import GalaMapLoss
from gala_cuda.models.attention_maps import attention_maps
from gala_cuda.models.with_maps import MapRecorder, returning_maps

MAKERS = {
    "torchvision": lambda: torchvision.models.resnet18(num_classes=3),
    "timm": lambda: timm.create_model("resnet18", num_classes=3),
    "timm-bottlenecks": lambda: timm.create_model("resnet26d", num_classes=3),
    "ours": lambda: gala_cuda.resnet18(3, width=8),
}


def converted(library):
    torch.manual_seed(0)
    return convert(MAKERS[library](), ("layer2", "layer3.1"))


def images(seed=1, n=2):
    return torch.randn(n, 3, 64, 64, generator=torch.Generator().manual_seed(seed))


class Own(nn.Module):
    """Asks its GALA for the map itself."""

    def __init__(self):
        super().__init__()
        self.conv, self.attention = nn.Conv2d(3, 8, 3), GALA(8)

    def forward(self, x, positional=False):
        x = self.conv(x)
        out, attn_map = self.attention(x, None, True) if positional else self.attention(x, return_map=True)
        return out.mean((2, 3)) + attn_map.mean((1, 2))[:, None]


@pytest.mark.parametrize("library", MAKERS)
@torch.no_grad()
def test_maps_of_converted_networks(library):
    """The output is the network's own, and the maps are the norms of the attention of each block."""
    model = converted(library).eval()
    inputs, names = {}, ["layer2.0", "layer2.1", "layer3.1"]
    for name in names:
        layer = model.get_submodule(f"{name}.attention")
        layer.register_forward_pre_hook(lambda layer, args, name=name: inputs.update({name: args[0]}))
    expected = model(images())
    logits, maps = WithMaps(model)(images(), return_maps=True)
    assert torch.equal(logits, expected)
    assert list(maps) == names
    for name, attn_map in maps.items():
        attention = model.get_submodule(f"{name}.attention").attention(inputs[name])
        torch.testing.assert_close(attn_map, torch.linalg.vector_norm(attention, dim=1), rtol=1e-5, atol=1e-6)
    again, others = attention_maps(model, images())
    assert torch.equal(again, expected)
    assert all(torch.equal(others[name], maps[name]) for name in names)


def test_the_map_loss_reaches_every_weight_before_the_last_map():
    """As for our own network, whose weights are the same."""
    ours, own = converted("ours"), converted("ours")
    loss, heatmap = GalaMapLoss(), torch.rand(2, 1, 64, 64, generator=torch.Generator().manual_seed(3))
    for model, called in ((ours, WithMaps(ours)), (own, own)):
        _, maps = called(images(), return_maps=True)
        loss(maps, heatmap, torch.tensor([True, True])).backward()
        reached = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}
        assert {"conv1.weight", "layer3.1.attention.v_collapse", "layer2.0.attention.w_shrink"} <= reached
        assert not {name for name in reached if name.startswith(("layer4", "fc"))}
    for mine, theirs in zip(ours.parameters(), own.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad)


@pytest.mark.parametrize("library", ["torchvision", "timm"])
def test_compiled_whole(library):
    model = WithMaps(converted(library)).eval()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    for return_maps in (True, False, True):
        expected, found = model(images(), return_maps), compiled(images(), return_maps)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_the_network_stays_as_it_was():
    """By itself it returns its output, and it can be copied and pickled, hooks and all; its keys have no prefix."""
    model = converted("torchvision").eval()
    keys, expected = list(model.state_dict()), model(images())
    wrapped = WithMaps(model)
    wrapped(images(), return_maps=True)
    assert list(model.state_dict()) == keys
    for other in (model, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(other(images()), expected)
    other = copy.deepcopy(wrapped)
    assert other(images(), return_maps=True)[1].keys() == wrapped(images(), return_maps=True)[1].keys()
    assert torch.equal(WithMaps(model)(images(), return_maps=True)[0], expected)  # a second one


def test_an_error_leaves_no_maps_behind():
    model = converted("torchvision")
    wrapped = WithMaps(model)
    with pytest.raises(RuntimeError, match="channels"):
        wrapped(torch.randn(1, 4, 64, 64), return_maps=True)
    assert isinstance(model(images()), torch.Tensor)
    assert wrapped(images(), return_maps=True)[1]["layer2.0"].shape == (2, 8, 8)


@pytest.mark.parametrize("positional", [False, True])
def test_a_network_that_asks_for_its_maps_itself(positional):
    model = Own()
    expected = model(images(), positional)
    maps = []
    model.attention.register_forward_hook(lambda layer, args, output: maps.append(output[1]))
    recorder = MapRecorder(model)
    recorder.wanted = True
    assert torch.equal(model(images(), positional), expected)
    found = recorder.take()
    assert list(found) == ["attention"]
    assert torch.equal(found["attention"], maps[0])


def test_what_is_wrapped():
    own, plain, theirs = gala_resnet18(2, width=4), gala_cuda.resnet18(2, width=4), converted("timm")
    assert returning_maps(own) is own
    assert returning_maps(plain) is plain
    assert returning_maps(theirs).model is theirs
    with pytest.raises(ValueError, match=r"model is a ResNet without GALA; see gala_cuda\.convert"):
        WithMaps(torchvision.models.resnet18())
    with pytest.raises(TypeError, match=r"model is a str; expected a torch\.nn\.Module"):
        WithMaps("resnet18")
