"""What collect writes of rounds: maps, splits, people, every stroke; and what it refuses."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from game_rounds import CLASSES, line, made, write_images
from PIL import Image

from gala_cuda.cli.main import main
from gala_cuda.clickme import human_ceiling
from gala_cuda.console import numbered
from gala_cuda.data.human_maps import convert, open_clickme_folder
from gala_cuda.data.human_maps.check import check
from gala_cuda.data.human_maps.formats import WRITERS
from gala_cuda.data.human_maps.people import read_people
from gala_cuda.data.human_maps.split_reader import open_split
from gala_cuda.game.export import CollectError, FileOptions, collect
from gala_cuda.game.maps import MapOptions
from gala_cuda.game.records import Device
from gala_cuda.game.rules import click_map
from gala_cuda.game.store import Picture, Store

pytestmark = pytest.mark.usefixtures("user_cache")

SIDES = {"width": 64, "height": 48}
ROUNDS = [
    made(1),
    made(2, line(20, 30), participant="bob"),
    made(3, line(5, 5, 1, 1), image="dog/1.png", label="dog"),
    made(4, outcome="skip", image="dog/2.png", label="dog"),
    made(5, line(0, 0, 0, 1), image="cat/3.png", outcome="timeout", recognised_n=None),
]


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Five images of each of two classes; not to be changed."""
    return write_images(tmp_path_factory.mktemp("study") / "images")


def written(images, target, rounds=None, **options):
    split = {name: options.pop(name) for name in ("filters", "map_options", "file_options") if name in options}
    assert not options
    return collect(images, target, ROUNDS if rounds is None else rounds, numbered, **split)


def samples(folder, split):
    """Each sample of a split by its key."""
    reader = open_split(Path(folder), split)
    return {reader.key(index): reader.read(index) for index in range(len(reader))}


@pytest.mark.parametrize("kind", WRITERS)
def test_every_format_holds_the_map_of_all_bubbles(tmp_path, kind):
    """Square images, for a raw TFRecord has no others."""
    images = write_images(tmp_path / "images", size=(48, 48))
    square = [made(n, points, participant=f"p{n}", width=48, height=48) for n, points in
              enumerate((line(0, 0), line(9, 20, 1, 1)))]  # fmt: skip
    collected = written(images, tmp_path / "maps", square, file_options=FileOptions(kind=kind))
    assert (collected.images, collected.mapped, collected.left_out) == ({"train": 8, "val": 2}, 1, [])
    reports = check(tmp_path / "maps", numbered)
    assert not any(report.broken for report in reports.values())
    assert sum(report.with_map for report in reports.values()) == 1
    found = [each for split in ("train", "val") for each in samples(tmp_path / "maps", split).values() if each.has_map]
    expected = click_map(square[0].points + square[1].points, 48, 48)
    scale = 255 if kind in ("pth", "tfrecord-jpeg") else 1
    error = 0.02 if kind == "tfrecord-jpeg" else 0.002 if kind == "pth" else 0
    np.testing.assert_allclose(found[0].heatmap[0] / scale, expected, atol=error)


def test_maps_images_and_labels_are_those_of_the_study(images, tmp_path):
    collected = written(images, tmp_path / "maps")
    assert (collected.rounds, collected.counted, collected.people) == (5, 4, 2)
    assert collected.uncounted == {"its outcome is skip": 1}
    assert (tmp_path / "maps" / "classes.txt").read_text() == "cat\ndog\n"
    found = samples(tmp_path / "maps", "train") | samples(tmp_path / "maps", "val")
    assert sorted(found) == [f"{name}/{number}" for name in CLASSES for number in range(5)]
    for key, sample in found.items():
        path = next(images.glob(f"{key}.*"))
        np.testing.assert_array_equal(sample.image.permute(1, 2, 0), np.asarray(Image.open(path)))
        assert sample.label == CLASSES.index(key.split("/")[0])
        own = [round.points for round in ROUNDS if round.image == f"{key}{path.suffix}" and round.outcome != "skip"]
        assert sample.has_map == bool(own)
        np.testing.assert_array_equal(sample.heatmap[0], click_map(sum(own, ()), 48, 64))


