"""The study of GALA's start: its scenes and pictures, its networks, its choices, and a run from end to end."""

import json
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from PIL import Image
from scipy import stats

from experiments import report, why
from experiments.__main__ import main
from experiments.choose import best
from experiments.images import Pictures, load
from experiments.networks import NETWORKS, STARTS, build, gala
from experiments.scenes import CLASSES, SceneImages, blurred, draw
from experiments.settings import SIZES
from gala_cuda import gala_resnet18
from gala_cuda.clickme.score import spearman
from gala_cuda.data.batches import Batches

ROOT = Path(__file__).resolve().parents[1]

COUNT = 240


@pytest.fixture(scope="module")
def scenes():
    return draw(COUNT, 32, agreement=0.9, seed=3)


def test_scenes_are_balanced_and_depend_on_the_seed(scenes):
    assert scenes.labels.bincount().tolist() == [COUNT // len(CLASSES)] * len(CLASSES)
    again, other = draw(COUNT, 32, 0.9, 3), draw(COUNT, 32, 0.9, 4)
    assert torch.equal(again.images, scenes.images)
    assert not torch.equal(other.labels, scenes.labels)


@pytest.mark.parametrize(("agreement", "least", "most"), [(1.0, 1.0, 1.0), (0.9, 0.9, 0.95), (0.0, 0.05, 0.3)])
def test_the_cue_agrees_as_often_as_asked(agreement, least, most):
    scenes = draw(COUNT, 8, agreement, seed=0)
    assert least <= (scenes.cues == scenes.labels).double().mean() <= most


def test_the_background_alone_tells_the_cue_and_not_the_class(scenes):
    """The nearest class by the median colour, which is the background's, because that covers most of every scene."""
    misleading = draw(COUNT, 32, agreement=0.0, seed=5)

    def hues(images):
        colour = images.images.double().flatten(2).median(2).values
        colour = colour - colour.mean(1, keepdim=True)
        return colour / colour.norm(dim=1, keepdim=True)

    centres = torch.stack([hues(scenes)[scenes.cues == cue].mean(0) for cue in range(len(CLASSES))])
    answers = (hues(misleading) @ centres.T).argmax(1)
    assert (answers == misleading.cues).double().mean() > 0.7
    assert (answers == misleading.labels).double().mean() < 0.3


def test_human_maps_cover_the_deciding_part(scenes):
    maps = blurred(scenes.masks)
    assert maps.shape == scenes.masks.shape
    inside = scenes.masks > 0.5
    for attn_map, part in zip(maps, inside, strict=True):
        assert attn_map[part].mean() > 5 * attn_map[~part].mean()
    other = maps.roll(1, 0).flatten(1)
    right, wrong = (spearman(scenes.masks.flatten(1), found).mean() for found in (maps.flatten(1), other))
    assert right > 0.35
    assert wrong < 0.1


def test_the_deciding_part_is_small(scenes):
    shares = (scenes.masks > 0.5).flatten(1).double().mean(1)
    assert shares.min() > 0.005
    assert shares.max() < 0.15


def test_images_and_maps_are_flipped_together(scenes):
    images = SceneImages(scenes, flips=True)
    plain, flipped = images.read(5, 0), images.read(5, 1)
    assert torch.equal(flipped.image, plain.image.flip(2))
    assert torch.equal(flipped.heatmap, plain.heatmap.flip(2))
    batch = next(Batches(images, 8, train=True).epoch())
    assert batch.image.shape == (8, 3, 32, 32)
    assert abs(batch.image.mean()) < 0.7
    assert batch.has_map.all()


@pytest.mark.slow
def test_smoke_run_and_its_continuation(tmp_path, capsys):
    command = [sys.executable, "-m", "experiments", "--smoke", "--jobs", "1"]
    command += ["--runs", str(tmp_path / "runs"), "--output", str(tmp_path / "out")]
    first = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    assert "minus ResNet's" in first.stdout
    record = json.loads((tmp_path / "out" / "results.json").read_text())
    assert len(record["trials"]) == 6 * 2 + 5  # networks at 2 learning rates; those with attention without its decay
    assert not any("test" in trial for trial in record["trials"])
    assert len(record["cells"]) == 2 * 6 * 2 + 2  # data sets, networks, seeds; a start that is taught, seeds
    choices = {(each["data"], each["network"]): (each["lr"], each["decay"]) for each in record["choices"]}
    for cell in record["cells"]:
        assert (cell["lr"], cell["decay"]) == choices["scenes", cell["network"]]
    taught = [entry for entry in record["summary"] if entry["level"]]
    assert [(entry["level"], entry["attention"]["largest_p"] <= 1) for entry in taught] == [(6.0, True)]
    assert "attention" not in record["summary"][0]
    for name in ("errors.png", "levels.png", "examples.png"):
        assert Image.open(tmp_path / "out" / name).width > 500
    results = list((tmp_path / "runs").rglob("result.json"))
    results[0].unlink()  # as if it had been interrupted at its end
    subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    again = json.loads((tmp_path / "out" / "results.json").read_text())
    for old, new in zip(record["trials"] + record["cells"], again["trials"] + again["cells"], strict=True):
        assert (old["val"], old.get("test")) == (new["val"], new.get("test"))
    assert why.main([str(tmp_path / "out")]) == 0
    for name in ("start.png", "movement.png"):
        assert Image.open(tmp_path / "out" / name).width > 500
    settings = tmp_path / "runs" / "settings.json"
    settings.write_text(settings.read_text().replace('"train": 48', '"train": 49'))
    assert main(command[3:]) == 2
    assert "other settings" in capsys.readouterr().err


def test_the_choice_is_that_of_the_validation():
    """By error, of equal ones by cross-entropy; the test error plays no part."""

    def trial(lr, decay, error, loss):
        return {"data": "a", "network": "n", "lr": lr, "decay": decay, "val": {"error": error, "loss": loss}}

    trials = [trial(0.1, True, 0.3, 1.0), trial(0.2, True, 0.2, 2.0), trial(0.2, False, 0.2, 1.5)]
    assert best(trials) == {("a", "n"): (0.2, False)}


def test_the_chosen_level_is_that_of_the_validation():
    def cell(level, val, test):
        found = {"data": "scenes", "network": "n", "level": level, "seed": 0}
        return {**found, "val": {"error": val}, "test": {"error": test}}

    assert report.best_level([cell(0.0, 0.1, 0.1), cell(1.0, 0.2, 0.5), cell(6.0, 0.3, 0.2)], "scenes", "n") == 1.0


def test_differences_are_paired_by_seed():
    def cell(network, seed, error):
        found = {"data": "a", "network": network, "level": 0.0, "seed": seed, "lr": 0.1, "decay": True}
        return {**found, "val": {"error": 0.0}, "test": {"error": error}}

    errors = {"ResNet": (0.1, 0.3, 0.2), "SE-ResNet": (0.1, 0.1, 0.1), "n": (0.12, 0.34, 0.2)}
    cells = [cell(network, seed, error) for network, own in errors.items() for seed, error in enumerate(own)]
    entry = report.summary(cells[::-1])[0]
    assert entry["network"] == "n"
    expected = stats.ttest_rel(errors["n"], errors["ResNet"]).confidence_interval(0.95)
    against = entry["against"]["ResNet"]
    assert against["mean"] == pytest.approx(2.0)
    assert (against["low"], against["high"]) == pytest.approx((100 * expected.low, 100 * expected.high))


@pytest.mark.parametrize("network", NETWORKS)
def test_the_networks_start_as_their_names_say(network):
    torch.manual_seed(0)
    model = build(network, 18, 5, 3, 8, ("layer2",)).eval()
    plain = build("ResNet", 18, 5, 3, 8, ("layer2",))
    assert model(torch.randn(2, 3, 32, 32)).shape == (2, 5)
    if not network.startswith(gala("")):
        return
    start, block, x = STARTS[network.removeprefix(gala(""))], model.layer2[1], torch.randn(4, 16, 5, 5)
    assert block.bn2.weight.detach().equal(plain.layer2[1].bn2.weight * start.norm)
    attention = block.attention.attention(x)
    if start.constant is None:
        assert attention.mean().abs() < 0.2
        assert (attention < 0).double().mean() > 0.2
    else:
        spread = 0 if start.spread == 0 else 0.5
        assert (attention - start.constant).abs().mean() <= spread * (0.15 if start.spread == 0.1 else 1)


def test_the_default_start_is_that_of_the_study():
    states = []
    for make in (
        lambda: build(gala("sigmoid, near half"), 18, 5, 3, 8, ("layer2",)),
        partial(gala_resnet18, 5, "layer2", width=8),
    ):
        torch.manual_seed(0)
        states.append(make().state_dict())
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][name], tensor) for name, tensor in states[1].items())


@pytest.mark.parametrize("name", ["solar cells", "photographs", "digits"])
def test_real_pictures_are_split_once_and_sampled_by_seed(name):
    settings = SIZES["default"]
    data = settings.data[name]
    one, other = (load(data, settings, seed) for seed in (0, 1))
    for found in (one, other):
        assert len(found.train.labels) == data.train
        assert found.train.labels.unique().tolist() == list(range(len(found.classes)))
    assert torch.equal(one.test.images, other.test.images)
    assert not torch.equal(one.train.images, other.train.images) or name == "solar cells"
    parts = [
        {tuple(image.flatten()[::97].tolist()) for image in part.images} for part in (one.train, one.val, one.test)
    ]
    assert not parts[0] & parts[1]
    assert not parts[0] & parts[2]
    assert not parts[1] & parts[2]


def test_pictures_are_flipped_by_the_seed():
    image = torch.arange(6.0).view(1, 1, 2, 3)
    pictures = Pictures(image, torch.zeros(1, dtype=torch.int64), flips=(2, 3))
    flipped = [pictures.read(0, seed) for seed in range(4)]
    assert [found.flatten()[0].item() for found in flipped] == [0, 3, 2, 5]
