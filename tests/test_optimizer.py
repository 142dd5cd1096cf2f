"""Optimizers by name, learning rates by depth, and what is frozen."""

import sys
from dataclasses import replace

import pytest
import timm
import torch
import torchvision
from torch.optim.optimizer import register_optimizer_step_post_hook

from gala_cuda import gala_resnet18, resnet18
from gala_cuda.cli.main import main
from gala_cuda.console import PlainConsole
from gala_cuda.data.load import load
from gala_cuda.training.loop import fit
from gala_cuda.training.optimizer import LR_SCALE, TORCH, build_optimizer, layer_depths
from gala_cuda.training.recipe import Recipe, RecipeError
from gala_cuda.training.run import Run
from gala_cuda.training.step import Stepper

pytestmark = pytest.mark.usefixtures("one_thread")
CPU = torch.device("cpu")
RECIPE = Recipe(epochs=1, batch_size=64, lr=1e-3)


def network(make=gala_resnet18):
    torch.manual_seed(0)
    return make(10, in_channels=1, stem="small", width=4)


def trained(output, recipe, **options):
    model = network()
    log = fit(model, load("digits", 64, 0, 16), recipe, Run(output, CPU, PlainConsole(quiet=True), **options))
    return log, model


def depths_of(model):
    return layer_depths(name for name, _ in model.named_parameters())


@pytest.mark.parametrize(
    "model",
    [network(resnet18), torchvision.models.resnet18(), timm.create_model("resnet18")],
    ids=["ours", "tv", "timm"],
)
def test_depths_are_those_of_the_blocks(model):
    depths = depths_of(model)
    assert {depths["conv1.weight"], depths["bn1.bias"]} == {0}
    blocks = [f"layer{stage}.{number}" for stage in range(1, 5) for number in range(2)]
    for depth, block in enumerate(blocks, 1):
        assert {value for name, value in depths.items() if name.startswith(f"{block}.")} == {depth}
    assert depths["fc.weight"] == 9


def test_depths_of_a_transformer():
    depths = depths_of(timm.create_model("test_vit"))
    count = 1 + max(int(name.split(".")[1]) for name in depths if name.startswith("blocks."))
    assert {depths["cls_token"], depths["pos_embed"], depths["patch_embed.proj.weight"]} == {0}
    assert [depths[f"blocks.{i}.attn.qkv.weight"] for i in range(count)] == list(range(1, count + 1))
    assert depths["head.weight"] == count + 1


def test_learning_rates_by_depth():
    """The first step of plain SGD is the gradient times the learning rate of the layer."""
    recipe = replace(RECIPE, layer_decay=0.5, momentum=0.0, weight_decay=0.0, lr=1.0)
    model = network()
    stepper = Stepper(model, recipe, CPU, 10, (1, 16, 16))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    images, labels = torch.randn(8, 1, 16, 16), torch.arange(8)
    stepper.train()
    gradients = torch.autograd.grad(torch.nn.functional.cross_entropy(model(images), labels), list(model.parameters()))
    for module in model.modules():
        if hasattr(module, "reset_running_stats"):
            module.reset_running_stats()
    stepper([(images, labels)], 0.25, 0, _Meter())
    depths = depths_of(model)
    for (name, p), gradient in zip(model.named_parameters(), gradients, strict=True):
        step = before[name] - p.detach()
        torch.testing.assert_close(step, 0.25 * 0.5 ** (9 - depths[name]) * gradient, rtol=1e-4, atol=1e-6)


class _Meter:
    def add(self, *_):
        pass


def test_names_of_torch():
    """What its classes take, in the version that is installed: a new one has to be looked at."""
    known = "adadelta adafactor adagrad adam adamax adamw asgd nadam radam rmsprop sgd"
    assert " ".join(TORCH) == known
    for name, kind in TORCH.items():
        made = build_optimizer(network(), replace(RECIPE, optimizer=name.upper(), momentum=0.8))
        assert type(made) is kind
        for group in made.param_groups:
            assert group["lr"] == RECIPE.lr
            assert group.get("momentum", 0.8) == group.get("betas", [0.8])[0] == 0.8
            assert group.get("nesterov", True)
    assert "momentum" in made.param_groups[0], "sgd is the last one"


