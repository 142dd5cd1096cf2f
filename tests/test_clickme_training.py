"""Training with human maps: what is learnt, logged and refused, resumed, shared; without maps, the same as before."""

import json
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from gala_cuda import GALA, convert, gala_resnet18, resnet18
from gala_cuda.clickme import GalaMapLoss, HarmonizationLoss, MapScoreMeter
from gala_cuda.console import PlainConsole
from gala_cuda.data.batches import Batches
from gala_cuda.data.clickme_sample import ClickMeSample
from gala_cuda.data.datasets import InMemoryDataset
from gala_cuda.data.load import Data
from gala_cuda.training.distributed import process_group, world
from gala_cuda.training.evaluate import evaluate
from gala_cuda.training.loop import fit
from gala_cuda.training.meters import Meter
from gala_cuda.training.recipe import Recipe, RecipeError
from gala_cuda.training.run import Run
from gala_cuda.training.step import Stepper

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]
CPU = torch.device("cpu")
SIDE, CLASSES = 24, 2
RECIPE = Recipe(epochs=3, batch_size=32, lr=0.05, weight_decay=0.0)


class Spots:
    """Noisy images with a bright or a dark spot in one of nine places, which is the human map; every fifth has none."""

    def __init__(self, count, seed):
        rng = torch.Generator().manual_seed(seed)
        self.labels, self.shape = torch.randint(CLASSES, (count,), generator=rng), (3, SIDE, SIDE)
        places = torch.randint(9, (count,), generator=rng)
        self.maps = torch.zeros(count, 1, SIDE, SIDE)
        for attn_map, place in zip(self.maps, places, strict=True):
            y, x = 8 * (place // 3), 8 * (place % 3)
            attn_map[:, y : y + 8, x : x + 8] = 1
        sign = 2.0 * self.labels[:, None, None, None] - 1
        self.images = torch.randn(count, 3, SIDE, SIDE, generator=rng) + 2 * sign * self.maps
        self.has_map = torch.arange(count) % 5 > 0
        self.maps[~self.has_map] = torch.nan

    def name(self, index):
        return f"spot {index}"

    def prepare(self, indices):
        pass

    def read(self, index, seed):
        return ClickMeSample(self.images[index], self.labels[index], self.maps[index], self.has_map[index])


TRAIN, TEST = Spots(160, 0), Spots(60, 1)


def data(recipe=RECIPE, maps=True, rank=0, world=1, sets=(TRAIN, TEST)):
    sources = sets if maps else [InMemoryDataset(each.images, each.labels) for each in sets]
    train, test = (
        Batches(source, recipe.micro_batch_size(world), train=train, rank=rank, world=world)
        for source, train in zip(sources, (True, False), strict=True)
    )
    return Data(train, test, ("dark", "bright"), 3, SIDE)


def network(make=gala_resnet18):
    """With the paper's start, whose attention moves from the first step on: there are few."""
    torch.manual_seed(0)
    return make(CLASSES, stem="small", width=4, **({"init": "paper"} if make is gala_resnet18 else {}))


def converted():
    """A network that does not return maps itself."""
    return nn.Sequential(convert(resnet18(CLASSES, stem="small", width=4), init="paper"))


def trained(output, recipe=RECIPE, model=None, maps=True, console=None, sets=(TRAIN, TEST), **options):
    model = model or network()
    console = console or PlainConsole(quiet=True)
    return fit(model, data(recipe, maps, sets=sets), recipe, Run(output, CPU, console, **options)), model


def test_attention_learns_to_be_where_people_look(tmp_path):
    recipe, console = replace(RECIPE, epochs=6), PlainConsole(record=True, width=200)
    taught, _ = trained(tmp_path / "taught", recipe, console=console, logs=["tensorboard"])
    untaught, _ = trained(tmp_path / "untaught", replace(recipe, clickme_weight=0.0))
    assert taught[-1].map_loss < 0.8 * taught[0].map_loss
    assert taught[-1].map_similarity > 0.4 > untaught[-1].map_similarity
    assert {epoch.map_loss for epoch in untaught} == {None}
    lines = [json.loads(line) for line in (tmp_path / "taught/log.jsonl").read_text().splitlines()]
    assert lines[-1] == asdict(taught[-1])
    printed = console.export_text()
    assert f"map loss {taught[-1].map_loss:.4f}  map rho {taught[-1].map_similarity:+.3f}" in printed
    (row,) = (line for line in printed.splitlines() if line.startswith("│ map rho"))
    assert f"{taught[-1].map_similarity:.4f}" in row
    events = b"".join(file.read_bytes() for file in (tmp_path / "taught/tensorboard").iterdir())
    assert b"epoch/map_loss" in events
    assert b"epoch/map_similarity" in events


def test_attention_of_a_converted_network_learns_too(tmp_path):
    torch.manual_seed(0)
    log, model = trained(tmp_path, replace(RECIPE, epochs=6, lr=0.02), converted())
    assert log[-1].map_loss < 0.8 * log[0].map_loss
    assert log[-1].map_similarity > 0.4
    assert set(load_file(tmp_path / "last.safetensors")) == set(model.state_dict())


def test_input_gradients_learn_to_be_where_people_look(tmp_path):
    """Of a network without attention, on the images that it is taught with: for others it would take more of them."""
    sets = (few := Spots(32, 0), few)
    taught_recipe = replace(RECIPE, clickme_loss="harmonization", clickme_weight=3.0, epochs=60, lr=0.02)
    taught, _ = trained(tmp_path / "taught", taught_recipe, network(resnet18), sets=sets)
    untaught_recipe = replace(taught_recipe, clickme_weight=0.0)
    _, untaught = trained(tmp_path / "untaught", untaught_recipe, network(resnet18), sets=sets)
    evaluate(untaught, data(sets=sets).test, CPU, map_meter=(record := MapScoreMeter(saliency=True)))
    assert taught[-1].map_similarity > record.rho.mean() + 0.05
    assert {epoch.map_loss is None for epoch in taught} == {False}


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("loss", ["paper", "gala_tpu", "harmonization"])
def test_a_step_adds_the_weighted_map_loss(loss, accumulate):
    """The gradients are those of cross-entropy plus weight times map loss, of the batch as a whole."""
    recipe = Recipe(
        clickme_loss=loss, clickme_weight=2.0, accumulate=accumulate, lr=1.0, momentum=0.0, weight_decay=0.0
    )
    model, meter = network().eval(), Meter(CPU)
    stepper = Stepper(model, recipe, CPU, CLASSES, TRAIN.shape)
    model.eval()  # BatchNorm would see the parts
    before = [p.detach().clone() for p in model.parameters()]
    batch = (TRAIN.images[:8], TRAIN.labels[:8], TRAIN.maps[:8], TRAIN.has_map[:8])
    size = 8 // accumulate
    parts = [ClickMeSample(*(t[i : i + size] for t in batch)) for i in range(0, 8, size)]
    images, labels, heatmap, has_map = batch
    images = images.clone().requires_grad_()
    logits, maps = model(images, return_maps=True)
    if loss == "harmonization":
        map_loss = HarmonizationLoss(2.0)(logits, images, labels, heatmap, has_map)
    else:
        map_loss = GalaMapLoss(loss, 2.0, [16, 16])(maps, heatmap, has_map)
    expected = nn.functional.cross_entropy(logits, labels) + map_loss
    grads = torch.autograd.grad(expected, list(model.parameters()), allow_unused=True)
    mean = stepper(parts, lr=1.0, step=0, meter=meter)
    torch.testing.assert_close(mean, expected.detach())
    for p, old, grad in zip(model.parameters(), before, grads, strict=True):
        torch.testing.assert_close(old - p, torch.zeros_like(p) if grad is None else grad, rtol=1e-4, atol=1e-6)
    *_, summed, with_map = meter.sums().tolist()
    assert with_map == has_map.sum()
    assert summed == pytest.approx(map_loss.item() / 2 * 8, rel=1e-4)


@pytest.mark.parametrize("maps", [False, True], ids=["no-maps", "weight-0"])
def test_without_map_loss_nothing_changes(tmp_path, maps):
    """The weights are those of a training on the same images without maps, bit for bit."""
    recipe = replace(RECIPE, epochs=2)
    _, expected = trained(tmp_path / "plain", recipe, network(resnet18), maps=False)
    other = replace(recipe, clickme_weight=0.0 if maps else 6.0, mixup=0.0)
    log, model = trained(tmp_path / "other", other, network(resnet18), maps=maps)
    assert (log[-1].map_loss, log[-1].map_similarity) == (None, None)
    for name, tensor in expected.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor), name


