"""The small trainer: its data, its recipe, its loop."""

import json
import math

import pytest
import torch
from PIL import Image
from rich.console import Console
from torch import nn

from gala_cuda import gala_resnet18
from gala_cuda.training import Diverged, Recipe, accuracy, fit, load

CPU = torch.device("cpu")


def quiet():
    return Console(quiet=True)


def small_network(channels=1, classes=10):
    torch.manual_seed(0)
    return gala_resnet18(classes, in_channels=channels, stem="small", width=4)


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


def tensors(batches):
    images, labels = zip(*batches.epoch(), strict=True)
    return torch.cat(images), torch.cat(labels)


def test_digits_are_split_once_and_by_class():
    data, other = load("digits", 64, seed=0, size=8), load("digits", 64, seed=1, size=8)
    held_out, labels = tensors(data.test)
    assert torch.equal(held_out, tensors(other.test)[0])
    assert (data.train.images, data.test.images) == (1344, 450)
    assert labels.bincount().min() >= 43  # of 45 expected
    order, again = tensors(load("digits", 64, seed=0, size=8).train)[1], tensors(data.train)[1]
    assert torch.equal(order, again)
    assert not torch.equal(order, tensors(other.train)[1])
    trained = {tuple(image.flatten().tolist()) for image in tensors(load("digits", 1347, 0, size=8).train)[0]}
    assert not any(tuple(image.flatten().tolist()) in trained for image in held_out)


def test_a_short_training_learns_and_writes(tmp_path):
    data, model = load("digits", 64, seed=0, size=8), small_network()
    log = fit(model, data, Recipe(epochs=2), CPU, tmp_path, quiet())
    assert log[1].loss < 0.5 * log[0].loss
    assert log[1].test_accuracy > 0.5
    assert log[1].test_accuracy == accuracy(model, data.test, CPU)
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2]
    assert lines[1]["loss"] == log[1].loss
    assert json.loads((tmp_path / "recipe.json").read_text())["epochs"] == 2
    restored = small_network()
    restored.load_state_dict(torch.load(tmp_path / "weights.pt", weights_only=True))
    assert accuracy(restored, data.test, CPU) == log[1].test_accuracy


def test_the_same_seed_gives_the_same_weights(tmp_path):
    weights = []
    for _ in range(2):
        model = small_network()
        fit(model, load("digits", 256, seed=3, size=8), Recipe(epochs=1), CPU, tmp_path, quiet())
        weights.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    assert torch.equal(*weights)


def test_image_folder(folder, tmp_path):
    data = load(str(folder), 6, seed=0, size=16)
    assert (data.classes, data.channels, data.size) == (("blue", "red"), 3, 16)
    images, labels = tensors(data.test)
    assert images.shape == (4, 3, 16, 16)
    assert (images[labels == 1, 0] > images[labels == 0, 0]).all()
    model = small_network(3, 2)
    log = fit(model, data, Recipe(epochs=8), CPU, tmp_path / "run", quiet())
    assert log[-1].train_accuracy == 1


def test_image_folder_names_what_is_missing(folder):
    with pytest.raises(FileNotFoundError, match=r"no folder .*nowhere"):
        load(str(folder / "nowhere"), 4, seed=0)
    with pytest.raises(FileNotFoundError, match=r"no folder .*train.train.*expected train/CLASS"):
        load(str(folder / "train"), 4, seed=0)
    (folder / "val" / "red").rename(folder / "val" / "green")
    with pytest.raises(ValueError, match="only in one: green, red"):
        load(str(folder), 4, seed=0)


def test_a_loss_that_is_no_number_stops(tmp_path):
    data = load("digits", 64, seed=0, size=8)
    with pytest.raises(Diverged, match=r"the loss is (nan|inf) in epoch 1/1, step \d+, at lr"):
        fit(small_network(), data, Recipe(epochs=1, lr=1e30), CPU, tmp_path, quiet())


def test_the_time_limit_ends_a_training_within_an_epoch(tmp_path):
    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc, self.steps = nn.Linear(64, 10), 0

        def forward(self, x):
            self.steps += self.training
            return self.fc(x.flatten(1))

    model = Counting()
    log = fit(model, load("digits", 64, seed=0, size=8), Recipe(epochs=5, time_limit=1e-6), CPU, tmp_path, quiet())
    assert len(log) == 1
    assert model.steps == 1


def test_schedule():
    recipe = Recipe(warm_up=0.2)
    assert recipe.lr_share(0) == 0.01
    assert recipe.lr_share(0.1) == 0.5
    assert recipe.lr_share(0.2) == 1
    assert recipe.lr_share(0.6) == pytest.approx(0.5)
    assert recipe.lr_share(1) == 0
    assert recipe.lr_share(1.5) == 0


@pytest.mark.parametrize(
    ("name", "value"),
    [("epochs", 0), ("lr", math.nan), ("lr", math.inf), ("momentum", 1.0), ("weight_decay", -1.0), ("time_limit", 0.0)],
)
def test_recipe_names_what_is_out_of_range(name, value):
    with pytest.raises(ValueError, match=f"{name} is {value}"):
        Recipe(**{name: value})