def test_splits_are_those_of_the_study(tmp_path):
    images = tmp_path / "images"
    for split, count in (("train", 3), ("validation", 2), ("test", 1)):
        write_images(images, count, split)
    round = made(1, image="validation/dog/1.png", label="dog")
    collected = written(images, tmp_path / "maps", [round])
    assert collected.images == {"train": 6, "val": 4, "test": 2}
    assert samples(tmp_path / "maps", "val")["dog/1"].has_map


def test_a_share_of_each_class_is_held_out_by_the_seed_and_written_down(images, tmp_path):
    for number, seed in enumerate((0, 0, 1)):
        assert written(images, tmp_path / str(number), file_options=FileOptions(val_share=0.4, seed=seed)).images == {
            "train": 6, "val": 4,
        }  # fmt: skip
    reports = [json.loads((tmp_path / str(number) / "collect.json").read_text()) for number in range(3)]
    splits = [report["splits"] for report in reports]
    assert splits[0] == splits[1] != splits[2]
    assert [sorted(name.split("/")[0] for name in split["val"]) for split in splits] == [["cat"] * 2 + ["dog"] * 2] * 3
    assert sorted(splits[0]["train"] + splits[0]["val"]) == sorted(path.relative_to(images).as_posix() for path in
                                                                    images.rglob("*.*"))  # fmt: skip
    assert reports[2]["files"] == {"kind": "webdataset", "per_shard": 1000, "val_share": 0.4, "seed": 1}
    assert reports[0]["filters"]["outcomes"] == ["recognised", "timeout"]


def test_a_class_of_one_image_stays_in_train(tmp_path):
    images = write_images(tmp_path / "images")
    (images / "one").mkdir()
    (images / "cat" / "4.jpg").rename(images / "one" / "0.jpg")
    collected = written(images, tmp_path / "maps", [made(1, image="one/0.jpg", label="one")])
    assert (collected.images, collected.undivided) == ({"train": 8, "val": 2}, ("one",))
    assert samples(tmp_path / "maps", "train")["one/0"].has_map
    assert written(images, tmp_path / "whole", file_options=FileOptions(val_share=0)).images == {"train": 10}


def test_single_peoples_maps_give_the_ceiling(images, tmp_path):
    collected = written(images, tmp_path / "maps", file_options=FileOptions(val_share=0))
    ((key, maps),) = read_people(tmp_path / "maps")
    assert key == "train/cat/0"
    own = [click_map(round.points, 48, 64) for round in ROUNDS if round.image == "cat/0.png"]
    assert collected.shared == 1
    np.testing.assert_array_equal(maps, np.stack(own))
    assert collected.ceiling == pytest.approx(human_ceiling([torch.from_numpy(np.stack(own))]))


def test_every_stroke_is_in_rounds_jsonl(images, tmp_path):
    written(images, tmp_path / "maps")
    lines = [json.loads(line) for line in (tmp_path / "maps" / "rounds.jsonl").read_text().splitlines()]
    assert [line["id"] for line in lines] == [round.id for round in ROUNDS]
    for line_, round in zip(lines, ROUNDS, strict=True):
        assert tuple(map(tuple, line_["points"])) == round.points
        assert (line_["participant"], line_["started"]) == (round.participant, round.started)
    assert [(line["counts"], line.get("why_not")) for line in lines] == [
        (True, None), (True, None), (True, None), (False, "its outcome is skip"), (True, None),
    ]  # fmt: skip