def test_similarity_is_logged_without_map_loss(tmp_path):
    log, _ = trained(tmp_path, replace(RECIPE, epochs=1, clickme_weight=0.0))
    assert log[0].map_loss is None
    assert -1 < log[0].map_similarity < 1


@pytest.mark.parametrize(
    ("make", "recipe"),
    [
        pytest.param(gala_resnet18, replace(RECIPE, ema=0.9, accumulate=2, clip=1.0, epochs=2), id="paper"),
        pytest.param(resnet18, replace(RECIPE, clickme_loss="harmonization", epochs=2), id="harmonization"),
    ],
)
def test_interrupted_and_resumed_equals_uninterrupted(tmp_path, make, recipe):
    """Within the second epoch, after a checkpoint in it: the sums of the epoch so far are of map losses too."""
    whole, broken, done = tmp_path / "whole", tmp_path / "broken", []

    def interrupt(*_):
        done.append(1)
        if len(done) == 9:
            raise KeyboardInterrupt

    log, _ = trained(whole, recipe, network(make), checkpoint_every=2)
    hook = register_optimizer_step_post_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        trained(broken, recipe, network(make), checkpoint_every=2)
    hook.remove()
    again, _ = trained(broken, recipe, network(make), resume=True, checkpoint_every=2)
    assert (broken / "last.safetensors").read_bytes() == (whole / "last.safetensors").read_bytes()
    logged = [[(e.loss, e.map_loss, e.map_similarity) for e in epochs] for epochs in (log, again)]
    assert logged[0] == logged[1]


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_mixed_precision_learns(tmp_path, precision):
    log, _ = trained(tmp_path, replace(RECIPE, precision=precision))
    assert log[-1].map_loss < 0.9 * log[0].map_loss
    assert log[-1].map_similarity > log[0].map_similarity


