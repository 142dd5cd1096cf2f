"""A study's folder: what it may hold, what is refused or left out, and the check at import."""

import json
from dataclasses import replace

import numpy as np
import pytest
from game_play import HEIGHT, WIDTH, FakeView, LocalWorker, write_study
from PIL import Image

from gala_cuda.game.check import UNCHECKED, check_images, check_labels
from gala_cuda.game.demo import write_demo
from gala_cuda.game.partner import Knows
from gala_cuda.game.store import Store
from gala_cuda.game.study import Settings, StudyError, load_study

KNOWS = Knows(FakeView.classes, "fake")


@pytest.fixture
def folder(tmp_path):
    return write_study(tmp_path / "study")


@pytest.fixture
def store(tmp_path):
    made = Store(f"sqlite:///{tmp_path / 'game.sqlite'}")
    yield made
    made.close()


def check(folder, store, worker=None, knows=KNOWS):
    """The steps of a check; the images by path."""
    worker = worker or LocalWorker(FakeView())
    study = load_study(folder, store.images())
    steps = list(check_images(study, store, worker.ask, knows, 1))
    return steps, {each.path: each for each in store.images()}


def add_mask(folder, name="red", size=(WIDTH, HEIGHT)):
    place = folder / "catch" / name
    place.mkdir(parents=True)
    (folder / "images" / name / "0.png").rename(place / "0.png")
    mask = np.zeros((size[1], size[0]), np.uint8)
    mask[12:52, 28:68] = 255
    Image.fromarray(mask).save(place / "0.mask.png")
    return place


def test_study_with_all_that_it_may_have(folder):
    add_mask(folder)
    (folder / "practice" / "blue").mkdir(parents=True)
    (folder / "images" / "blue" / "0.png").rename(folder / "practice" / "blue" / "0.png")
    (folder / "study.yaml").write_text("title: Colours\npeople: 3\nceiling_share: 0\nlabels: {green: verdant}\n")
    study = load_study(folder)
    assert (study.title, study.consent) == ("Colours", "You paint; we keep where.")
    assert {(each.kind, each.label) for each in study.pictures} == {
        ("play", "red"), ("play", "verdant"), ("play", "blue"), ("play", "yellow"), ("practice", "blue"),
        ("catch", "red"),
    }  # fmt: skip
    assert all(study.file(each).is_file() for each in study.pictures)
    assert {(each.width, each.height, each.people) for each in study.pictures} == {(WIDTH, HEIGHT, 3)}
    (mask,) = study.masks().values()
    assert mask.shape == (HEIGHT, WIDTH)
    assert mask[12:52, 28:68].all()
    assert mask.sum() == 1600


def test_images_in_splits(folder):
    for split in ("train", "val"):
        for path in sorted((folder / "images").glob("*/0.png" if split == "val" else "*/[12].png")):
            target = folder / "moved" / split / path.parent.name
            target.mkdir(parents=True, exist_ok=True)
            path.rename(target / path.name)
    for path in (folder / "images").iterdir():
        path.rmdir()
    (folder / "images").rmdir()
    (folder / "moved").rename(folder / "images")
    paths = {each.path: each.label for each in load_study(folder).pictures}
    assert paths["val/red/0.png"] == "red"
    assert len(paths) == 12


def test_a_share_of_the_images_is_for_many_people(tmp_path):
    folder = write_study(tmp_path / "study", per_class=50, ceiling_share=0.2)
    many = {each.path for each in load_study(folder).pictures if each.people == 10}
    assert 20 < len(many) < 60
    assert many == {each.path for each in load_study(folder).pictures if each.people == 10}


def no_folder(folder):
    folder.rename(folder.parent / "elsewhere")
    return "there is no folder"


def no_images(folder):
    (folder / "images").rename(folder / "pictures")
    return "there is no folder .*images"


def no_classes(folder):
    no_images(folder)
    (folder / "images").mkdir()
    return "there are no folders of classes in"


def empty_class(folder):
    for path in (folder / "images" / "red").iterdir():
        path.unlink()
    return "classes without pictures: red"


def single_image(folder):
    for number in (1, 2):
        (folder / "images" / "red" / f"{number}.png").unlink()
    return "a single image of red; expected at least 2 of each class"


def none_readable(folder):
    for path in (folder / "images").rglob("*.png"):
        path.write_bytes(b"no picture")
    return "none of the images in .* can be read; .* cannot be read: no image of a known format"


def no_consent(folder):
    (folder / "consent.txt").unlink()
    return "consent.txt cannot be read: No such file"


def empty_consent(folder):
    (folder / "consent.txt").write_text(" \n")
    return "consent.txt is empty; expected what players agree to"


def binary_consent(folder):
    (folder / "consent.txt").write_bytes(b"\xff\xfe\xff")
    return "not written in UTF-8"


def unknown_setting(folder):
    (folder / "study.yaml").write_text("peple: 3\n")
    return "study.yaml holds peple; expected title, people"


def wrong_setting(folder):
    (folder / "study.yaml").write_text("people: many\n")
    return "people is 'many'; expected a whole number of at least 1"


def broken_settings(folder):
    (folder / "study.yaml").write_text("people: [\n")
    return "study.yaml cannot be read"


def list_for_settings(folder):
    (folder / "study.yaml").write_text("- people\n")
    return "holds list; expected"