@pytest.mark.parametrize("name", ["adadelta", "adagrad", "nadam", "rmsprop"])
def test_optimizers_of_torch_learn_without_timm(tmp_path, monkeypatch, name):
    monkeypatch.setitem(sys.modules, "timm.optim", None)
    log, _ = trained(tmp_path, replace(RECIPE, optimizer=name, epochs=2, lr=0.5 if name == "adadelta" else 3e-3))
    assert log[-1].loss < log[0].loss


@pytest.mark.parametrize("name", ["lamb", "lion", "muon", "adan"])
def test_optimizers_of_timm_learn(tmp_path, name):
    log, _ = trained(tmp_path, replace(RECIPE, optimizer=name, epochs=2, lr=3e-3))
    assert log[-1].loss < log[0].loss


@pytest.mark.slow
@pytest.mark.parametrize("name", ["lamb", "lion", "muon", "adafactor", "adagrad", "asgd"])
def test_interrupted_and_resumed_equals_uninterrupted(tmp_path, name):
    recipe, done = replace(RECIPE, optimizer=name, layer_decay=0.7, freeze=("layer1.0",)), []

    def interrupt(*_):
        done.append(1)
        if len(done) == 9:
            raise KeyboardInterrupt

    trained(tmp_path / "whole", recipe, checkpoint_every=4)
    hook = register_optimizer_step_post_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path / "broken", recipe, checkpoint_every=4)
    hook.remove()
    trained(tmp_path / "broken", recipe, resume=True, checkpoint_every=4)
    whole, broken = (tmp_path / part / "last.safetensors" for part in ("whole", "broken"))
    assert whole.read_bytes() == broken.read_bytes()


def test_what_is_frozen_stays(tmp_path):
    start = network().state_dict()
    frozen = ("conv1", "bn1", "layer1", "layer2.0")
    _, model = trained(tmp_path, replace(RECIPE, freeze=frozen, lr=0.1, ema=0.9))
    for name, tensor in model.state_dict().items():
        stays = name.startswith(tuple(f"{each}." for each in frozen))
        assert torch.equal(tensor, start[name]) == stays, name
    found = build_optimizer(model, RECIPE)
    assert sum(len(group["params"]) for group in found.param_groups) == sum(p.requires_grad for p in model.parameters())
    assert {group[LR_SCALE] for group in found.param_groups} == {1.0}


@pytest.mark.parametrize(
    ("changes", "name", "message"),
    [
        ({"freeze": ("layer9",)}, "freeze", "freeze names 'layer9'; expected some of conv1, bn1, "),
        (
            {"freeze": ("conv1", "bn1", "layer1", "layer2", "layer3", "layer4", "fc")},
            "freeze",
            "leaves nothing to train",
        ),
        *(
            ({"optimizer": name}, "optimizer", f"optimizer is '{name}'; expected .*, sgd or the name of one of timm's")
            for name in ("sdg", "lbfgs", "rprop", "sparseadam")
        ),
        ({"optimizer": "adahessian"}, "optimizer", "'adahessian', which takes second derivatives"),
    ],
)
def test_refusals_write_nothing(tmp_path, changes, name, message):
    with pytest.raises(RecipeError, match=message) as error:
        trained(tmp_path / "run", replace(RECIPE, **changes))
    assert error.value.names[0] == name
    assert not (tmp_path / "run").exists()


def test_without_timm_its_optimizers_are_refused(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm.optim", None)
    for name in ("lamb", "muon"):
        with pytest.raises(RecipeError, match=rf"optimizer is '{name}'; expected adad.*, and timm is not installed"):
            build_optimizer(network(), replace(RECIPE, optimizer=name))


@pytest.mark.parametrize("value", ["0", "1.5", "nan"])
def test_a_decay_out_of_range_is_named(capsys, tmp_path, value):
    with pytest.raises(SystemExit):
        main(["train", "--layer-decay", value, "--output", str(tmp_path / "run")])
    assert "argument --layer-decay: layer_decay is " in capsys.readouterr().err


def test_the_command_takes_them(tmp_path):
    options = ["--freeze", "conv1", "layer1", "--layer-decay", "0.8", "--optimizer", "lion", "--lr", "1e-4"]
    options += ["--epochs", "1", "--image-size", "16", "--width", "4"]
    assert main(["train", *options, "--output", str(tmp_path / "run")]) == 0
    recipe = (tmp_path / "run" / "recipe.yaml").read_text()
    assert "freeze:\n- conv1\n- layer1\n" in recipe
    assert "optimizer: lion" in recipe