class Small(nn.Module):
    """A convolution, GALA and a linear layer."""

    def __init__(self):
        super().__init__()
        self.conv, self.attention, self.fc = nn.Conv2d(3, 8, 3, 2), GALA(8, init="paper"), nn.Linear(8, CLASSES)

    def forward(self, x, return_maps=False):
        x, attn_map = self.attention(self.conv(x), return_map=True)
        logits = self.fc(x.mean((2, 3)))
        return (logits, {"attention": attn_map}) if return_maps else logits


def test_compiled_step_has_the_same_loss():
    means = []
    for compiled in (False, True):
        torch.manual_seed(0)
        stepper = Stepper(Small(), replace(RECIPE, compile=compiled), CPU, CLASSES, TRAIN.shape)
        part = ClickMeSample(TRAIN.images[:8], TRAIN.labels[:8], TRAIN.maps[:8], TRAIN.has_map[:8])
        means.append([stepper([part], lr=0.1, step=step, meter=Meter(CPU)) for step in (0, 1)])
    torch.testing.assert_close(*means, rtol=1e-5, atol=0)


def unaware():
    """`Small`, but it does not return maps itself either."""
    pool = [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(nn.Conv2d(3, 8, 3, 2), GALA(8, init="paper"), *pool, nn.Linear(8, CLASSES))


SHARED = {
    "paper": (Small, replace(RECIPE, epochs=2)),
    "harmonization": (Small, replace(RECIPE, epochs=2, clickme_loss="harmonization")),
    "unaware": (unaware, replace(RECIPE, epochs=2)),
    "sharded": (unaware, replace(RECIPE, epochs=2, parallel="fsdp")),
}


def shared(output):
    """The trainings of SHARED by this process and the others."""
    here = world()
    for name, (make, recipe) in SHARED.items():
        torch.manual_seed(0)
        fit(
            make(),
            data(recipe, rank=here.rank, world=here.size),
            recipe,
            Run(output / name, CPU, PlainConsole(quiet=True)),
        )


def test_two_processes_equal_one(tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*command, __file__, tmp_path / "two"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    assert done.returncode == 0, done.stdout
    shared(tmp_path / "one")
    for name in SHARED:
        mine, theirs = (
            [json.loads(line) for line in (tmp_path / count / name / "log.jsonl").read_text().splitlines()]
            for count in ("one", "two")
        )
        for one, two in zip(mine, theirs, strict=True):
            for measured in ("loss", "test_loss", "map_loss", "map_similarity"):
                assert two[measured] == pytest.approx(one[measured], rel=1e-4), (name, measured)
        expected, found = (load_file(tmp_path / count / name / "last.safetensors") for count in ("one", "two"))
        for key, tensor in expected.items():
            torch.testing.assert_close(found[key], tensor, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        pytest.param(resnet18, {}, "clickme_loss is 'paper', but ResNet has no GALA; expected",
                     id="no-attention"),
        pytest.param(gala_resnet18, {"mixup": 0.2}, "mixup is 0.2; expected 0 with human maps", id="mixup"),
        pytest.param(gala_resnet18, {"cutmix": 1.0}, "cutmix is 1.0; expected 0 with human maps", id="cutmix"),
        pytest.param(gala_resnet18, {"clickme_loss": "harmonization", "compile": True}, "compile is True; exp",
                     id="compile"),
        pytest.param(gala_resnet18, {"clickme_loss": "harmonization", "precision": "float16"},
                     "precision is 'float16'; expected float32 or bfloat16", id="float16"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("folder", [None, "a folder"], ids=["found", "told"])
def test_what_does_not_go_together_is_refused_before_training(tmp_path, make, options, message, folder):
    model = network(make)
    before = [p.clone() for p in model.parameters()]
    with pytest.raises(RecipeError, match=message):
        trained(tmp_path / "run", replace(RECIPE, clickme=folder, **options), model)
    assert all(torch.equal(p, old) for p, old in zip(model.parameters(), before, strict=True))
    assert (tmp_path / "run").exists() == (folder is None)


if __name__ == "__main__":  # one of the processes of test_two_processes_equal_one
    torch.set_num_threads(1)
    with process_group(CPU):
        shared(Path(sys.argv[1]))
