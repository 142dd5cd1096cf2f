"""What a recipe says about pictures: channels, mean and std, interpolation, erasing, repeats, the size to test at."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from imagesets import BATCH, SIZE, read
from PIL import Image
from torchvision.transforms import v2

from gala_cuda.cli.main import main
from gala_cuda.data.augmentation import augmentation, centre_crop, several_views
from gala_cuda.data.choices import AUGMENTS, INTERPOLATIONS, VIEWS
from gala_cuda.data.picture_decoding import decode_picture
from gala_cuda.data.preprocessing import IMAGENET, IMAGENET_MEAN, Preprocessing
from gala_cuda.networks import read_weights
from gala_cuda.networks.loading import initial_model
from gala_cuda.networks.network import Network
from gala_cuda.training.checkpoint import as_bytes
from gala_cuda.training.evaluate import evaluate
from gala_cuda.training.preparation import size_and_preprocessing
from gala_cuda.training.recipe import Recipe

pytestmark = pytest.mark.usefixtures("one_thread")
CPU = torch.device("cpu")
TINY = ["--model", "gala_resnet18", "--width", "4", "--image-size", str(SIZE), "--epochs", "1", "--workers", "0"]
PLAIN = Preprocessing((0.0,) * 3, (1.0,) * 3)


def saved(picture, path):
    picture.save(path)
    return path.read_bytes()


@pytest.fixture
def see_through(tmp_path):
    """A PNG whose colours and alpha channel are four ramps that have nothing to do with one another."""
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (24, 24, 4), dtype=np.uint8), tmp_path / "picture.png"


def test_four_channels_are_those_of_the_file(see_through):
    pixels, path = see_through
    picture = decode_picture(saved(Image.fromarray(pixels, "RGBA"), path), 4)
    np.testing.assert_array_equal(np.asarray(picture), pixels)
    found = centre_crop(21, PLAIN.of_channels(4))(picture)
    alone = [centre_crop(21, PLAIN.of_channels(1))(Image.fromarray(pixels[..., i])) for i in range(4)]
    torch.testing.assert_close(found, torch.cat(alone), atol=0.01, rtol=0)  # none is weighed by another
    opaque = decode_picture(saved(Image.fromarray(pixels[..., :3]), path), 4)
    np.testing.assert_array_equal(np.asarray(opaque)[..., 3], 255)
    np.testing.assert_array_equal(np.asarray(opaque)[..., :3], pixels[..., :3])


def test_grey_is_the_luma_and_grey_pictures_stay_as_they_are(see_through):
    pixels, path = see_through
    red = decode_picture(saved(Image.new("RGB", (4, 4), (200, 0, 0)), path), 1)
    assert (red.mode, red.getpixel((0, 0))) == ("L", round(0.299 * 200))
    grey = decode_picture(saved(Image.fromarray(pixels[..., 0]), path), 1)
    np.testing.assert_array_equal(np.asarray(grey), pixels[..., 0])


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_every_augmentation_takes_every_number_of_channels_or_says_no(channels, see_through):
    preprocessing = IMAGENET.of_channels(channels)
    pixels, path = see_through
    picture = decode_picture(saved(Image.fromarray(pixels, "RGBA"), path), channels)
    for augment in AUGMENTS:
        if channels == 4 and augment in ("modern", "randaugment"):
            with pytest.raises(ValueError, match=f"augment is '{augment}'; expected paper or none"):
                augmentation(augment, SIZE, preprocessing)
        else:
            for _ in range(20):
                assert augmentation(augment, SIZE, preprocessing)(picture).shape == (channels, SIZE, SIZE)
    for views, count in zip(VIEWS, (2, 5, 10), strict=True):
        assert several_views(views, SIZE, preprocessing)(picture).shape == (count, channels, SIZE, SIZE)


def test_mean_and_std_of_other_channels_are_the_average():
    grey = IMAGENET.of_channels(1)
    assert grey.mean == (pytest.approx(sum(IMAGENET_MEAN) / 3),)
    assert IMAGENET.of_channels(4).mean == (*IMAGENET_MEAN, *grey.mean)
    assert IMAGENET.of_channels(4).of_channels(3) == IMAGENET
    assert grey.of_channels(3).mean == grey.mean * 3
    with pytest.raises(ValueError, match="interpolation is 'box'; expected one of nearest, nearest-exact, bilinear"):
        replace(IMAGENET, interpolation="box").of_channels(4)


def test_interpolations_are_those_of_torchvision():
    assert set(INTERPOLATIONS) == {mode.value for mode in v2.InterpolationMode}


@pytest.mark.parametrize(("augment", "erasing", "erased"), [
    ("paper", None, 0), ("paper", 1.0, 1), ("none", 1.0, 1), ("modern", 0.0, 0), ("modern", None, 0.1),
])  # fmt: skip
def test_erasing_is_as_likely_as_it_is_said_to_be(augment, erasing, erased):
    picture, transform = Image.new("RGB", (20, 20), "white"), augmentation(augment, 16, PLAIN, erasing)
    steps = [step for step in transform.transforms if isinstance(step, v2.RandomErasing)]
    assert [step.p for step in steps] == ([erased] if erased else [])
    if augment != "modern":
        torch.manual_seed(0)
        assert ((transform(picture) == 0).any(), (transform(picture) == 1).any()) == (erased == 1, True)


def test_copies_of_an_image_follow_one_another_and_differ(picture_folder):
    def one_epoch(**options):
        return [torch.cat(parts) for parts in zip(*read(picture_folder, **options).train.epoch(3), strict=True)]

    images, labels = one_epoch(repeats=2)
    assert len(images) == len(one_epoch()[0])
    assert torch.equal(labels[::2], labels[1::2])
    assert all(not torch.equal(one, other) for one, other in zip(images[::2], images[1::2], strict=True))
    first = one_epoch()[0]  # the first copies are augmented as without repeats
    assert torch.equal(images[::2], first[: len(images) // 2])
    ranks = [one_epoch(repeats=2, rank=rank, world=2, batch_size=BATCH // 2)[0] for rank in (0, 1)]
    assert torch.equal(torch.stack(ranks, 1).flatten(0, 1), images)
    assert torch.equal(one_epoch(repeats=2, workers=2)[0], images)


@torch.no_grad()
@pytest.mark.parametrize("views", VIEWS)
def test_logits_are_averaged_over_views(picture_folder, views):
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * SIZE * SIZE, 2))
    several, plain = read(picture_folder, tta=views).test, read(picture_folder).test
    images, labels = (torch.cat(parts) for parts in zip(*several.epoch(), strict=True))
    centre = torch.cat([images for images, _ in plain.epoch()])
    assert torch.equal(images[:, 0 if views == "flip" else 4], centre)
    if views != "five-crops":
        mirrored, mirror = (
            (1, 0) if views == "flip" else (5, 1)
        )  # the upper left of the mirror image is the upper right
        assert torch.equal(images[:, mirrored].flip(-1), images[:, mirror])
    logits = torch.stack([model(view) for view in images.unbind(1)]).mean(0)
    found = evaluate(model, several, CPU)
    assert found.images == len(labels) == plain.total
    assert found.loss == pytest.approx(torch.nn.functional.cross_entropy(logits, labels).item(), rel=1e-5)
    assert found.top1 == (logits.argmax(1) == labels).double().mean()


@pytest.mark.slow
def test_another_size_to_test_at_is_the_weights_own(picture_folder, tmp_path, capsys):
    run = ["train", "--data", str(picture_folder), *TINY, "--batch-size", "32", "--test-size", "24", "--output"]
    assert main([*run, str(tmp_path), "--quiet"]) == 0
    log = json.loads((tmp_path / "log.jsonl").read_text())
    assert read_weights(tmp_path / "last.safetensors")[1].size == 24
    for size, same in (("24", True), ("16", False)):
        assert main(["eval", str(tmp_path / "last.safetensors"), "--json", "--image-size", size]) == 0
        assert (json.loads(capsys.readouterr().out)["loss"] == log["test_loss"]) == same
    assert main(["eval", str(tmp_path), "--tta", "ten-crops", "--mean", "0.4", "0.4", "0.4"]) == 0


@pytest.mark.slow
@pytest.mark.parametrize("channels", [1, 4])
def test_grey_and_four_channels_from_training_to_prediction(picture_folder, tmp_path, capsys, channels):
    options = ["--data", str(picture_folder), *TINY, "--channels", str(channels), "--interpolation", "bicubic"]
    run = tmp_path / "run"
    assert main(["train", *options, "--batch-size", "64", "--output", str(run), "--quiet"]) == 0
    weights, network = read_weights(run / "last.safetensors")
    assert weights["conv1.weight"].shape[1] == network.channels == network.preprocessing.channels == channels
    assert network.preprocessing.interpolation == "bicubic"
    log = json.loads((run / "log.jsonl").read_text())
    assert main(["eval", str(run), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["top1"] == log["test_accuracy"]
    table = tmp_path / "p.jsonl"
    assert main(["predict", str(run), str(picture_folder / "val"), "--workers", "0", "--output", str(table)]) == 0
    rows = [json.loads(line) for line in table.read_text().splitlines()]
    assert sum(row["labels"][0] in row["image"] for row in rows) == round(log["test_accuracy"] * len(rows))


def test_the_weights_own_preparation_is_the_default(tmp_path):
    own = Preprocessing((0.5,) * 3, (0.25,) * 3, "bicubic", (9, 10))
    network = Network("gala_resnet18", (), 4, False, "small", ("a", "b"), 3, 40, own, init="half")
    path = tmp_path / "w.safetensors"
    path.write_bytes(as_bytes(network.build().state_dict(), network.metadata()))
    recipe = Recipe(data="pictures", weights=str(path), width=4)
    assert size_and_preprocessing(recipe) == (40, own)
    changed = replace(recipe, image_size=32, mean=(0.1, 0.2, 0.3), interpolation="bilinear")
    assert size_and_preprocessing(changed) == (32, replace(own, mean=(0.1, 0.2, 0.3), interpolation="bilinear"))
    assert size_and_preprocessing(Recipe(data="pictures")) == (None, IMAGENET)


@torch.no_grad()
@pytest.mark.parametrize("model", ["gala_resnet18", "timm/resnet18"])
def test_weights_of_rgb_start_networks_of_other_channels(tmp_path, model):
    """They make of grey what they made of it in RGB, and of four channels what they made of the first three."""
    rgb = Network(model, (), 64, False, "imagenet", ("a", "b"), 3, 64)
    path, said = tmp_path / "w.safetensors", []
    path.write_bytes(as_bytes(rgb.build().state_dict(), rgb.metadata()))
    original = initial_model(rgb, str(path), said.append).eval()
    assert said == []
    grey, fourth = torch.rand(2, 1, 64, 64), torch.rand(2, 1, 64, 64)
    made = initial_model(replace(rgb, channels=1), str(path), said.append).eval()
    torch.testing.assert_close(made(grey), original(grey.expand(-1, 3, -1, -1)), rtol=1e-4, atol=1e-4)
    made = initial_model(replace(rgb, channels=4), str(path), said.append).eval()
    colours = torch.rand(2, 3, 64, 64)
    torch.testing.assert_close(made(torch.cat([colours, fourth], 1)), original(colours), rtol=1e-4, atol=1e-4)
    assert said == [f"weights of RGB: conv1.weight {how}" for how in ("summed for grey", "0 for the fourth channel")]


@pytest.mark.parametrize(("arguments", "message"), [
    ("train --data {data} --channels 2", "argument --channels: channels is 2; expected 1, 3 or 4"),
    ("train --data {data} --channels 4 --augment modern", "argument --augment: augment is 'modern'; expected paper"),
    ("train --data {data} --channels 4 --interpolation box", "argument --interpolation: interpolation is 'box'"),
    ("train --data {data} --channels 1 --mean 0 0 0", "argument --mean: mean is 0.0 0.0 0.0; expected one number"),
    ("train --data {data} --std 1 0 1", "argument --std: std is (1.0, 0.0, 1.0); expected numbers above 0"),
    ("train --data {data} --std 1", "argument --std: std is 1.0; expected 3 numbers, one for each channel"),
    ("train --mean 0.5", "argument --mean: mean is (0.5,), and builtin:digits is taken as it is; expected none"),
    ("train --repeats 3", "argument --repeats: repeats is 3, and builtin:digits is no folder of pictures"),
    ("train --erasing 0.1", "argument --erasing: erasing is 0.1, and builtin:digits is no folder"),
    ("train --erasing 1.5", "argument --erasing: erasing is 1.5; expected 0 <= erasing <= 1"),
    ("train --repeats 0", "argument --repeats: repeats is 0; expected a whole number of at least 1"),
    ("train --data {data} --test-size 0", "argument --test-size: test_size is 0; expected a whole number"),
    ("train --data {data} --model torchvision/resnet18 --channels 1", "argument --model: torchvision/resnet18 takes 3"),
    ("train --data {data} --model torchvision/vit_b_32 --image-size 32 --test-size 64",
     "argument --test-size: torchvision/vit_b_32 takes no images of 64 x 64 pixels"),
    ("train --data {data} --model torchvision/resnet18 --weights {data}", "argument --weights: {data} "),
])  # fmt: skip
def test_what_does_not_go_is_refused_by_its_flag(picture_folder, tmp_path, capsys, arguments, message):
    given = arguments.format(data=picture_folder).split()
    with pytest.raises(SystemExit):
        main([*given, "--workers", "0", "--output", str(tmp_path / "run")])
    assert message.format(data=picture_folder) in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_views_are_of_pictures(tmp_path, capsys):
    network = Network("resnet18", (), 4, False, "small", tuple("0123456789"), 1, 8)
    (tmp_path / "w.safetensors").write_bytes(as_bytes(network.build().state_dict(), network.metadata()))
    with pytest.raises(SystemExit):
        main(["eval", str(tmp_path / "w.safetensors"), "--data", "digits", "--tta", "flip"])
    assert "argument --tta: tta is flip, and builtin:digits is no folder of pictures" in capsys.readouterr().err
