"""Tables of paths and labels: how they are read, what is refused, and trainings on several labels for each picture."""

import csv
import json
import shutil

import pytest
import torch
from imagesets import TRAIN, VAL, read

from gala_cuda.cli.main import main
from gala_cuda.data.choices import Columns
from gala_cuda.networks import read_weights

pytestmark = pytest.mark.usefixtures("one_thread")
TINY = ["--model", "gala_resnet18", "--width", "4", "--image-size", "16", "--workers", "0", "--batch-size", "32"]
SEVERAL = Columns(multi_label=True)


@pytest.fixture
def place(picture_folder, tmp_path):
    """A folder with "pictures" in it; not to be changed."""
    (tmp_path / "pictures").symlink_to(picture_folder)
    return tmp_path


def write(path, rows, delimiter=","):
    with path.open("w", newline="") as file:
        csv.writer(file, delimiter=delimiter).writerows(rows)
    return path


def listed(place, split):
    """(path below `place`, class) of all pictures of a split, in the order of the folders."""
    files = sorted((place / "pictures" / split).rglob("*.*"))
    return [(str(file.relative_to(place)), file.parent.name) for file in files]


def with_splits(place):
    rows = [(path, name, split) for split in ("train", "val") for path, name in listed(place, split)]
    return [("image", "label", "split"), *rows]


def names(batches):
    return [batches._reader.images.name(i) for i in range(batches.total)]


@pytest.mark.parametrize("kind", ["split", "two-files", "tsv", "semicolons", "other-names", "absolute"])
def test_a_table_gives_what_the_folders_give(place, picture_folder, kind):
    rows, columns, source = with_splits(place), Columns(), place / "all.csv"
    if kind == "two-files":
        source = place
        for split in ("train", "valid"):
            part = [(path, name) for path, name, own in rows[1:] if own == split[: len(own)]]
            write(place / f"{split}.csv", [("file_name", "class"), *part])
    elif kind == "other-names":
        columns = Columns("where", "what")
        write(source, [("label", "where", "what", "split"), *(("x", *row) for row in rows[1:])])
    elif kind == "absolute":
        write(source, [rows[0], *((str(place / path), *rest) for path, *rest in rows[1:])])
    else:
        source = source.with_suffix(".tsv") if kind == "tsv" else source
        write(source, rows, {"tsv": "\t", "semicolons": ";"}.get(kind, ","))
    found, expected = read(source, columns=columns), read(picture_folder)
    assert found.classes == expected.classes == ("china", "flower")
    for mine, theirs in ((found.train, expected.train), (found.test, expected.test)):
        assert torch.equal(mine.labels, theirs.labels)
        for (images, labels), (other_images, other_labels) in zip(mine.epoch(), theirs.epoch(), strict=True):
            assert torch.equal(images, other_images)
            assert torch.equal(labels, other_labels)


def test_a_share_is_held_out_and_written_down(place):
    table = write(place / "all.csv", [("path", "label"), *listed(place, "train")])
    found = read(table, val_share=0.2)
    assert found.test.labels.bincount().tolist() == [21, 21]
    assert found.train.total == 2 * (TRAIN - 21)
    assert list(found.held_out) == names(found.test)
    assert not set(names(found.test)) & set(names(found.train))


def test_test_takes_the_place_of_val(place):
    rows = [("test" if cell == "val" else cell for cell in row) for row in with_splits(place)]
    found = read(write(place / "all.csv", rows))
    assert found.test.total == 2 * VAL
    assert any("tested on the split test" in note for note in found.notes)


def test_several_labels_are_read_from_names_or_columns_or_lines(place):
    paths = [path for path, _ in listed(place, "train")][:4]
    labels = ("sky|roof", "", "roof; wall", "wall")
    expected = torch.tensor([[1, 1, 0], [0, 0, 0], [1, 0, 1], [0, 0, 1]], dtype=torch.bool)  # roof, sky, wall
    for table in (
        write(place / "names.csv", [("path", "labels"), *zip(paths, labels, strict=True)]),
        write(place / "columns.csv", [("path", "wall", "sky", "roof"), (paths[0], 0, 1, "1.0"), (paths[1], 0, "", 0),
                                      (paths[2], "true", "no", 1), (paths[3], 1, 0, "False")]),
        write(place / "lines.csv", [("path", "label"), (paths[0], "sky"), (paths[1], ""), (paths[2], "roof"),
                                    (paths[3], "wall"), (paths[0], "roof"), (paths[2], "wall")]),
    ):  # fmt: skip
        found = read(table, columns=SEVERAL, val_share=0.25)
        assert found.classes == ("roof", "sky", "wall")
        order = [str(place / path) for path in paths]
        for batches in (found.train, found.test):
            for name, row in zip(names(batches), batches.labels, strict=True):
                assert torch.equal(row, expected[order.index(name)])
        assert (found.train.total, found.test.total) == (3, 1)


def test_names_that_are_numbers_are_in_the_order_of_numbers(place):
    paths = [path for path, _ in listed(place, "train")]
    rows = [(path, 9 + i % 3) for i, path in enumerate(paths)]
    assert read(write(place / "n.csv", [("path", "label"), *rows]), val_share=0.5).classes == ("9", "10", "11")


