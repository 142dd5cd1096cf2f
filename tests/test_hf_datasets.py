"""Data sets of Hugging Face's library datasets: saved, of Parquet or pictures, whole and as streams; nothing online."""

import io
import json
import sys
import zipfile

import pytest
import torch
from imagesets import TRAIN, VAL, equal, read
from PIL import Image

from gala_cuda.cli.main import main
from gala_cuda.data.choices import Columns
from gala_cuda.data.errors import TooManyUnreadableError, UnreachableError, UnreadableError
from gala_cuda.data.hf_rows import content

pytestmark = pytest.mark.usefixtures("one_thread")
datasets = pytest.importorskip("datasets", reason="datasets is not installed")
TINY = ["--model", "resnet18", "--width", "4", "--image-size", "16", "--workers", "0", "--batch-size", "32"]
CLASSES = ("china", "flower")


@pytest.fixture(autouse=True, scope="module")
def _offline(tmp_path_factory):
    """Nothing leaves the machine, and the library's caches are the tests'."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
        patch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
        patch.setenv("HF_HUB_OFFLINE", "1")
        yield


def rows(picture_folder, split):
    """(file, class) of every picture, in the order of the folders."""
    return [(file, file.parent.name) for file in sorted((picture_folder / split).rglob("*.*"))]


def made(picture_folder, split, label=None, names=None, limit=None):
    """A Dataset of a split's pictures as bytes; `label` makes the entry of a row from its class."""
    found = rows(picture_folder, split)[:limit]
    feature = names or datasets.ClassLabel(names=list(CLASSES))
    columns = {
        "id": list(range(len(found))),
        "image": [{"bytes": file.read_bytes(), "path": file.name} for file, _ in found],
        "label": [(label or CLASSES.index)(name) for _, name in found],
    }
    kinds = {"id": datasets.Value("int64"), "image": datasets.Image(), "label": feature}
    return datasets.Dataset.from_dict(columns, datasets.Features(kinds))


@pytest.fixture(scope="module")
def saved(picture_folder, tmp_path_factory):
    """A folder of save_to_disk with the splits train and validation; not to be changed."""
    place = tmp_path_factory.mktemp("saved")
    parts = {"train": made(picture_folder, "train"), "validation": made(picture_folder, "val")}
    datasets.DatasetDict(parts).save_to_disk(str(place))
    return place


@pytest.fixture(scope="module")
def parquet(picture_folder, tmp_path_factory):
    """A folder of Parquet files: train in three shards, and test; not to be changed."""
    place = tmp_path_factory.mktemp("parquet")
    train = made(picture_folder, "train")
    for i in range(3):
        train.shard(3, i).to_parquet(place / f"train-{i:05}-of-00003.parquet")
    made(picture_folder, "val").to_parquet(place / "test-00000-of-00001.parquet")
    return place


def test_a_saved_data_set_gives_what_the_folders_give(picture_folder, saved):
    found, expected = read(f"datasets:{saved}"), read(picture_folder)
    assert found.classes == expected.classes == CLASSES
    for workers in (0, 2):
        found = read(f"datasets:{saved}", workers)
        assert equal(found.train.epoch(2), expected.train.epoch(2))
        assert equal(found.test.epoch(), expected.test.epoch())


def test_a_folder_of_parquet_is_tested_on_its_test(picture_folder, parquet):
    found, expected = read(f"datasets:{parquet}"), read(picture_folder)
    assert equal(found.train.epoch(), expected.train.epoch())
    assert equal(found.test.epoch(), expected.test.epoch())
    assert found.notes == (f"tested on the split test of datasets:{parquet}, which has no val",)


def test_a_share_is_held_out_wherever_the_data_lie(picture_folder, saved, tmp_path, monkeypatch):
    alone = tmp_path / "alone"
    made(picture_folder, "train").save_to_disk(str(alone))
    found = read(f"datasets:{alone}", val_share=0.1)
    assert found.test.labels.bincount().tolist() == [11, 11]
    assert found.train.total == 2 * (TRAIN - 11)
    assert len(found.held_out) == 22
    assert set(found.held_out) <= {f"train#{i}" for i in range(2 * TRAIN)}
    monkeypatch.chdir(tmp_path)
    assert read("datasets:alone", val_share=0.1).held_out == found.held_out