def no_mask(folder):
    (add_mask(folder) / "0.mask.png").unlink()
    return "0.mask.png cannot be read: .* expected a mask"


def small_mask(folder):
    add_mask(folder, size=(80, 60))
    return "has 80 x 60 pixels; expected 96 x 64"


def odd_name(folder):
    (folder / "images" / "red" / "0.png").rename(folder / "images" / "red" / "a\nb.png")
    return "no plain name"


SPOILED = [
    no_folder, no_images, no_classes, empty_class, single_image, none_readable, no_consent, empty_consent,
    binary_consent, unknown_setting, wrong_setting, broken_settings, list_for_settings, no_mask, small_mask, odd_name,
]  # fmt: skip


@pytest.mark.parametrize("change", SPOILED, ids=lambda change: change.__name__)
def test_refused(folder, change):
    said = change(folder)
    with pytest.raises(StudyError, match=said):
        load_study(folder)


@pytest.mark.parametrize(
    ("name", "value"),
    [("title", 3), ("people", 0), ("people", True), ("ceiling_share", 1.5), ("ceiling_people", 0), ("catch_every", 1),
     ("repeats", "yes"), ("labels", {"red": 3})],
)  # fmt: skip
def test_settings_out_of_range(folder, name, value):
    (folder / "study.yaml").write_text(json.dumps({name: value}))
    with pytest.raises(StudyError, match=f"{name} is .*; expected"):
        load_study(folder)


def test_settings_are_optional(folder):
    (folder / "study.yaml").write_text("")
    assert load_study(folder).settings == Settings()
    assert load_study(folder).title == "study"


def test_unreadable_and_tiny_images_are_left_out(folder, store):
    (folder / "images" / "red" / "0.png").write_bytes(b"no picture")
    Image.new("RGB", (20, 300)).save(folder / "images" / "blue" / "0.png")
    _, images = check(folder, store)
    assert images["red/0.png"].excluded == "cannot be read: no image of a known format"
    assert images["blue/0.png"].excluded == "has 20 x 300 pixels; expected at least 21 a side"
    assert sum(each.excluded is None for each in images.values()) == 10


def test_large_images_are_told(folder):
    Image.new("RGB", (800, 600)).save(folder / "images" / "red" / "0.png")
    told = []
    load_study(folder, (), told.append)
    assert "red/0.png of 800 x 600 pixels, are large" in told[0]


def test_check_excludes_what_is_won_hidden_or_lost_shown(folder, store):
    """An image whose hidden pixels already are of the class, and one of no class at all."""
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(90, 110, (HEIGHT, WIDTH, 3), np.uint8)).save(folder / "images" / "red" / "0.png")

    class Clairvoyant(FakeView):
        def guess(self, batch):
            for request, (names, error) in zip(batch, super().guess(batch), strict=True):
                yield (("blue", *names[1:]) if request.path.endswith("blue/1.png") else names), error

    steps, images = check(folder, store, LocalWorker(Clairvoyant()))
    assert images["red/0.png"].excluded.startswith("the partner does not recognise it, but nothing")
    assert images["blue/1.png"].excluded == "the partner recognises it while all of it is hidden"
    assert sum(each.excluded is None for each in images.values()) == 10
    assert steps[0] == 12


def test_check_is_not_done_twice(folder, store):
    check(folder, store)
    store.exclude(1, "a watermark")
    worker = LocalWorker(FakeView())
    steps, images = check(folder, store, worker)
    assert (steps, worker.batches) == ([], [])
    assert images[store.images()[0].path].excluded == "a watermark"
    Image.new("RGB", (WIDTH, HEIGHT), (200, 30, 40)).save(folder / "images" / "red" / "2.png")
    steps, images = check(folder, store, worker)
    assert steps == [1]
    steps, images = check(folder, store, worker, replace(KNOWS, fingerprint="another network"))
    assert steps[0] == 11
    assert images[store.images()[0].path].excluded == "a watermark"


def test_interrupted_check_goes_on(folder, store, monkeypatch):
    monkeypatch.setattr("gala_cuda.game.check.SAVED_EVERY", 4)
    study, worker = load_study(folder), LocalWorker(FakeView())
    steps = check_images(study, store, worker.ask, KNOWS, 1)
    next(steps)
    next(steps)
    assert sum(each.excluded == UNCHECKED for each in store.images()) == 8
    steps, images = check(folder, store)
    assert steps[0] == 8
    assert not any(each.excluded for each in images.values())


def test_partner_of_other_classes_is_refused(folder):
    study = load_study(folder)
    check_labels(study, FakeView.classes, "weights")
    with pytest.raises(StudyError, match=r"does not know, red.*; it knows .*That is weights|blue"):
        check_labels(study, ("blue", "green", "yellow", "cat"), "weights")
    (folder / "study.yaml").write_text("labels: {red: scarlet}\n")
    check_labels(load_study(folder), ("scarlet", "blue", "green", "yellow"), "weights")


def test_demo_is_a_study(tmp_path):
    write_demo(tmp_path / "demo")
    study = load_study(tmp_path / "demo")
    assert len({each.label for each in study.pictures}) == 5
    assert {(each.width, each.height) for each in study.pictures} == {(160, 160)}
    (tmp_path / "demo" / "consent.txt").write_text("another")
    write_demo(tmp_path / "demo")
    assert load_study(tmp_path / "demo").consent == "another"