def test_maps_follow_box_blur_and_number_of_people(images, tmp_path):
    from scipy.ndimage import gaussian_filter

    options = MapOptions(box=7, blur=2.0, min_people=2, only_mapped=True)
    collected = written(images, tmp_path / "maps", map_options=options, file_options=FileOptions(val_share=0))
    assert (collected.images, collected.mapped) == ({"train": 1}, 1)
    sample = samples(tmp_path / "maps", "train")["cat/0"]
    expected = gaussian_filter(click_map(ROUNDS[0].points + ROUNDS[1].points, 48, 64, 7), 2.0, mode="constant")
    np.testing.assert_allclose(sample.heatmap[0], expected / expected.max(), rtol=1e-6)


def test_a_picture_that_a_camera_turned_is_written_upright(tmp_path):
    """Readers ignore EXIF data, the players saw the picture upright."""
    images = write_images(tmp_path / "images")
    exif = Image.Exif()
    exif[0x0112] = 6
    pixels = np.random.default_rng(0).integers(0, 255, (64, 48, 3), np.uint8)
    Image.fromarray(pixels).save(images / "cat" / "9.jpg", exif=exif)
    written(images, tmp_path / "maps", [made(1, image="cat/9.jpg", **SIDES)], file_options=FileOptions(val_share=0))
    sample = samples(tmp_path / "maps", "train")["cat/9"]
    stored = np.asarray(Image.open(images / "cat" / "9.jpg"))
    np.testing.assert_array_equal(sample.image.permute(1, 2, 0), np.rot90(stored, -1))
    np.testing.assert_array_equal(sample.heatmap[0], click_map(line(10, 10), 48, 64))


def test_an_image_larger_than_readers_take_is_made_smaller_with_its_map(tmp_path):
    images = write_images(tmp_path / "images")
    Image.new("RGB", (4096, 100), "red").save(images / "cat" / "9.png")
    round = made(1, line(2000, 50), image="cat/9.png", width=4096, height=100)
    assert written(images, tmp_path / "maps", [round], file_options=FileOptions(val_share=0)).left_out == []
    sample = samples(tmp_path / "maps", "train")["cat/9"]
    assert (sample.image.shape, sample.heatmap.shape) == ((3, 50, 2048), (1, 50, 2048))
    assert sample.heatmap.max() == 1
    assert 990 < sample.heatmap[0].amax(0).nonzero().float().mean() < 1025


def test_what_is_gone_or_changed_is_left_out_and_named(tmp_path):
    images = write_images(tmp_path / "images")
    (images / "dog" / "1.png").unlink()
    (images / "cat" / "1.png").write_bytes(b"no picture")
    rounds = [*ROUNDS[:4], made(8, image="cat/3.png", width=10, height=10), made(9, image="cat/1.png")]
    collected = written(images, tmp_path / "maps", rounds)
    assert sorted(collected.left_out) == [
        ("cat/1.png", "no image of a known format"),
        ("cat/3.png", "the image has 64 x 48 pixels, and 10 x 10 in its rounds"),
        ("dog/1.png", "the image of 1 rounds is not there"),
    ]
    assert not any(report.broken for report in check(tmp_path / "maps", numbered).values())


def test_keys_of_images_that_differ_in_their_suffix_stay_apart(tmp_path):
    images = write_images(tmp_path / "images")
    Image.new("RGB", (64, 48)).save(images / "cat" / "1.bmp")
    rounds = [made(n, image=f"cat/1.{kind}", participant=f"p{n}") for n, kind in enumerate(("bmp", "png") * 2)]
    written(images, tmp_path / "maps", rounds, file_options=FileOptions(val_share=0))
    assert {key for key, _ in read_people(tmp_path / "maps")} == {"train/cat/1", "train/cat/1-1"}
    assert {"cat/1", "cat/1-1"} <= samples(tmp_path / "maps", "train").keys()


