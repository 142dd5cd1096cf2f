"""The small version of the paper's experiment: its scenes, and a run from end to end."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from experiments.clickme import __main__ as clickme_experiment
from experiments.clickme import report
from experiments.clickme.scenes import CLASSES, SceneImages, blurred, draw
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
    command = [sys.executable, "-m", "experiments.clickme", "--smoke", "--jobs", "1"]
    command += ["--runs", str(tmp_path / "runs"), "--output", str(tmp_path / "out")]
    first = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    assert "top-1 error" in first.stdout
    record = json.loads((tmp_path / "out" / "results.json").read_text())
    assert len(record["cells"]) == 8  # 2 baselines and 2 λ, 2 seeds
    gala = [entry for entry in record["summary"] if entry["kind"] == "gala_resnet"]
    assert [entry["level"] for entry in gala] == [0.0, 6.0]
    assert "attention" in gala[0]
    assert "attention" not in record["summary"][0]
    for name in ("results.png", "examples.png"):
        assert Image.open(tmp_path / "out" / name).width > 1000
    (tmp_path / "runs" / "resnet-0-1" / "result.json").unlink()  # as if it had been interrupted at its end
    subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    again = json.loads((tmp_path / "out" / "results.json").read_text())
    for old, new in zip(record["cells"], again["cells"], strict=True):
        assert old["test"] == new["test"]
    settings = tmp_path / "runs" / "settings.json"
    settings.write_text(settings.read_text().replace('"train": 64', '"train": 65'))
    assert clickme_experiment.main(command[3:]) == 2
    assert "other settings" in capsys.readouterr().err


def test_the_chosen_level_is_that_of_the_validation():
    def cell(level, val, test):
        return {"kind": "gala_resnet", "level": level, "seed": 0, "val": {"error": val}, "test": {"error": test}}

    results = [cell(0.0, 0.1, 0.1), cell(1.0, 0.2, 0.5), cell(6.0, 0.3, 0.2)]
    assert report.best_level(results) == 1.0