@pytest.mark.parametrize("kind", ["names", "numbers", "several", "several-names"])
def test_labels_may_be_names_or_numbers_or_several(picture_folder, tmp_path, kind):
    classes = datasets.ClassLabel(names=["none", *CLASSES])
    label, feature, expected = {
        "names": (str, datasets.Value("string"), CLASSES),
        "numbers": (lambda name: 10 if name == "china" else 9, datasets.Value("int64"), ("9", "10")),
        "several": (lambda name: [1, 2] if name == "china" else [], datasets.List(classes), ("none", *CLASSES)),
        "several-names": (lambda name: ["b"] if name == "china" else ["b", "a"],
                          datasets.List(datasets.Value("string")), ("a", "b")),
    }[kind]  # fmt: skip
    parts = {name: made(picture_folder, split, label, feature) for name, split in (("train", "train"), ("dev", "val"))}
    datasets.DatasetDict({"train": parts["train"], "validation": parts["dev"]}).save_to_disk(str(tmp_path))
    found = read(f"datasets:{tmp_path}", columns=Columns(multi_label=kind.startswith("several")))
    assert found.classes == expected
    is_china = [name == "china" for _, name in rows(picture_folder, "val")]
    first = {"names": [0, 1], "numbers": [1, 0], "several": [[False, True, True], [False] * 3],
             "several-names": [[False, True], [True, True]]}[kind]  # fmt: skip
    assert found.test.labels.tolist() == [first[0] if china else first[1] for china in is_china]


def test_a_stream_has_every_picture_once_in_an_order_of_its_own(picture_folder, parquet):
    expected = read(picture_folder, augment="none")
    found = read(f"datasets:{parquet}", stream=True, augment="none")
    assert found.train.labels.bincount().tolist() == [TRAIN, TRAIN]
    assert (found.train.total, found.test.total, found.classes) == (2 * TRAIN, 2 * VAL, CLASSES)
    assert equal(found.test.epoch(), expected.test.epoch())

    def sums(batches, epoch):
        pairs = ((image.double().sum().item(), int(label)) for images, labels in batches.epoch(epoch)
                 for image, label in zip(images, labels, strict=True))  # fmt: skip
        return list(pairs)

    first, second = sums(found.train, 0), sums(found.train, 1)
    assert len(first) == len(second) == found.train.images == 200
    assert first != second
    assert sums(found.train, 0) == first
    everything = {round(total, 3): label for total, label in sums(expected.train, 0)}
    everything |= {round(total, 3): label for total, label in sums(expected.train, 1)}
    assert sum(everything.get(round(total, 3)) == label for total, label in first) >= 198


def test_a_stream_goes_on_where_it_stopped_with_any_number_of_workers(parquet):
    def batches(workers=0, **options):
        return read(f"datasets:{parquet}", workers, stream=True, **options).train

    whole = list(batches().epoch(3))
    assert equal(batches().epoch(3, 20), whole[20:])
    assert equal(batches(2).epoch(3), whole)
    ranks = [list(batches(rank=rank, world=2, batch_size=4).epoch(3)) for rank in (0, 1)]
    for (images, labels), *parts in zip(whole, *ranks, strict=True):
        assert torch.equal(torch.stack([part[0] for part in parts], 1).flatten(0, 1), images)
        assert torch.equal(torch.stack([part[1] for part in parts], 1).flatten(0, 1), labels)


def test_bytes_are_in_the_row_or_a_file_or_an_archive(tmp_path):
    (tmp_path / "a.png").write_bytes(b"in a file")
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        archive.writestr("b.png", "in an archive")
    assert content({"bytes": b"in the row", "path": "c.png"}) == b"in the row"
    assert content({"bytes": None, "path": str(tmp_path / "a.png")}) == b"in a file"
    assert content({"bytes": None, "path": f"zip://b.png::{tmp_path}/all.zip"}) == b"in an archive"
    for place in (None, {"bytes": None, "path": None}):
        with pytest.raises(UnreadableError, match="the row has no picture"):
            content(place)


def test_pictures_that_cannot_be_read_are_left_out_of_a_stream(picture_folder, tmp_path):
    whole = made(picture_folder, "train")

    def spoil(row, number):
        return {"image": {"bytes": b"no picture" if number in (7, 30) else row["image"]["bytes"], "path": None}}

    raw = whole.cast_column("image", datasets.Image(decode=False)).map(spoil, with_indices=True)
    raw.cast_column("image", datasets.Image()).to_parquet(tmp_path / "train.parquet")
    made(picture_folder, "val").to_parquet(tmp_path / "validation.parquet")
    for stream in (False, True):
        train = read(f"datasets:{tmp_path}", stream=stream).train
        seen = sum(len(labels) for epoch in (0, 1) for _, labels in train.epoch(epoch))
        assert len(train.skipped) == (1 if stream else 2)  # of a stream, by their content
        assert {reason for _, reason in train.skipped} == {"no image of a known format"}
        assert seen == 400 - 4 * stream


