"""The loop: what it learns, writes, averages, counts, and where it stops."""

import json
from dataclasses import asdict

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from gala_cuda import GALA, gala_resnet18, resnet18
from gala_cuda.console import PlainConsole
from gala_cuda.data.batches import Batches
from gala_cuda.data.load import load
from gala_cuda.training.checkpoint import Checkpoints
from gala_cuda.training.epoch import best_epoch
from gala_cuda.training.evaluate import evaluate
from gala_cuda.training.loop import DivergenceError, fit
from gala_cuda.training.meters import training_flops
from gala_cuda.training.mixing import build_mixing
from gala_cuda.training.optimizer import build_optimizer
from gala_cuda.training.recipe import Recipe
from gala_cuda.training.recipe_file import resolve
from gala_cuda.training.run import Run
from gala_cuda.training.schedule import learning_rate

pytestmark = pytest.mark.usefixtures("one_thread")
CPU = torch.device("cpu")


def small_network(channels=1, classes=10):
    torch.manual_seed(0)
    return gala_resnet18(classes, in_channels=channels, stem="small", width=4)


def tiny_network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 8, 3, stride=2), nn.ReLU(), GALA(8), nn.Flatten(), nn.Linear(72, 10))


@pytest.fixture
def folder(tmp_path):
    """Two classes that differ in colour: 6 pictures to train on, 4 held out."""
    for split, count in (("train", 3), ("val", 2)):
        for name, colour in (("blue", (20, 40, 200)), ("red", (200, 40, 20))):
            place = tmp_path / split / name
            place.mkdir(parents=True)
            for i in range(count):
                Image.new("RGB", (40 + i, 30), colour).save(place / f"{i}.png")
    return tmp_path


def train(output, recipe, data=None, model=None, **options):
    """The log and the network of a training on the digits."""
    data = data or load("digits", recipe.micro_batch_size(), seed=recipe.seed, size=8)
    model = model or small_network(data.channels, len(data.classes))
    return fit(model, data, recipe, Run(output, CPU, PlainConsole(quiet=True), **options)), model


def vector(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def test_a_short_training_learns_and_writes(tmp_path):
    log, model = train(tmp_path, Recipe(epochs=2), logs=["tensorboard"], metadata={"a": "b"})
    assert log[1].loss < 0.5 * log[0].loss
    assert 0.5 < log[1].test_accuracy < log[1].test_top5
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [(line["epoch"], line["step"]) for line in lines] == [(1, 21), (2, 42)]
    assert lines[1] == asdict(log[1])
    assert resolve(str(tmp_path / "recipe.yaml"), {}) == Recipe(epochs=2)
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert list((tmp_path / "tensorboard").iterdir())
    restored, data = small_network(), load("digits", 64, seed=0, size=8)
    for name, epoch in (("last", log[1]), ("best", best_epoch(log))):
        restored.load_state_dict(load_file(tmp_path / f"{name}.safetensors"))
        assert evaluate(restored, data.test, CPU).top1 == epoch.test_accuracy
    assert torch.equal(vector(small_network().to(CPU)) != vector(model), torch.ones_like(vector(model), dtype=bool))


def test_image_folder(folder, tmp_path):
    recipe = Recipe(epochs=6, batch_size=6, lr=0.05)
    log, _ = train(tmp_path / "run", recipe, load(str(folder), 6, seed=0, size=16))
    assert (log[-1].train_accuracy, log[-1].skipped) == (1, 0)


def test_skipped_images_are_named_once_and_counted(tmp_path):
    data, console = load("digits", 64, seed=0, size=8), PlainConsole(record=True, width=200)
    broken = [("a/1.png", "is cut"), ("a/2.png", "is empty")]
    data.train.__class__ = type("Broken", (Batches,), {"skipped": broken})
    log = fit(tiny_network(), data, Recipe(epochs=2), Run(tmp_path, CPU, console))
    assert [epoch.skipped for epoch in log] == [2, 2]
    printed = console.export_text()
    assert [printed.count(f"skipped {name}: {why}\n") for name, why in broken] == [1, 1]


def test_a_loss_that_is_no_number_stops(tmp_path):
    with pytest.raises(
        DivergenceError, match=r"the loss is (nan|inf) in epoch 1/2, step \d+, at lr .*; there is no checkpoint"
    ):
        train(tmp_path, Recipe(epochs=2, lr=1e30, warm_up=0), model=tiny_network())


def test_a_late_loss_that_is_no_number_names_the_last_checkpoint(tmp_path):
    data, steps, model = load("digits", 64, seed=0, size=8), [], tiny_network()

    def spoil(*_):
        steps.extend([1] * model.training)
        if len(steps) == 26:
            model[-1].bias.data.fill_(torch.nan)

    model.register_forward_pre_hook(spoil)
    with pytest.raises(DivergenceError) as stopped:
        train(tmp_path, Recipe(epochs=2), data, model)
    last = tmp_path / "checkpoints" / "step-00000021"
    lr = learning_rate(Recipe(epochs=2), 25 / 42)
    assert str(stopped.value) == (
        f"the loss is nan in epoch 2/2, step 26, at lr {lr:.3g}; the last good checkpoint is {last}"
    )
    assert last.is_dir()


def test_weights_that_are_no_numbers_are_never_a_checkpoint(tmp_path):
    model = tiny_network()
    model[-1].weight.register_hook(lambda grad: torch.full_like(grad, torch.inf))
    with pytest.raises(DivergenceError, match=r"4.weight is not finite, step 1, at lr 0.1; there is no checkpoint yet"):
        train(tmp_path, Recipe(epochs=1, lr=0.1, warm_up=0), model=model, checkpoint_every=1)


@pytest.mark.slow
def test_accumulated_parts_are_one_batch(tmp_path):
    """Without BatchNorm, which sees the parts, the losses and weights are those of whole batches."""
    results = []
    for accumulate in (1, 4):
        log, model = train(tmp_path, Recipe(epochs=2, accumulate=accumulate), model=tiny_network())
        results.append((torch.tensor([epoch.loss for epoch in log]), vector(model)))
    for whole, parts in zip(*results, strict=True):
        torch.testing.assert_close(parts, whole, rtol=1e-4, atol=1e-6)


def test_averaged_weights_are_those_of_their_formula(tmp_path):
    model, seen = nn.Sequential(nn.Flatten(), nn.Linear(64, 10), nn.BatchNorm1d(10)), []
    expected = model[1].weight.detach().double().clone()
    hook = register_optimizer_step_post_hook(lambda *_: seen.append(model[1].weight.detach().double().clone()))
    train(tmp_path, Recipe(epochs=1, ema=0.5), model=model)
    hook.remove()
    for n, weight in enumerate(seen):
        decay = min(0.5, (1 + n) / (10 + n))
        expected = decay * expected + (1 - decay) * weight
    last = load_file(tmp_path / "last.safetensors")
    torch.testing.assert_close(last["1.weight"].double(), expected, rtol=1e-5, atol=1e-7)
    assert last["2.num_batches_tracked"] == 21
    assert torch.equal(model[1].weight.double(), seen[-1])  # testing gave the weights back


def test_clipping_bounds_the_gradient(tmp_path):
    model, norms = nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), []
    hook = register_optimizer_step_pre_hook(
        lambda *_: norms.append(torch.stack([p.grad.norm() for p in model.parameters()]).norm())
    )
    train(tmp_path, Recipe(epochs=1, clip=1e-3), model=model)
    hook.remove()
    torch.testing.assert_close(torch.stack(norms), torch.full((21,), 1e-3))


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_mixed_precision_learns(tmp_path, precision):
    dtypes, model = set(), tiny_network()
    model[2].register_forward_hook(lambda layer, _, out: dtypes.add((layer.training, out.dtype)))
    log, _ = train(tmp_path, Recipe(epochs=3, precision=precision), model=model)
    assert (True, getattr(torch, precision)) in dtypes
    assert (True, torch.float32) not in dtypes
    assert log[-1].test_accuracy > 0.6
    state = Checkpoints(tmp_path / "checkpoints").load()[0].state
    assert bool(state["scaler"]) == (precision == "float16")


