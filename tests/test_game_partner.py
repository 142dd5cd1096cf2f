"""The partner: the network in its process, and that what it saw can be made again by the rules."""

import os
import signal
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from game_play import (
    HEIGHT,
    WIDTH,
    LocalWorker,
    OpenFake,
    Player,
    make_game,
    running,
    stroke,
    wait_for,
    write_study,
)
from PIL import Image
from torch import nn

from gala_cuda.data.preprocessing import Preprocessing
from gala_cuda.errors import GalaError
from gala_cuda.game.partner import PartnerDown, Worker
from gala_cuda.game.rules import noise_seed, reveal
from gala_cuda.game.view import Request, View, ViewOptions, top_of
from gala_cuda.networks.network import Network

CLASSES = ("red", "green", "blue", "yellow")


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return write_study(tmp_path_factory.mktemp("partner") / "study", repeats=True)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A tiny network's file."""
    from safetensors.torch import save_file

    network = Network("resnet18", (), 4, False, "small", CLASSES, 3, 32)
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    save_file(network.build().state_dict(), path, network.metadata())
    return path


@dataclass(frozen=True)
class Refuses:
    """Opens nothing."""

    def __call__(self):
        raise GalaError("there are no weights")


class Colours(nn.Module):
    """The mean of each channel of what it is shown."""

    def forward(self, images):
        return images.mean((2, 3))


@pytest.mark.slow
def test_process_answers_crashes_and_starts_again(study):
    worker = Worker(OpenFake(), threads=1)
    path = str(study / "images" / "red" / "0.png")
    try:
        assert worker.start().classes[:4] == CLASSES
        (shown,) = worker.ask([Request(path, None, 0)])
        assert shown.names[0] == "red"
        (gone,) = worker.ask([Request(path + "x", None, 0)])
        assert gone.error
        first = worker.pid
        os.kill(first, signal.SIGKILL)
        with pytest.raises(PartnerDown, match="ended unexpectedly"):
            worker.ask([Request(path, None, 0)])
        with running(make_game(study, f"sqlite:///{study.parent / 'crash.sqlite'}", worker)) as port:
            player = Player(port).join()
            played = player.start()
            status, answer = player.guess(played["round"], stroke())  # the process is not there
            assert status == 503
            assert "the partner has ended unexpectedly" in answer["error"]
            wait_for(lambda: player.ask("GET", "/healthz")[0] == 200)
            assert player.guess(played["round"], stroke())[1]["recognised"]
            assert worker.pid != first
    finally:
        worker.stop()


@pytest.mark.slow
def test_network_that_does_not_open(study):
    worker = Worker(Refuses(), threads=1)
    with pytest.raises(GalaError, match="there are no weights"):
        worker.start()
    worker.stop()


class Remembering(View):
    """Keeps what the network is shown."""

    def names(self, views):
        self.shown = [*getattr(self, "shown", []), *views]
        return super().names(views)


def test_what_the_partner_saw_is_what_the_rules_make(study, tmp_path):
    """Bit for bit, of every guess in a server, from the stored round's id and bubbles alone."""
    plain = Preprocessing((0, 0, 0), (1, 1, 1), crop=(1, 1))
    worker = LocalWorker(Remembering(Colours(), ("red", "green", "blue", "yellow")[:3], 32, plain))
    game = make_game(study, f"sqlite:///{tmp_path / 'game.sqlite'}", worker)
    with running(game) as port:
        player = Player(port).join()
        for _ in range(5):
            played = player.start()
            for n in (1, 5, 10):
                assert player.guess(played["round"], stroke()[:n])[0] == 200
            assert player.finish(played["round"], stroke())[0] == 200
        rounds = sorted(game.store.rounds(), key=lambda each: each.started)
    made = [
        reveal(np.array(Image.open(study / "images" / each.image)), each.points[:n], noise_seed(each.id, n))
        for each in rounds for n in (1, 5, 10)
    ]  # fmt: skip
    assert len(made) == len(worker.view.shown) == 15
    for seen, offline in zip(worker.view.shown, made, strict=True):
        np.testing.assert_array_equal(seen, offline)