def test_too_many_pictures_that_are_all_the_same_end_a_stream(picture_folder, tmp_path):
    for split in ("train", "val"):
        whole = made(picture_folder, split).cast_column("image", datasets.Image(decode=False))
        empty = whole.map(lambda row, i: {"image": {"bytes": b"" if i % 50 == 0 else row["image"]["bytes"],
                                                    "path": None}}, with_indices=True)  # fmt: skip
        empty.cast_column("image", datasets.Image()).to_parquet(tmp_path / f"{split}.parquet")
    with pytest.raises(TooManyUnreadableError, match=r"3 of .* images seen, of 202 there are, cannot be read"):
        list(read(f"datasets:{tmp_path}", stream=True).train.epoch())


def test_a_stream_that_ends_too_early_is_told(parquet, monkeypatch):
    train = read(f"datasets:{parquet}", stream=True).train
    train._reader.images.stream._rows = train._reader.images.stream._rows.take(50)
    with pytest.raises(UnreachableError, match="the stream ended in batch 7 of 25; was it changed"):
        list(train.epoch())


@pytest.mark.slow
@pytest.mark.parametrize("options", [[], ["--stream"]], ids=["whole", "stream"])
def test_a_training_on_it_is_tested_on_it_again(parquet, tmp_path, capsys, options):
    run = ["train", "--data", f"datasets:{parquet}", *options, *TINY, "--quiet", "--output", str(tmp_path)]
    assert main([*run, "--epochs", "1", "--checkpoint-every", "2"]) == 0
    assert main([*run, "--epochs", "2", "--resume"]) == 0
    last = json.loads((tmp_path / "log.jsonl").read_text().splitlines()[-1])
    assert main(["eval", str(tmp_path / "last.safetensors"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["loss"] == last["test_loss"]


REFUSED = [
    ("--data datasets:{saved} --stream", "argument --stream: stream is True, and {saved} is a folder"),
    ("--data datasets:{saved}/nowhere", "argument --data: datasets:{saved}/nowhere cannot be opened: "),
    (
        "--data datasets:{saved} --val-share 0.2",
        "argument --val-share: val_share is 0.2, and datasets:{saved}",
    ),
    ("--data datasets:{saved} --image-column id", "argument --image-column: image_column is 'id', which holds no"),
    (
        "--data datasets:{saved} --label-column x",
        "argument --label-column: label_column is 'x', and datasets:",
    ),
    ("--data datasets:{saved} --multi-label", "argument --multi-label: multi_label is True, and label of"),
    (
        "--data datasets:{parquet} --stream --repeats 2",
        "argument --repeats: repeats is 2, and datasets:",
    ),
    (
        "--data datasets:{parquet} --stream --val-share 0.1",
        "argument --val-share: val_share is 0.1; expected none",
    ),
    ("--data {pictures} --stream", "argument --stream: stream is True, and {pictures} is not of datasets"),
    ("--stream", "argument --stream: stream is True, and builtin:digits is no folder of pictures"),
]


@pytest.mark.parametrize(("arguments", "message"), REFUSED)
def test_what_does_not_go_is_refused_by_its_flag(
    picture_folder, saved, parquet, tmp_path, capsys, arguments, message
):  # fmt: skip
    places = {"saved": saved, "parquet": parquet, "pictures": picture_folder}
    with pytest.raises(SystemExit):
        main(["train", *TINY, *arguments.format(**places).split(), "--output", str(tmp_path / "run")])
    assert message.format(**places) in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_rows_without_a_label_are_refused(picture_folder, tmp_path):
    part = made(picture_folder, "val", lambda name: -1)
    datasets.DatasetDict({"train": made(picture_folder, "train"), "test": part}).save_to_disk(str(tmp_path))
    with pytest.raises(ValueError, match="has rows without a label; expected one of 2 classes"):
        read(f"datasets:{tmp_path}")


def test_a_data_set_without_pictures_or_labels_is_refused(tmp_path):
    for columns, message in (({"text": ["a"], "label": [1]}, "pictures"), ({"image": None}, "labels")):
        place = tmp_path / message
        stream = io.BytesIO()
        Image.new("RGB", (4, 4)).save(stream, "PNG")
        if columns.get("image", 0) is None:
            columns["image"] = [{"bytes": stream.getvalue(), "path": None}]
            features = datasets.Features({"image": datasets.Image()})
        else:
            features = None
        datasets.Dataset.from_dict(columns, features).save_to_disk(str(place))
        with pytest.raises(ValueError, match=f"has the columns .*; expected one of {message}"):
            read(f"datasets:{place}", val_share=0.5)


def test_without_the_package_the_extra_is_named(monkeypatch, capsys, tmp_path):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(SystemExit):
        main(["train", "--data", "datasets:beans", "--output", str(tmp_path / "run")])
    assert "datasets:beans needs the package datasets; pip install 'gala-cuda[datasets]'" in capsys.readouterr().err
