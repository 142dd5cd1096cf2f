"""Which files of a folder count, which split each belongs to, and folders named like built-in sets."""

import io
import json
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
from clickme_files import write_npz, write_split
from imagesets import write_shard
from PIL import Image
from torchvision.datasets import ImageFolder

from gala_cuda.cli.main import main
from gala_cuda.data import shard_index
from gala_cuda.data.choices import explicit_source
from gala_cuda.data.folders import files_below, splits_named
from gala_cuda.data.human_maps.split_reader import open_split, open_splits
from gala_cuda.data.load import load
from gala_cuda.data.picture_folder import PictureFolder
from gala_cuda.training.recipe import Recipe
from gala_cuda.training.recipe_file import as_yaml, resolve

TWIN = b"\x00\x05\x16\x07\x00\x02\x00\x00Mac OS X        " + bytes(200)  # as macOS leaves it beside every file
LITTER = (".DS_Store", "Thumbs.db", "desktop.ini", "._0.png", ".ipynb_checkpoints/0.png", "__MACOSX/0.png")


def png(value=0):
    stream = io.BytesIO()
    Image.fromarray(np.full((20, 20, 3), value, np.uint8)).save(stream, "PNG")
    return stream.getvalue()


def write(file, data=None):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(png() if data is None else data)


def write_classes(place, classes=("cat", "dog"), count=2):
    for split in ("train", "val"):
        for name in classes:
            for i in range(count):
                write(place / split / name / f"{i}.png", png(i))
    return place


def opened(place, **options):
    return load(str(place), 2, 0, 16, **options)


def skipped(batches):
    list(batches.epoch())
    return batches.skipped


def test_what_systems_leave_is_neither_picture_nor_class(tmp_path):
    write_classes(tmp_path)
    for place in (tmp_path, tmp_path / "train", tmp_path / "val", tmp_path / "train/cat", tmp_path / "val/dog"):
        for name in LITTER:
            write(place / name, TWIN)
    (tmp_path / "train" / ".Trash-1000").mkdir()
    data = opened(tmp_path)
    assert (data.classes, data.train.total, data.test.total, data.notes) == (("cat", "dog"), 4, 4, ())
    assert skipped(data.train) == skipped(data.test) == []


def test_nested_folders_and_links_are_taken_as_torchvision_does(tmp_path):
    write_classes(tmp_path, ("cat", "a-dog"))
    train = tmp_path / "train"
    for name in ("cat/b/1.png", "cat/b-c/2.png", "cat/b/d/3.JPG", "elsewhere/x/4.png"):
        write((tmp_path if name.startswith("else") else train) / name)
    os.symlink(tmp_path / "elsewhere", train / "cat" / "linked")
    os.symlink(tmp_path / "elsewhere" / "x" / "4.png", train / "a-dog" / "link.png")
    os.symlink(tmp_path / "elsewhere", train / "bird")
    theirs = ImageFolder(train)
    ours = PictureFolder(train)
    assert ours.classes == theirs.classes
    assert [(ours.name(i), int(label)) for i, label in enumerate(ours.labels)] == theirs.samples
    os.symlink(train / "cat", train / "cat" / "b" / "round")  # a link to a folder that it lies in
    os.mkfifo(train / "cat" / "pipe.png")
    again = PictureFolder(train)
    assert [again.name(i) for i in range(len(again.labels))] == [name for name, _ in theirs.samples]
    os.symlink(tmp_path / "nowhere", train / "cat" / "gone.png")
    assert sum(name.endswith("gone.png") for name in files_below(train)) == 1


def test_classes_without_pictures_and_of_one_split_are_named(tmp_path):
    write_classes(tmp_path)
    (tmp_path / "train" / "eel").mkdir()
    write(tmp_path / "train" / "fox" / "0.heic", b"-")
    with pytest.raises(FileNotFoundError, match=r"train has classes without pictures: eel, fox; .*1 file \(1 .heic\)"):
        opened(tmp_path)
    for name in ("train/eel/0.png", "train/fox/0.png", "val/gnu/0.png"):
        write(tmp_path / name)
    with pytest.raises(ValueError, match=r"only in \S+/train: eel, fox; only in \S+/val: gnu$"):
        opened(tmp_path)


def test_what_is_left_out_is_counted_and_named(tmp_path, capsys):
    write_classes(tmp_path)
    for name in ("train/cat/a.heic", "train/cat/b.HEIC", "val/dog/notes.txt", "train/stray.png"):
        write(tmp_path / name, b"-")
    told = "left out: 4 files (2 .heic, 1 .png, 1 .txt), not named as pictures or in no class's folder, such as "
    assert opened(tmp_path).notes == (told + f"{tmp_path}/train/stray.png",)
    command = ["train", "--data", str(tmp_path), "--output", str(tmp_path / "run"), "--workers", "0", "--epochs", "1"]
    assert main([*command, "--model", "resnet18", "--width", "16", "--image-size", "16", "--device", "cpu"]) == 0
    printed = capsys.readouterr().out
    assert told in printed
    assert f"data: {tmp_path}: 4 images of 2 classes to train on, 4 held out" in printed


def test_one_image_and_one_class_are_a_set(tmp_path):
    data = opened(write_classes(tmp_path, ("cat",), 1))
    assert [len(labels) for _, labels in data.train.epoch()] == [len(labels) for _, labels in data.test.epoch()] == [1]


