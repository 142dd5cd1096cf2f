"""`gala-cuda predict`: its tables agree with the network, whatever lies among the pictures, and refusals come first."""

import csv
import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
import torchvision
from imagesets import VAL, write_folder
from sklearn.datasets import load_sample_images

from gala_cuda.cli.main import main
from gala_cuda.data.augmentation import centre_crop
from gala_cuda.data.picture_decoding import decode_picture
from gala_cuda.networks import libraries
from gala_cuda.networks.classes import placeholder_names
from gala_cuda.networks.network import Network
from gala_cuda.prediction import SUFFIXES
from gala_cuda.training.checkpoint import as_bytes

pytestmark = pytest.mark.usefixtures("one_thread")
CLASSES = ("china", "flower", "lamp")


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Files of two untrained networks of three classes, with GALA and without."""
    folder = tmp_path_factory.mktemp("weights")
    for model in ("gala_resnet18", "resnet18"):
        torch.manual_seed(0)
        network = Network(model, (), 8, False, "imagenet", CLASSES, 3, 64, init="half")
        (folder / f"{model}.safetensors").write_bytes(as_bytes(network.build().state_dict(), network.metadata()))
    return folder


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """A folder of good pictures, with a broken one in their middle."""
    folder = write_folder(tmp_path_factory.mktemp("pictures")) / "val"
    (folder / "china" / "broken.png").write_bytes(b"no picture")
    (folder / "china" / "notes.txt").write_text("not named as a picture")
    return folder


def expected(weights, path):
    """(logits, maps) of one picture, by the network itself."""
    from gala_cuda.networks.loading import read_weights, rebuild

    state, network = read_weights(weights / "gala_resnet18.safetensors")
    image = centre_crop(64)(decode_picture(path.read_bytes()))
    with torch.no_grad():
        return rebuild(network, state).eval()(image[None], return_maps=True)


def read(path):
    """The rows of a table, as JSON lines have them."""
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_text().splitlines()]
    if path.suffix == ".parquet":
        return pq.read_table(path).to_pylist()
    rows = []
    for row in csv.DictReader(path.open(newline="")):
        names = [name for name in row if name.startswith("label") and row[name]]
        found = {"image": row["image"], "labels": [row[name] for name in names]}
        found["probabilities"] = [float(row[name.replace("label", "probability")]) for name in names]
        if "attention" in row:
            found["attention"] = json.loads(row["attention"]) if row["attention"] else None
        rows.append(found | {"error": row["error"] or None})
    return rows


@pytest.mark.parametrize("maps", [False, True], ids=["answers", "maps"])
def test_all_formats_say_what_the_network_says(weights, pictures, tmp_path, capsys, maps):
    tables = {}
    for suffix in SUFFIXES:
        path = tmp_path / "new" / f"table{suffix}"
        command = ["predict", str(weights / "gala_resnet18.safetensors"), str(pictures), "--output", str(path)]
        options = ["--top", "2", "--batch-size", "3", "--workers", "0", *(["--maps"] if maps else [])]
        assert main([*command, *options]) == 0
        printed = capsys.readouterr().out
        assert f"written: {path}: {2 * VAL + 1} images, 1 of which cannot be read, " in printed
        assert "left out: 1 file (1 .txt)" in printed
        assert [entry.name for entry in path.parent.iterdir() if entry.suffix == ".draft"] == []
        tables[suffix] = read(path)
    rows = tables[".jsonl"]
    assert tables[".csv"] == rows
    assert tables[".parquet"] == rows
    files = [path for path in pictures.rglob("*") if path.is_file() and path.suffix != ".txt"]
    assert [row["image"] for row in rows] == sorted(map(str, files))
    (broken,) = (row for row in rows if row["error"])
    assert broken["image"].endswith("broken.png")
    assert broken["error"].startswith("no image of a known format")
    assert (broken["labels"], broken["probabilities"]) == ([], [])
    for row in rows:
        assert ("attention" in row) == maps
    for row in (rows[0], rows[-1]):
        logits, layers = expected(weights, Path(row["image"]))
        probabilities, numbers = logits.softmax(1)[0].topk(2)
        assert row["labels"] == [CLASSES[number] for number in numbers]
        assert row["probabilities"] == pytest.approx(probabilities.tolist(), abs=2e-6)
        if maps:
            mean = torch.stack(list(layers.values())).mean(0)[0]
            torch.testing.assert_close(torch.tensor(row["attention"]), mean, rtol=0, atol=2e-6)


def test_patterns_and_single_files(weights, pictures, tmp_path, capsys):
    command = ["predict", str(weights / "resnet18.safetensors"), "--workers", "2", "--output", str(tmp_path / "t.csv")]
    assert main([*command, f"{pictures}/*/000.*", str(pictures / "flower" / "004.png"), "--top", "99"]) == 0
    rows = read(tmp_path / "t.csv")
    assert [row["image"][-14:] for row in rows] == ["/china/000.png", "flower/000.png", "flower/004.png"]
    assert all(sorted(row["labels"]) == sorted(CLASSES) for row in rows)
    assert all(sum(row["probabilities"]) == pytest.approx(1, abs=3e-6) for row in rows)


def test_a_run_without_a_readable_picture_fails_and_says_why(weights, pictures, tmp_path, capsys):
    output = tmp_path / "t.jsonl"
    command = ["predict", str(weights / "resnet18.safetensors"), str(pictures / "china" / "broken.png")]
    assert main([*command, "--output", str(output)]) == 1
    assert f"none of the images can be read; {output} says why" in capsys.readouterr().err
    assert "no image of a known format" in read(output)[0]["error"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["PICTURES", "--output", "t.txt"], "argument --output: 't.txt' was given; expected a name that ends in .csv"),
        (["PICTURES", "--top", "0"], "argument --top: '0' was given; expected a whole number of at least 1"),
        (["PICTURES", "--maps"], "argument --maps: resnet18 has no GALA, whose attention they are"),
        (["nowhere/*.png"], "argument IMAGES: nothing matches nowhere/*.png"),
        (["nowhere.png"], "argument IMAGES: there is no nowhere.png"),
        (["PICTURES", "--batch-size", "0"], "argument --batch-size: batch_size is 0"),
    ],
)
def test_refusals_write_nothing(weights, pictures, tmp_path, monkeypatch, capsys, options, message):
    monkeypatch.chdir(tmp_path)
    options = [str(pictures) if option == "PICTURES" else option for option in options]
    with pytest.raises(SystemExit):
        main(["predict", str(weights / "resnet18.safetensors"), *options])
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_table_that_cannot_be_written_is_named(weights, pictures, tmp_path, capsys):
    """A table that was there before stays."""
    (tmp_path / "file").write_text("")
    command = ["predict", str(weights / "resnet18.safetensors"), str(pictures), "--output"]
    assert main([*command, str(tmp_path / "file" / "t.csv")]) == 1
    assert f"cannot write {tmp_path}/file/t.csv: " in capsys.readouterr().err
    (tmp_path / "t.csv").mkdir()
    assert main([*command, str(tmp_path / "t.csv")]) == 1
    assert not list(tmp_path.glob(".*"))


def test_names_that_are_no_text(weights, pictures, tmp_path):
    folder = tmp_path / "named"
    folder.mkdir()
    content = (pictures / "china" / "000.png").read_bytes()
    (folder / b'\xff,"x".png'.decode("utf-8", "surrogateescape")).write_bytes(content)
    found = []
    for suffix in SUFFIXES:
        output = tmp_path / f"t{suffix}"
        command = ["predict", str(weights / "resnet18.safetensors"), str(folder), "--workers", "0"]
        assert main([*command, "--output", str(output)]) == 0
        found += [row["image"] for row in read(output)]
    assert set(found) == {f'{folder}/\\udcff,"x".png'}


def test_imagenet_has_names():
    def names(model, classes):
        return Network(model, (), 64, False, "imagenet", classes, 3, 64).class_names

    found = names("torchvision/resnet18", placeholder_names(1000))
    assert (len(found), found[0], found[285]) == (1000, "tench", "Egyptian cat")
    numbers = tuple(map(str, range(1000)))
    for model, classes in (("timm/resnet18", placeholder_names(10)), ("resnet18", found), ("timm/resnet18", numbers)):
        assert names(model, classes) == classes


@pytest.mark.slow
def test_weights_of_a_library(tmp_path):
    torch.manual_seed(0)
    torch.save(torchvision.models.resnet18().state_dict(), tmp_path / "w.pth")
    from PIL import Image

    Image.fromarray(load_sample_images().images[0]).save(tmp_path / "china.png")
    command = ["predict", str(tmp_path / "w.pth"), str(tmp_path / "china.png"), "--model", "torchvision/resnet18"]
    assert main([*command, "--output", str(tmp_path / "t.csv")]) == 0
    assert read(tmp_path / "t.csv")[0]["labels"][0] in libraries.imagenet_names()
