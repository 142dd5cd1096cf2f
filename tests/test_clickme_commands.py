"""`gala-cuda clickme`: what check reports, and what is left of the samples after convert."""

import io
import json
import re
import tarfile

import clickme_files as files
import numpy as np
import pytest
import tfrecord
import torch
import webdataset
from imagesets import read
from PIL import Image

from gala_cuda.cli import clickme
from gala_cuda.cli.main import main
from gala_cuda.data.human_maps import convert
from gala_cuda.data.human_maps.formats import WRITERS
from gala_cuda.data.human_maps.split_reader import open_split

pytestmark = pytest.mark.usefixtures("user_cache")


def test_check_reports_counts_ranges_and_what_is_broken(tmp_path, capsys):
    folder = files.write_all(tmp_path, "npz", range(5), [0, 6])
    (folder / "train" / "0001.npz").write_bytes(b"PK\3\4 no more")
    (folder / "classes.txt").write_text("a\nb\nc\n")
    files.write_tfrecord(
        folder / "train.tfrecords", [files.raw_example(7), files.raw_example(8) | {"label": (9, "int")}]
    )
    assert main(["clickme", "check", str(folder), "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert list(report) == ["train", "val"]
    train = report["train"]
    assert {name: train[name] for name in ("records", "with_map", "without_map", "formats", "classes")} == {
        "records": 7,
        "with_map": 4,
        "without_map": 1,
        "formats": {"tfrecord": 2, "npz": 5},
        "classes": {"0": 2, "1": 2, "2": 1},
    }
    assert train["broken"] == {
        "train.tfrecords#1": "the label is 9; expected 0 to 2",
        "train/0001.npz": "no readable NPZ file: File is not a zip file",
    }
    assert train["image_sides"] == train["map_sides"] == {"least": files.SIDE, "most": files.SIDE}
    assert train["map_values"] == {"least": 0, "most": 9}
    values = [files.picture(i)[0] for i in (0, 2, 3, 4, 7)]
    assert train["image_values"] == {"least": np.min(values), "most": np.max(values)}
    assert report["val"]["duplicates"] == {"val/0000.npz": "train/0000.npz"}
    assert report["val"]["broken"] == {}


def test_check_prints_a_table_and_its_exit_code_is_0_where_all_is_well(tmp_path, capsys):
    folder = files.write_all(tmp_path, "raw")
    assert main(["clickme", "check", str(folder)]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["with", "a", "map", "5", "2"] in lines
    assert ["format", "tfrecord", "tfrecord"] in lines
    (folder / "val-00001-of-00002").write_bytes(b"no record")
    assert main(["clickme", "check", str(folder)]) == 1
    assert "broken: val-00001-of-00002: the length of the record is damaged" in capsys.readouterr().out


def samples_of(folder, split="train"):
    samples = open_split(folder, split)
    return [samples.read(i) for i in range(len(samples))]


def through_jpeg(array):
    return np.asarray(Image.open(io.BytesIO(files.encoded(array, "JPEG"))))


@pytest.mark.parametrize("source", files.KINDS)
@pytest.mark.parametrize("kind", WRITERS)
def test_converted_samples_are_the_same_where_the_format_allows(tmp_path, capsys, source, kind):
    folder = files.write_all(tmp_path / "source", source)
    (folder / "classes.txt").write_text("a\nb\nc\n")
    target = tmp_path / "new" / "target"
    assert main(["clickme", "convert", str(folder), str(target), "--to", kind, "--per-shard", "4"]) == 0
    assert f"written: 8 samples to {target}, 0 left out" in capsys.readouterr().out
    assert (target / "classes.txt").read_text() == "a\nb\nc\n"
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["target"]
    before, after = samples_of(folder), samples_of(target)
    for old, new in zip(before, after, strict=True):
        assert (new.label, new.has_map) == (old.label, old.has_map)
        image, heatmap = old.image.permute(1, 2, 0).numpy(), old.heatmap[0].numpy()
        if kind == "tfrecord-jpeg" and source != "jpeg":
            image, heatmap = through_jpeg(image), through_jpeg(heatmap.astype(np.uint8))
        np.testing.assert_array_equal(new.image.permute(1, 2, 0), image)
        np.testing.assert_array_equal(new.heatmap[0], heatmap)
    numbers = [open_split(place, "train").record(0).numbers for place in (folder, target)]
    assert numbers[1] | numbers[0] == numbers[1]  # nothing is missing


def test_the_command_offers_what_can_be_written():
    assert tuple(WRITERS) == clickme.KINDS


def test_other_libraries_read_what_convert_writes(tmp_path):
    folder = files.write_all(tmp_path / "source", "npz")
    for kind in WRITERS:
        assert main(["clickme", "convert", str(folder), str(tmp_path / kind), "--to", kind]) == 0
    expected = files.picture(3)
    sample = list(webdataset.WebDataset(str(tmp_path / "webdataset" / "train-000000.tar"), shardshuffle=False))[3]
    assert (sample["__key__"], sample["cls"]) == ("0003", b"0")
    np.testing.assert_array_equal(np.load(io.BytesIO(sample["heatmap.npy"])), expected[1])
    example = list(tfrecord.tfrecord_loader(str(tmp_path / "tfrecord" / "train-000000.tfrecord"), None))[3]
    np.testing.assert_allclose(np.frombuffer(example["image"], np.float32).reshape(16, 16, 3) * 255, expected[0])
    np.testing.assert_array_equal(np.frombuffer(example["heatmap"], np.float32).reshape(16, 16), expected[1])
    assert example["label"] == [0]
    with np.load(tmp_path / "npz" / "train" / "0003.npz") as found:
        for key, value in zip(("image", "heatmap", "label"), expected, strict=True):
            np.testing.assert_array_equal(found[key], value)
    found = torch.load(tmp_path / "pth" / "train" / "0003.pth")
    assert torch.equal(found["image"].permute(1, 2, 0), torch.from_numpy(expected[0]))
    plain = read(tmp_path / "webdataset")  # without the maps
    assert (plain.train.images, plain.test.images) == (files.COUNT, 2)


def test_what_cannot_be_read_is_left_out_and_named(tmp_path, capsys):
    folder = files.write_all(tmp_path / "source", "npz")
    (folder / "train" / "0002.npz").write_bytes(b"")
    assert main(["clickme", "convert", str(folder), str(tmp_path / "target"), "--to", "pth"]) == 1
    out = capsys.readouterr().out
    assert "left out: train/0002.npz: no readable NPZ file" in out
    assert "written: 7 samples" in out
    assert sorted(path.name for path in (tmp_path / "target" / "train").iterdir()) == [
        f"{number:04}.pth" for number in (0, 1, 3, 4, 5)
    ]


def test_keys_stay_in_their_folder_and_apart(tmp_path):
    """The names of a hostile archive become file names."""
    image, _, _ = files.picture(0)
    keys = ("../../out", "/abs/out", "a b", "a_b", "é", "same", "same", "x" * 180)
    with tarfile.open(tmp_path / "train.tar", "w") as tar:
        for key in keys:
            for kind, data in (("png", files.encoded(image, "PNG")), ("cls", b"1")):
                member = tarfile.TarInfo(f"{key}.{kind}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
            tar.addfile(tarfile.TarInfo(".between"))
    written = tmp_path.parent / f"{tmp_path.name}-new"
    assert main(["clickme", "convert", str(tmp_path), str(written), "--to", "npz"]) == 0
    assert len(samples_of(written)) == len(keys)
    assert not (tmp_path.parent / "out.npz").exists()


def test_an_interrupted_convert_leaves_nothing(tmp_path, monkeypatch):
    folder = files.write_all(tmp_path / "source", "npz")

    def interrupted(samples, split):
        yield from range(3)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert.convert(folder, tmp_path / "target", WRITERS["npz"], 10, interrupted)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


@pytest.mark.parametrize(
    ("source", "target", "message"),
    [
        ("nowhere", "new", r"there are no ClickMe records of train, val, test in \S+nowhere"),
        ("source", "full", r"full is there already; expected a new folder, or an empty one"),
        ("source", "source/new", r"source/new lies in \S+source; expected a folder elsewhere"),
    ],
)
def test_wrong_folders_are_refused_before_anything_is_written(tmp_path, capsys, source, target, message):
    files.write_all(tmp_path / "source", "npz")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(SystemExit, match="2"):
        main(["clickme", "convert", str(tmp_path / source), str(tmp_path / target)])
    assert re.search(f"argument SOURCE or TARGET: .*{message}", capsys.readouterr().err)
    assert sorted(tmp_path.rglob("*")) == before