BAD = [
    ("path,label\n", "has no rows"),
    ("", "has the columns ; expected one of image, path"),
    ("what,label\na.png,x\n", "has the columns what, label; expected one of image, path, .* or image_column"),
    ("path,what\na.png,x\n", "expected one of label, labels, .* or label_column"),
    ("path,label\na.png\n", "line 2, has other columns than the first line; expected path, label"),
    ("path,label\na.png,x,y\n", "line 2, has other columns"),
    ("path,label\n,x\n", "line 2, names no picture"),
    ("path,label\na.png,\n", "line 2, has no label; expected the name of a class"),
    ("path,label,split\na.png,x,dev\n", "line 2, is of the split 'dev'; expected one of train, val, test"),
    ("path,label,split\na.png,x,train\n", "has no pictures of the split val; expected a column 'split'"),
    (
        "path,label\na.png,x\na.png,y\n",
        "line 3, has 'y' for .*a.png, which was 'x' before; expected one label",
    ),
    ("path,label,split\na.png,x,train\na.png,x,val\n", "line 3, has .*a.png to test on, which is to train on too"),
    ("path,label,split\na.png,x,train\nb.png,y,val\n", "has classes without pictures to train on: y"),
    (
        "path,label\nc.png,x\n",
        "line 2, names .*c.png, which is not there; expected paths that are absolute",
    ),
    ('path,label\n"a.png,x\n', "cannot be read as a table: "),
]


@pytest.mark.parametrize(("text", "message"), BAD)
def test_a_table_that_is_wrong_is_refused_with_its_line(tmp_path, picture_folder, text, message):
    for name in ("a.png", "b.png"):
        shutil.copy(picture_folder / "val/china/000.png", tmp_path / name)
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        read(tmp_path / "t.csv")
    (tmp_path / "t.csv").write_bytes(b"path,label\n\xff\xfe.png,x\n")
    with pytest.raises(ValueError, match=r"t.csv cannot be read as a table: 'utf-8' codec"):
        read(tmp_path / "t.csv")


def test_columns_of_labels_are_of_yes_and_no(tmp_path):
    (tmp_path / "t.csv").write_text("path,x,y\na.png,1,-1\n")
    with pytest.raises(ValueError, match="line 2, has '-1' in the column y; expected 0 or 1"):
        read(tmp_path / "t.csv", columns=SEVERAL)


@pytest.mark.parametrize(("arguments", "message"), [
    ("--data {place}/t.csv --label-column what", "argument --label-column: label_column is 'what', and {place}"),
    ("--data {place}/none.csv", "argument --data: there is no file {place}/none.csv; expected a table"),
    ("--data {place}/t.csv --val-share 0.2", "argument --val-share: val_share is 0.2, and {place}/t.csv, line 2"),
    ("--data {place}/pictures --multi-label", "argument --multi-label: multi_label is True, and {place}/pictures"),
    ("--data {place}/pictures --image-column x", "argument --image-column: image_column is x, and {place}/pictures"),
])  # fmt: skip
def test_bad_arguments_are_named(place, capsys, arguments, message):
    write(place / "t.csv", with_splits(place))
    with pytest.raises(SystemExit):
        main(["train", *TINY, *arguments.format(place=place).split(), "--output", str(place / "run")])
    assert message.format(place=place) in capsys.readouterr().err
    assert not (place / "run").exists()


@pytest.mark.slow
def test_several_labels_from_training_to_prediction(place, capsys):
    """What a picture shows, and whether its file is a PNG: every fourth is, and so the label "fourth" is rare."""
    rows = [
        (path, name + "|fourth" * path.endswith("png"), split)
        for split in ("train", "val") for path, name in listed(place, split)
    ]  # fmt: skip
    table, run = write(place / "t.csv", [("path", "labels", "split"), *rows]), place / "run"
    options = ["--multi-label", "--class-weights", "balanced", "--mixup", "0.1", "--label-smoothing", "0.1"]
    train = ["train", *TINY, "--data", str(table), *options, "--output", str(run), "--lr", "0.05"]
    assert main([*train, "--epochs", "2"]) == 0
    assert "test mAP" in capsys.readouterr().out
    assert main([*train, "--epochs", "5", "--resume"]) == 0
    assert "mAP in the test" in capsys.readouterr().out
    log = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert [line["test_accuracy"] for line in log] == [None] * 5
    assert log[-1]["test_map"] > 0.6
    network = read_weights(run / "last.safetensors")[1]
    assert (network.classes, network.multi_label) == (("china", "flower", "fourth"), True)
    assert main(["eval", str(run / "last.safetensors"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["map"], found["loss"]) == (pytest.approx(log[-1]["test_map"]), pytest.approx(log[-1]["test_loss"]))
    assert (found["top1"], found["confusion"]) == (None, None)
    assert sum(found["average_precision"]) / 3 == pytest.approx(found["map"])

    fewer = [(path, names.replace("china", "").strip("|"), split) for path, names, split in rows]
    other = write(place / "other.csv", [("path", "labels", "split"), *fewer])  # classes are matched by name
    assert main(["eval", str(run / "last.safetensors"), "--data", str(other), "--multi-label", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["average_precision"] == [None, *found["average_precision"][1:]]
    assert main(["eval", str(run), "--tta", "flip"]) == 0
    assert "average precision" in capsys.readouterr().out
    out = place / "p.jsonl"
    val = str(place / "pictures/val")
    assert main(["predict", str(run), val, "--top", "3", "--workers", "0", "--output", str(out)]) == 0
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert max(sum(row["probabilities"]) for row in rows) > 1.01
    with pytest.raises(SystemExit):
        main(["eval", str(run), "--data", str(place / "pictures")])
    assert "argument --multi-label: multi_label is False; expected True" in capsys.readouterr().err