def test_view_prepares_as_the_network_was_trained(weights, study):
    """What the rules reveal, scaled, cropped and normalised: the network's own answer to it, made by hand."""
    view = ViewOptions(str(weights))()
    path = study / "images" / "blue" / "1.png"
    points = tuple(map(tuple, stroke(7)))
    seed = noise_seed("round", 7)
    ((names, error),) = view.guess([Request(str(path), points, seed)])
    assert error is None
    shown = torch.from_numpy(reveal(np.array(Image.open(path).convert("RGB")), points, seed)).permute(2, 0, 1)
    side = 32 * 8 // 7
    scaled = torch.nn.functional.interpolate(
        shown[None], (side, int(side * WIDTH / HEIGHT)), mode="bilinear", antialias=True
    )[0]
    top, left = (scaled.shape[1] - 32) // 2, round((scaled.shape[2] - 32) / 2)
    mean, std = (torch.tensor(each)[:, None, None] for each in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    image = (scaled[:, top : top + 32, left : left + 32] - mean) / std
    with torch.no_grad():
        order = view.model(image[None]).argsort(descending=True)[0].tolist()
    assert list(names) == [CLASSES[number] for number in order]


def test_crop_and_whole(tmp_path):
    """A wide picture whose sides are red and whose middle is blue."""
    pixels = np.zeros((64, 192, 3), np.uint8)
    pixels[:, :64, 0] = pixels[:, 128:, 0] = 255
    pixels[:, 64:128, 2] = 255
    Image.fromarray(pixels).save(tmp_path / "wide.png")
    request = Request(str(tmp_path / "wide.png"), None, 0)
    plain = Preprocessing((0, 0, 0), (1, 1, 1), crop=(1, 1))
    crop, whole = (View(Colours(), ("red", "green", "blue"), 32, plain, how) for how in ("crop", "whole"))
    assert next(crop.guess([request]))[0][0] == "blue"
    assert next(whole.guess([request]))[0][0] == "red"
    assert crop.fingerprint() != whole.fingerprint()


def test_unreadable_pictures_leave_the_others_of_a_batch(weights, study):
    view = ViewOptions(str(weights))()
    path = str(study / "images" / "blue" / "1.png")
    answers = list(view.guess([Request(path, None, 0), Request("/nowhere.png", None, 0), Request(path, (), 1)]))
    assert [error is None for _, error in answers] == [True, False, True]
    assert "No such file" in answers[1][1]


def test_answers_do_not_depend_on_the_batch(weights, study):
    view = ViewOptions(str(weights))()
    requests = [Request(str(path), (), number) for number, path in enumerate(sorted(study.rglob("*.png"))[:8])]
    assert list(view.guess(requests)) == [next(view.guess([request])) for request in requests]


def test_fingerprint_tells_weights_apart(weights, tmp_path):
    from safetensors.torch import load_file, save_file

    same, other = ViewOptions(str(weights))(), load_file(weights)
    assert same.fingerprint() == ViewOptions(str(weights))().fingerprint()
    other["conv1.weight"] += 1
    network = Network("resnet18", (), 4, False, "small", CLASSES, 3, 32)
    save_file(other, tmp_path / "other.safetensors", network.metadata())
    assert ViewOptions(str(tmp_path / "other.safetensors"))().fingerprint() != same.fingerprint()
    assert replace(ViewOptions(str(weights)), how="whole")().fingerprint() != same.fingerprint()


def test_grey_network_is_refused(tmp_path):
    from safetensors.torch import save_file

    network = Network("resnet18", (), 4, False, "small", CLASSES, 1, 32)
    save_file(network.build().state_dict(), tmp_path / "grey.safetensors", network.metadata())
    with pytest.raises(GalaError, match="takes images of 1 channels; expected 3"):
        ViewOptions(str(tmp_path / "grey.safetensors"))()


def test_how_many_names_count():
    assert [top_of(classes, None) for classes in (2, 49, 50, 1000)] == [1, 1, 5, 5]
    assert top_of(1000, 1) == 1
    assert top_of(3, 9) == 3


@pytest.mark.slow
def test_network_of_the_demo_knows_photographs():
    from importlib.util import find_spec
    from pathlib import Path

    view = ViewOptions(None)()
    folder = Path(find_spec("skimage").origin).parent / "data"
    found = view.guess([Request(str(folder / name), None, 0) for name in ("coffee.png", "chelsea.png")])
    (coffee, _), (cat, _) = found
    assert coffee[0] == "espresso"
    assert {"Egyptian cat", "tiger cat"} <= set(cat)
