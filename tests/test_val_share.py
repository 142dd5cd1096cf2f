"""A share of each class held out, of a folder that has no val: which, and that evaluation finds them again."""

import json
import shutil

import pytest
import torch
from imagesets import SEED, TRAIN, read, write_folder

from gala_cuda.cli.main import main
from gala_cuda.data.hold_out import hold_out
from gala_cuda.data.picture_folder import PictureFolder

pytestmark = pytest.mark.usefixtures("one_thread")
OPTIONS = ["--image-size", "16", "--width", "4", "--epochs", "1", "--workers", "0", "--batch-size", "16"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """FOLDER/CLASS/* of two classes."""
    return write_folder(tmp_path_factory.mktemp("pictures")) / "train"


def names(pictures):
    return [pictures.name(index) for index in range(len(pictures.labels))]


def test_a_share_that_comes_out_even_is_exact(tmp_path):
    """In floating point 0.1 times 30 is more than 3."""
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for number in range(30):
            (tmp_path / name / f"{number}.png").write_bytes(b"")
    assert hold_out(PictureFolder(tmp_path), 0.1, seed=0).sum() == 6


@pytest.mark.parametrize("share", [0.01, 0.2, 0.5])
def test_a_share_of_each_class_is_held_out(folder, share):
    pictures = PictureFolder(folder)
    held_out = hold_out(pictures, share, seed=3)
    expected = -int(-share * TRAIN // 1)
    assert pictures.labels[held_out].bincount().tolist() == [expected, expected]
    assert torch.equal(hold_out(pictures, share, seed=3), held_out)
    assert not torch.equal(hold_out(pictures, share, seed=4), held_out)
    found = read(folder, val_share=share)
    assert (found.train.total, found.test.total) == (2 * (TRAIN - expected), 2 * expected)
    assert list(found.held_out) == names(pictures.take(hold_out(pictures, share, SEED)))


def test_the_choice_moves_with_the_folder_and_grows_with_it(folder, tmp_path):
    """Of what was held out at first, most still is after a tenth more pictures have come."""
    shutil.copytree(folder, tmp_path / "there" / "train")
    for opened in (tmp_path / "there", tmp_path / "there" / "train"):
        here, there = read(folder, val_share=0.2), read(opened, val_share=0.2)
        assert [name[-12:] for name in here.held_out] == [name[-12:] for name in there.held_out]
    for name in ("china", "flower"):
        for number in range(TRAIN // 10):
            shutil.copy(folder / name / "001.jpg", tmp_path / "there" / "train" / name / f"new{number}.jpg")
    before, after = ({name[-12:] for name in found.held_out} for found in (here, read(opened, val_share=0.2)))
    assert len(before & after) > 0.7 * len(before)


def test_training_writes_them_down_and_evaluation_finds_them(folder, tmp_path, capsys):
    run = tmp_path / "run"
    command = ["train", "--data", str(folder), "--val-share", "0.25", "--seed", "7", *OPTIONS, "--output", str(run)]
    assert main(command) == 0
    held_out = (run / "held_out.txt").read_text().splitlines()
    pictures = PictureFolder(folder)
    assert held_out == names(pictures.take(hold_out(pictures, 0.25, 7)))
    accuracy = json.loads((run / "log.jsonl").read_text())["test_accuracy"]
    for given in ([], ["--data", str(folder), "--val-share", "0.25", "--seed", "7"]):
        capsys.readouterr()
        assert main(["eval", str(run), "--json", "--workers", "0", *given]) == 0
        result = json.loads(capsys.readouterr().out)
        assert (result["images"], result["top1"]) == (len(held_out), pytest.approx(accuracy))
    assert main([*command, "--resume"]) == 0
    with pytest.raises(SystemExit):
        main([*command, "--resume", "--val-share", "0.3"])
    assert "argument --val-share: val_share is not that of the training in" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("source", "share", "message"),
    [
        ("folder", "0", "argument --val-share: val_share is 0.0; expected 0 < val_share < 1"),
        ("folder", "0.999", "class china has 101 pictures, and val_share 0.999 of them are all"),
        ("parent", "0.2", "val_share is 0.2, and there is a folder "),
        ("nowhere", "0.2", "there is no folder nowhere"),
        ("builtin:digits", "0.2", "val_share is 0.2, and builtin:digits is no folder of pictures"),
    ],
)
def test_refusals_write_nothing(folder, tmp_path, capsys, source, share, message):
    source = {"folder": str(folder), "parent": str(folder.parent)}.get(source, source)
    with pytest.raises(SystemExit):
        main(["train", "--data", source, "--val-share", share, *OPTIONS, "--output", str(tmp_path / "run")])
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_without_it_a_folder_without_val_says_that_there_is_the_flag(folder, tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(["train", "--data", str(folder), *OPTIONS, "--output", str(tmp_path / "run")])
    assert "or val_share" in capsys.readouterr().err