@pytest.mark.parametrize(
    ("rounds", "message"),
    [
        ([], "none of 0 finished rounds counts"),
        ([ROUNDS[3]], r"none of 1 finished rounds counts: its outcome is skip \(1\)"),
    ],
)
def test_without_rounds_that_count_nothing_is_written(images, tmp_path, rounds, message):
    with pytest.raises(CollectError, match=message):
        written(images, tmp_path / "maps", rounds)
    assert list(tmp_path.iterdir()) == []


def test_wrong_folders_are_refused_before_anything_is_written(images, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(FileExistsError, match="full is there already; expected a new folder, or an empty one"):
        written(images, tmp_path / "full")
    with pytest.raises(FileExistsError, match=r"lies in .*images; expected a folder elsewhere"):
        written(images, images / "maps")
    with pytest.raises(FileNotFoundError, match=r"there is no folder .*nowhere; expected .*nowhere/\[SPLIT/\]CLASS"):
        written(tmp_path / "nowhere", tmp_path / "maps")
    write_images(tmp_path / "half", split="val")
    with pytest.raises(FileNotFoundError, match=r"there is no folder .*train beside val; expected one"):
        written(tmp_path / "half", tmp_path / "maps")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["full", "half"]


def test_an_interrupted_collect_leaves_nothing(images, tmp_path, monkeypatch):
    def interrupted(records, split):
        yield from range(2)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        collect(images, tmp_path / "maps", ROUNDS, interrupted)
    monkeypatch.setattr(convert.os, "replace", lambda *_: (_ for _ in ()).throw(OSError("No space left on device")))
    with pytest.raises(OSError, match="No space left"):
        written(images, tmp_path / "maps")
    assert list(tmp_path.iterdir()) == []


def play(store, code, path, outcome="timeout"):
    """Plays an image of a study to its end."""
    found = store.start(code, 1000.0)
    assert found.picture.path == path
    store.finish(found.id, code, outcome, line(10, 10), Device("mouse", 1.0, 1280, 720), "body", 1001.0)


@pytest.fixture
def study(tmp_path):
    """A study of which two people have painted the first image, and one has passed over the second."""
    images = write_images(tmp_path / "study" / "images")
    store = Store(f"sqlite:///{tmp_path / 'study' / 'game.sqlite'}")
    store.add_images([Picture(0, "play", "cat/0.png", "cat", 64, 48, "digest", people=2)])
    codes = [store.join(f"token {number}", "consent") for number in range(2)]
    for code in codes:
        play(store, code, "cat/0.png")
    store.add_images([Picture(0, "play", f"cat/{number}.png", "cat", 64, 48, "digest") for number in range(2)])
    play(store, codes[0], "cat/1.png", "skip")
    yield images.parent, store, codes
    store.close()


def run(study, *flags):
    return main(["clickme", "collect", str(study), str(study.parent / "maps"), *flags])


def test_the_command_collects_what_check_passes_and_a_training_reads(study, capsys):
    folder, _, _ = study
    assert run(folder) == 0
    out = capsys.readouterr().out
    assert "rounds: 2 of 3 count, of 2 people\n  left out 1: its outcome is skip\n" in out
    assert "images: train 8, val 2; 1 with a map" in out
    assert "ceiling: people agree by 1.000 on 1 images that several painted; for eval: --ceiling 1.000" in out
    assert main(["clickme", "check", str(folder.parent / "maps")]) == 0
    train, val, classes = open_clickme_folder(folder.parent / "maps", 32)
    assert (len(train.labels), len(val.labels), classes) == (8, 2, CLASSES)
    assert {int(dataset.read(0, 0).label) for dataset in (train, val)} <= {0, 1}


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
def test_a_network_trains_on_what_was_collected_and_is_scored_by_it(study, capsys):
    folder, _, _ = study
    assert run(folder, "--val-share", "0.5") == 0
    maps, network = str(folder.parent / "maps"), str(folder.parent / "run")
    settings = ["--image-size", "32", "--epochs", "1", "--batch-size", "2", "--workers", "0", "--device", "cpu"]
    assert main(["train", "--clickme", maps, "--model", "gala_resnet18", *settings, "--output", network]) == 0
    epoch = json.loads((folder.parent / "run" / "log.jsonl").read_text().splitlines()[-1])
    with_map = {split: any(each.has_map for each in samples(maps, split).values()) for split in ("train", "val")}
    assert sum(with_map.values()) == 1  # one image was painted
    assert (epoch["map_loss"] if with_map["train"] else epoch["map_similarity"]) is not None


def test_people_and_images_that_the_admin_excludes_are_left_out(study, capsys):
    folder, store, codes = study
    store.exclude_person(codes[0], "paints the middle")
    assert run(folder) == 0
    out = capsys.readouterr().out
    assert "rounds: 1 of 3 count, of 1 people\n  left out 2: its person is excluded\n" in out
    assert "ceiling: none, for no image was painted by two people" in out
    store.exclude_person(codes[0], None)
    store.exclude(next(each.id for each in store.images() if each.path == "cat/0.png"), "blurred")
    new = [str(folder), str(folder.parent / "new")]
    assert main(["clickme", "collect", *new, "--database", store.where]) == 1
    said = "none of 3 finished rounds counts: its image is excluded (2); its outcome is skip (1)"
    assert said in capsys.readouterr().err


def test_flags_decide_which_rounds_count(study, capsys):
    folder, _, codes = study
    assert run(folder, "--outcomes", "skip", "--exclude", codes[1], "--only-mapped", "--val-share", "0") == 0
    out = capsys.readouterr().out
    assert "rounds: 1 of 3 count, of 1 people" in out
    assert "images: train 1; 1 with a map" in out


@pytest.mark.parametrize(
    ("flags", "message", "code"),
    [
        (["--exclude", "nobody"], r"argument --exclude: nobody: no participant of sqlite:\S+; expected their codes", 2),
        (["--to", "csv"], "argument --to: invalid choice: 'csv'", 2),
        (["--val-share", "1"], "argument --val-share: '1' was given; expected a number from 0 to below 1", 2),
        (["--blur", "-1"], "argument --blur: '-1' was given; expected a number of at least 0", 2),
        (["--outcomes", "won"], "argument --outcomes: invalid choice: 'won'", 2),
        (["--min-bubbles", "500"], "none of 3 finished rounds counts", 1),
        (["--database", "sqlite:///nowhere.sqlite"], "there is no database nowhere.sqlite; expected one that", 1),
        (["--database", "game.sqlite"], "no database's address; expected sqlite:///FILE", 1),
    ],
)
def test_bad_input_is_refused_before_anything_is_written(study, capsys, flags, message, code):
    folder, _, _ = study
    if code == 2:
        with pytest.raises(SystemExit, match="2"):
            run(folder, *flags)
    else:
        assert run(folder, *flags) == code
    assert re.search(message, capsys.readouterr().err)
    assert [path.name for path in folder.parent.iterdir()] == ["study"]


def test_a_database_of_another_version_and_a_folder_that_is_there_are_refused(study, capsys):
    folder, store, _ = study
    (folder.parent / "maps").mkdir()
    (folder.parent / "maps" / "file").touch()
    with pytest.raises(SystemExit, match="2"):
        run(folder)
    assert "maps is there already; expected a new folder, or an empty one" in capsys.readouterr().err
    with store.writing() as connection:
        connection.exec_driver_sql("UPDATE study SET schema = 7")
    assert run(folder) == 1
    assert "is a database of version 7; expected version 1" in capsys.readouterr().err
    assert main(["clickme", "collect", str(folder.parent / "nowhere"), str(folder.parent / "new")]) == 1
    assert "nowhere/game.sqlite; expected one that `gala-cuda clickme serve` has made" in capsys.readouterr().err
    assert sorted(path.name for path in folder.parent.iterdir()) == ["maps", "study"]
