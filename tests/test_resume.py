"""Going on with a training: on the same data alone, with more epochs, and what a changed recipe is told."""

import json
import math

import pytest
from PIL import Image

from gala_cuda.cli.main import main

pytestmark = pytest.mark.usefixtures("one_thread")
COLOURS = {"apple": (200, 40, 40), "grass": (40, 200, 40), "sky": (40, 40, 200)}
TRAIN = ["train", "--data", "data", "--model", "resnet18", "--width", "8", "--image-size", "16", "--batch-size", "6",
         "--workers", "0", "--checkpoint-every", "1", "--output", "run", "--epochs"]  # fmt: skip


@pytest.fixture
def begun(monkeypatch, tmp_path):
    """The folder with data, 4 pictures of each class, and run, a training of 1 epoch of 2 steps; it is the current."""
    monkeypatch.chdir(tmp_path)
    for split, count in (("train", 4), ("val", 2)):
        for name, colour in COLOURS.items():
            folder = tmp_path / "data" / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                Image.new("RGB", (20 + i, 20), colour).save(folder / f"{i}.png")
    assert main([*TRAIN, "1"]) == 0
    return tmp_path


def files(place):
    return {path: path.read_bytes() for path in place.rglob("*") if path.is_file()}


def rename(data):
    for split in ("train", "val"):
        (data / split / "apple").rename(data / split / "zapple")


def swap(data):
    """The same classes and as many images, but one more of a class and one fewer of another."""
    (data / "train/sky/0.png").rename(data / "train/grass/9.png")


def add(data):
    (data / "val/sky/9.png").write_bytes((data / "val/sky/0.png").read_bytes())


def remove(data):
    (data / "train/sky/0.png").unlink()
    (data / "train/grass/1.png").unlink()


def new_class(data):
    for split in ("train", "val"):
        (data / split / "tree").mkdir()
        (data / split / "tree/0.png").write_bytes((data / split / "sky/0.png").read_bytes())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "told"),
    [
        (rename, "class 'apple' no longer there, class 'zapple' new"),
        (swap, "5 of 'grass' (not 4), 3 of 'sky' (not 4) to train on"),
        (add, "3 of 'sky' (not 2) to test on"),
        (remove, "3 of 'grass' (not 4), 3 of 'sky' (not 4) to train on"),
        (new_class, "class 'tree' new"),
    ],
)
def test_other_data_is_refused_by_name_before_anything_is_written(begun, capsys, change, told):
    change(begun / "data")
    before = files(begun / "run")
    capsys.readouterr()
    with pytest.raises(SystemExit) as refused:
        main([*TRAIN, "2", "--resume"])
    assert refused.value.code == 2
    assert capsys.readouterr().err == (
        f"gala-cuda train: argument --data: data is not what the training in run was begun with: {told}; expected the "
        "same images, or another --output, which may start from --weights run/last.safetensors (see gala-cuda train "
        "--help)\n"
    )
    assert files(begun / "run") == before


@pytest.mark.slow
def test_a_training_is_extended_and_not_cut_short(begun, capsys):
    capsys.readouterr()
    assert main([*TRAIN, "3", "--resume"]) == 0
    out = capsys.readouterr().out
    lr = 0.4 * 6 / 256 * 0.5 * (1 + math.cos(math.pi * (2 / 6 - 0.1) / 0.9))
    assert "resumed at step 2, from run/checkpoints/step-00000002\n" in out
    assert f"goes on as if it had been so from the start, at {lr:.3g} in place of 0\n" in out
    log = [json.loads(line) for line in (begun / "run/log.jsonl").read_text().splitlines()]
    assert [(epoch["epoch"], epoch["step"]) for epoch in log] == [(1, 2), (2, 4), (3, 6)]
    with pytest.raises(SystemExit):
        main([*TRAIN, "2", "--resume"])
    assert (
        "argument --epochs: epochs is 2, but the training in run is in epoch 3 or beyond; expected at least 3"
        in capsys.readouterr().err
    )
    assert main([*TRAIN, "3", "--resume"]) == 0  # nothing is left to do


@pytest.mark.slow
def test_another_recipe_is_refused_by_its_flag(begun, capsys):
    for extra, message in (
        (["--seed", "5"], "argument --seed: seed is not that of the training in run: seed 0 -> 5; expected the same"),
        (["--recipe", "modern", "--model", "resnet18"], "argument --recipe: modern, "),
    ):
        with pytest.raises(SystemExit):
            main([*TRAIN, "1", "--resume", *extra])
        assert message in capsys.readouterr().err