@pytest.mark.slow
def test_adamw_with_smoothed_mixed_targets_learns(tmp_path):
    recipe = Recipe(epochs=6, optimizer="adamw", lr=1e-2, label_smoothing=0.1, mixup=0.2, cutmix=0.5)
    log, _ = train(tmp_path, recipe, model=tiny_network())
    assert log[-1].test_accuracy > 0.6


def test_mixing_depends_on_seed_rank_and_number_alone():
    images, labels = torch.randn(8, 1, 6, 6), torch.arange(8)
    mixed = build_mixing(Recipe(mixup=1.0, cutmix=1.0), 10, rank=0)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first, targets = mixed(images, labels, 7)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert torch.equal(mixed(images, labels, 7)[0], first)
    assert not torch.equal(mixed(images, labels, 8)[0], first)
    assert not torch.equal(build_mixing(Recipe(mixup=1.0, cutmix=1.0), 10, rank=1)(images, labels, 7)[0], first)
    torch.testing.assert_close(targets.sum(1), torch.ones(8))
    assert build_mixing(Recipe(), 10, rank=0) is None


@pytest.mark.parametrize(
    ("vectors", "attention", "decayed"),
    [
        pytest.param(False, True, {"conv", "fc", "attention"}, id="matrices"),
        pytest.param(False, False, {"conv", "fc"}, id="matrices-but-attention"),
        pytest.param(True, True, {"conv", "fc", "attention", "vector", "attention-vector"}, id="all"),
        pytest.param(True, False, {"conv", "fc", "vector"}, id="all-but-attention"),
    ],
)
def test_weight_decay_is_for_the_chosen(vectors, attention, decayed):
    model = small_network()
    found = build_optimizer(model, Recipe(weight_decay=0.5, decay_vectors=vectors, decay_attention=attention))
    decay = {id(p): group["weight_decay"] for group in found.param_groups for p in group["params"]}
    assert len(decay) == len(list(model.parameters()))

    def kind(name, parameter):
        if "attention" in name:
            return "attention" if parameter.dim() > 1 else "attention-vector"
        return "vector" if parameter.dim() == 1 else "fc" if name.startswith("fc") else "conv"

    kinds = {kind(name, p): set() for name, p in model.named_parameters()}
    for name, p in model.named_parameters():
        kinds[kind(name, p)].add(decay[id(p)])
    assert kinds == {name: {0.5 if name in decayed else 0.0} for name in kinds}


def test_flops_are_those_of_the_products():
    model = gala_resnet18(10, "layer3", in_channels=1, stem="small", width=4)
    plain, image = resnet18(10, in_channels=1, stem="small", width=4), torch.zeros(1, 1, 16, 16)
    of_gala = 2 * 2 * (16 * 16 * 4 + 16 * 4 + 2 * 16 * 4)  # two blocks: C 16, R 4, 4x4 pixels; product and sum
    assert training_flops(model, image) == training_flops(plain, image) + 3 * of_gala
    linear = nn.Sequential(nn.Flatten(), nn.Linear(256, 10))
    assert training_flops(linear, image) == 3 * 2 * 2560
