"""Gradient checkpointing changes nothing but memory; how torch.compile is asked."""

import copy

import pytest
import timm
import torch
import torchvision
from torch import nn

from gala_cuda import convert, gala_resnet18
from gala_cuda.cli.main import main
from gala_cuda.training.grad_checkpointing import checkpoint_blocks
from gala_cuda.training.meters import Meter
from gala_cuda.training.recipe import Recipe, RecipeError
from gala_cuda.training.step import Stepper

pytestmark = pytest.mark.usefixtures("one_thread")
CPU = torch.device("cpu")


def with_dropout():
    model = gala_resnet18(3, stem="small", width=4)
    model.layer2.append(nn.Dropout(0.5))
    return model


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(with_dropout, id="ours"),
        pytest.param(lambda: convert(torchvision.models.resnet18(num_classes=3)), id="torchvision"),
        pytest.param(lambda: timm.create_model("vit_tiny_patch16_224", img_size=32, depth=3, num_classes=3), id="timm"),
    ],
)
def test_gradients_and_statistics_are_the_same_and_memory_is_less(make):
    torch.manual_seed(0)
    plain = make().train()
    saving = copy.deepcopy(plain)
    checkpoint_blocks(saving)
    images, kept = torch.randn(4, 3, 32, 32), []
    for model in (plain, saving):
        sizes = dict[int, int]()

        def keep(tensor, sizes=sizes):
            sizes[tensor.data_ptr()] = tensor.numel()
            return tensor

        torch.manual_seed(1)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            model(images).square().sum().backward()
        own = {parameter.data_ptr() for parameter in model.parameters()}
        kept.append(sum(size for place, size in sizes.items() if place not in own))
    assert kept[1] < 0.6 * kept[0]
    for (name, one), other in zip(plain.named_parameters(), saving.parameters(), strict=True):
        assert torch.equal(one.grad, other.grad), name
    for (name, one), other in zip(plain.named_buffers(), saving.buffers(), strict=True):
        assert torch.equal(one, other), name
    assert list(saving.state_dict()) == list(plain.state_dict())
    assert all(norm.momentum == 0.1 for norm in saving.modules() if isinstance(norm, nn.BatchNorm2d))
    with torch.no_grad():
        assert torch.equal(saving.eval()(images), plain.eval()(images))


def test_frozen_statistics_stay_frozen():
    model = gala_resnet18(3, stem="small", width=4).train()
    model.layer1.eval()
    checkpoint_blocks(model)
    before = {name: tensor.clone() for name, tensor in model.named_buffers()}
    model(torch.randn(4, 3, 16, 16)).sum().backward()
    same = {name for name, tensor in model.named_buffers() if torch.equal(tensor, before[name])}
    assert {name for name in before if name.startswith("layer1")} == same


def test_a_network_without_blocks_is_refused():
    with pytest.raises(RecipeError, match="grad_checkpointing is True, but Linear has no stages of blocks"):
        checkpoint_blocks(nn.Linear(2, 2))


@pytest.mark.parametrize("loss", ["paper", "harmonization"])
@pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda: gala_resnet18(3, stem="small", width=4, init="paper"), id="ours"),
        pytest.param(lambda: convert(torchvision.models.resnet18(num_classes=3), init="paper"), id="torchvision"),
    ],
)
def test_a_step_with_human_maps_is_the_same(make, loss):
    torch.manual_seed(0)
    plain = make()
    saving, batch = copy.deepcopy(plain), (
        torch.randn(4, 3, 32, 32), torch.tensor([0, 1, 2, 0]), torch.rand(4, 1, 32, 32),
        torch.tensor([True, True, False, True]),
    )  # fmt: skip
    sums = []
    for model in (plain, saving):
        recipe = Recipe(clickme="maps", clickme_loss=loss, grad_checkpointing=model is saving, optimizer="adamw")
        stepper, meter = Stepper(model, recipe, CPU, 3, (3, 32, 32)), Meter(CPU)
        stepper.train()
        for step in range(2):
            stepper([batch], 0.1, step, meter)
        sums.append(meter.sums())
        assert not stepper.parallel_model(batch[0], return_maps=True)[0].isnan().any()
    assert torch.equal(*sums)
    for (name, one), other in zip(plain.state_dict().items(), saving.state_dict().values(), strict=True):
        assert torch.equal(one, other), name


def test_torch_compile_is_told_the_mode(monkeypatch, capsys):
    asked = []
    monkeypatch.setattr(nn.Module, "compile", lambda self, **options: asked.append(options))
    for mode in (None, "max-autotune"):
        recipe = Recipe(compile=True, compile_mode=mode)
        Stepper(gala_resnet18(3, stem="small", width=4), recipe, CPU, 3, (3, 16, 16))
    assert asked == [{"mode": None}, {"mode": "max-autotune"}]
    for arguments, message in (
        (["--compile", "--compile-mode", "fast"], "argument --compile-mode: invalid choice: 'fast'"),
        (["--compile-mode", "default"], "argument --compile-mode: compile_mode is default; expected it together with"),
    ):
        with pytest.raises(SystemExit):
            main(["train", *arguments])
        assert message in capsys.readouterr().err