@pytest.mark.parametrize(
    ("name", "splits"),
    [
        ("retrieval-train-000.tar", {"train"}),
        ("carnival_val_000.tar", {"val"}),
        ("constrained-validation.tfrecord", {"val"}),
        ("medieval-000.tar", set()),
        ("éval-training-0.tar", {"train"}),
        ("e\N{COMBINING ACUTE ACCENT}val-train.tar", {"train"}),
        ("VAL2017.tar", {"val"}),
        ("train0.npz", {"train"}),
        ("train-val.tar", {"train", "val"}),
        ("my.test.set", {"test"}),
        ("latest-fold2.npz", {"fold2"}),
    ],
)
def test_a_split_is_a_word_of_a_name(name, splits):
    assert splits_named(name, "fold2") == splits


def write_maps(file, count, first=0):
    members = {}
    for i in range(first, first + count):
        stream = io.BytesIO()
        np.save(stream, np.ones((20, 20), np.float32))
        members |= {f"{i}.png": png(i), f"{i}.cls": b"%d" % (i % 2), f"{i}.heatmap.npy": stream.getvalue()}
    write_shard(file, members)


@pytest.mark.parametrize("name", ["retrieval", "constrained", "pets"])
def test_the_same_shard_is_never_trained_on_and_tested(tmp_path, name):
    write_maps(tmp_path / f"{name}-train-000.tar", 5)
    write_maps(tmp_path / f"{name}-val-000.tar", 3, 10)
    write_maps(tmp_path / f"{name}-test-000.tar", 4, 20)
    write(tmp_path / f"._{name}-train-000.tar", TWIN)
    data = opened(tmp_path)
    assert (data.train.total, data.test.total) == (5, 3)
    assert [len(samples) for samples in open_splits(tmp_path).values()] == [5, 3, 4]
    for wrong, message in (("train-val-1.tar", "has train and val in its name"), ("more.tar", "is of no split")):
        write_maps(tmp_path / wrong, 1)
        for read in (opened, shard_index.write_index, lambda place: open_split(place, "val")):
            with pytest.raises(ValueError, match=f"{wrong} {message}"):
                read(tmp_path)
        (tmp_path / wrong).unlink()
    index = json.loads(shard_index.write_index(tmp_path).read_text())
    index["val"] += index["train"]
    (tmp_path / "index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match=rf"{name}-train-000.tar is in both splits"):
        opened(tmp_path)


def test_folders_of_splits_have_every_usual_name(tmp_path):
    write_classes(tmp_path)
    (tmp_path / "val").rename(tmp_path / "Validation")
    (tmp_path / "train").rename(tmp_path / "training")
    assert opened(tmp_path).test.total == 4
    write(tmp_path / "valid" / "cat" / "0.png")
    with pytest.raises(ValueError, match="has Validation and valid, both of the split val"):
        opened(tmp_path)


def test_archives_beside_folders_of_classes_are_no_shards(tmp_path):
    write_classes(tmp_path)
    for name in ("ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar", "all.tar", "all.tar.gz"):
        write(tmp_path / name, b"-")
    assert opened(tmp_path).train.total == 4
    for name in ("ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar", "all.tar", "all.tar.gz"):
        (tmp_path / name).unlink()
    write(tmp_path / "index.json", b"[]")  # of another program
    assert opened(tmp_path).train.total == 4


def test_clickme_files_are_of_the_split_that_their_names_have_as_a_word(tmp_path):
    write_npz(tmp_path / "constrained-val-0.npz", 0)
    write_split(tmp_path, "npz", "train", [0, 1, 2])
    write(tmp_path / "train" / ".ipynb_checkpoints" / "0.npz", b"PK\3\4")
    write(tmp_path / "train" / "__MACOSX" / "0.npz", TWIN)
    write(tmp_path / "README.txt", b"-")
    assert [len(samples) for samples in open_splits(tmp_path).values()] == [3, 1]
    assert len(open_split(tmp_path, "validation")) == 1
    write_npz(tmp_path / "0.npz", 0)
    with pytest.raises(ValueError, match=r"0\.npz is of no split; expected one of train, val, test as a word"):
        open_split(tmp_path, "train")


def test_what_systems_leave_in_archives_is_passed_over(tmp_path):
    for split in ("train", "val"):
        write_maps(tmp_path / f"{split}.tar", 2)
        with tarfile.open(tmp_path / f"{split}.tar", "a") as tar:
            for name in ("__MACOSX/._0.png", "._0.png", "a/.ipynb_checkpoints/0.png", "__MACOSX/0.png"):
                member = tarfile.TarInfo(name)
                member.size = len(TWIN)
                tar.addfile(member, io.BytesIO(TWIN))
    data = opened(tmp_path)
    assert (data.train.total, skipped(data.train)) == (2, [])
    assert len(open_split(tmp_path, "train")) == 2


def test_a_folder_named_like_a_built_in_set_comes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert explicit_source("digits") == resolve(None, {"data": "digits"}).data == Recipe().data == "builtin:digits"
    assert explicit_source("synthetic:20") == "builtin:synthetic:20"
    assert (explicit_source("pictures"), explicit_source("builtin:digits")) == ("pictures", "builtin:digits")
    write_classes(Path("digits"), ("one", "two", "zero"))
    write_classes(Path("synthetic"))
    assert opened("digits").classes == ("one", "two", "zero")
    assert opened("synthetic").classes == ("cat", "dog")
    assert len(opened("builtin:digits").classes) == 10
    assert len(opened("builtin:synthetic:20").classes) == 1000
    recipe = resolve(None, {"data": "digits"})
    assert recipe.data == "./digits"
    Path("recipe.yaml").write_text(as_yaml(recipe))
    assert resolve("recipe.yaml", {}).data == "./digits"
    with pytest.raises(ValueError, match=r"builtin:numbers was given; expected builtin:digits, builtin:synthetic or"):
        opened("builtin:numbers")
