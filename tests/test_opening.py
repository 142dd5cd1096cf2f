"""What weights know of their network and data, against flags and data that say otherwise."""

import json
from dataclasses import replace

import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file
from sklearn.datasets import load_sample_images
from test_libraries import of_timm

import gala_cuda
from gala_cuda import convert
from gala_cuda.cli.main import main
from gala_cuda.networks.classes import match_classes, placeholder_names
from gala_cuda.networks.errors import NetworkError, WeightsError
from gala_cuda.networks.loading import initial_model
from gala_cuda.networks.network import Network
from gala_cuda.training.checkpoint import as_bytes
from gala_cuda.training.recipe import Recipe
from gala_cuda.training.trained_network import open_network

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize(
    ("classes", "known", "expected", "said"),
    [
        (("cat", "dog"), ("cat", "dog"), [0, 1], None),
        (("dog", "cat"), ("cat", "dog"), [1, 0], "matched by name: they are in another order"),
        (("dog",), ("cat", "dog"), [1], "matched by name: 1 of 2 are there"),
        (("0", "1"), ("0", "1", "2"), [0, 1], "2 of 3 are there"),
        (("cat", "dog"), placeholder_names(2), [0, 1], "names are known on one side only"),
        (("1", "2"), placeholder_names(2), [0, 1], "names are known on one side only"),
        (("cat", "dog"), ("0", "1"), [0, 1], "names are known on one side only"),
        (("0", "1"), ("cat", "dog"), [0, 1], "names are known on one side only"),
        (("crane", "crane"), ("crane", "crane"), [0, 1], None),
    ],
)
def test_classes_are_matched_by_name(classes, known, expected, said):
    numbers, note = match_classes(classes, known)
    assert numbers == expected
    assert note is said is None or said in note


@pytest.mark.parametrize(
    ("classes", "known", "message"),
    [
        (("cat", "wolf"), ("cat", "dog"), "does not know, wolf; it knows cat, dog"),
        (("cat", "dog", "wolf"), placeholder_names(2), "has 3 classes; expected 2"),
        (("1", "2"), ("0", "1"), "does not know, 2; it knows 0, 1"),
        (("crane",), ("crane", "crane"), "has crane twice"),
        (tuple("abcdefgh"), ("z",), "a, b, c, d, e and 3 more; it knows z"),
    ],
)
def test_other_classes_are_refused(classes, known, message):
    with pytest.raises(ValueError, match=message):
        match_classes(classes, known)


@pytest.fixture(scope="module")
def trained(tmp_path_factory, picture_folder):
    """The folder of a training on china and flower."""
    output = tmp_path_factory.mktemp("runs") / "pictures"
    command = [
        "train",
        "--data",
        str(picture_folder),
        "--image-size",
        "16",
        "--width",
        "8",
        "--epochs",
        "1",
        "--workers",
        "0",
    ]
    assert main([*command, "--layers", "layer2", "layer3.0", "--output", str(output), "--quiet"]) == 0
    return output


def evaluated(capsys, *arguments):
    assert main(["eval", *map(str, arguments), "--workers", "0", "--json"]) == 0
    out, err = capsys.readouterr()
    return json.loads(out), err


@pytest.mark.slow
def test_a_training_is_tested_on_its_own_data(trained, picture_folder, capsys):
    found, said = evaluated(capsys, trained)
    assert said == f"tested on {picture_folder}, as {trained}/recipe.yaml says\n"
    logged = json.loads((trained / "log.jsonl").read_text().splitlines()[-1])
    assert found["top1"] == logged["test_accuracy"]
    for place in (trained / "last.safetensors", trained / "checkpoints" / "step-00000003"):
        assert evaluated(capsys, place)[0]["confusion"] == found["confusion"]


@pytest.mark.slow
def test_folders_in_another_order_are_matched_by_name(trained, picture_folder, tmp_path, capsys):
    """The file's classes are flower and china: the last layer's rows change places, the accuracy does not."""
    expected, _ = evaluated(capsys, trained)
    _, network = (file := torch_file(trained))
    weights = {name: tensor.flip(0) if name.startswith("fc.") else tensor for name, tensor in file[0].items()}
    turned = Network(**{**vars(network), "classes": ("flower", "china")})
    (tmp_path / "w.safetensors").write_bytes(as_bytes(weights, turned.metadata()))
    found, said = evaluated(capsys, tmp_path / "w.safetensors", "--data", picture_folder)
    assert found["top1"] == expected["top1"]
    assert found["confusion"] == [row[::-1] for row in expected["confusion"][::-1]]
    assert said == "classes are matched by name: they are in another order\n"
    again = initial_model(Network(**{**vars(network), "classes": ("china", "flower")}), str(tmp_path / "w.safetensors"))
    torch.testing.assert_close(again.fc.weight, file[0]["fc.weight"])
    other = initial_model(Network(**{**vars(network), "classes": ("china", "tulip")}), str(tmp_path / "w.safetensors"))
    assert not torch.equal(other.fc.weight, file[0]["fc.weight"])
    assert torch.equal(other.conv1.weight, file[0]["conv1.weight"])


def torch_file(trained):
    from gala_cuda.networks.loading import read_weights

    return read_weights(trained / "best.safetensors")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("eval {run} --model resnet50", "argument --model: model is resnet50, but {run}/best.safetensors"),
        ("export {run} --model torchvision/resnet18", "with model gala_resnet18"),
        ("inspect {run} {data} --model resnet50", "argument --model: model is resnet50"),
        ("eval {run} --layers layer3", "argument --layers: layers is layer3, but"),
        ("eval {run} --layers layer3", "holds a network with layers layer2 layer3.0"),
        ("eval {run} --layers layer9", "argument --layers: layers names 'layer9'"),
        ("export {run} --keep-output", "argument --keep-output: keep_output is True, but"),
        ("eval {run} --data digits", "argument --data: builtin:digits has images of 1 channels; expected 3"),
        ("eval {run} --data synthetic:20", "argument --data: builtin:synthetic:20 has 1000 classes; expected 2"),
        ("inspect {run} digits", "argument IMAGES: builtin:digits has images of 1 channels; expected 3"),
    ],
)  # fmt: skip
def test_what_contradicts_the_weights_is_named(trained, picture_folder, capsys, arguments, message):
    with pytest.raises(SystemExit):
        main(arguments.format(run=trained, data=picture_folder).split())
    assert message.format(run=trained) in capsys.readouterr().err


def test_flags_may_repeat_what_the_weights_say(trained, capsys):
    layers = ["layer2.0", "layer2.1", "layer3.0"]
    same = ["--model", "gala_resnet18", "--layers", *layers, "--no-keep-output", "--image-size", "16"]
    assert evaluated(capsys, trained, *same)[0]["images"] == 14


def opened(path, **given):
    said = []
    found = open_network(path, Recipe(**given), given, said.append)
    assert said == [f"pictures, as is usual for {given['model']}: {found[1].preprocessing.describe(found[1].size)}"]
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "file", "size", "crop"),
    [
        ("torchvision/resnet18", "w.pth", 224, (224, 256)),
        ("timm/resnet18", "w.safetensors", 224, (224, 235)),
        ("torchvision/efficientnet_b1", "w.pth", 240, (240, 255)),
    ],
)
def test_sizes_are_the_librarys(tmp_path, model, file, size, crop):
    library, name = model.split("/")
    network = (timm.create_model if library == "timm" else torchvision.models.get_model)(name, num_classes=3)
    (save_file if "safe" in file else torch.save)(network.state_dict(), tmp_path / file)
    _, found = opened(tmp_path / file, model=model)
    assert (found.size, found.preprocessing.crop) == (size, crop)
    assert opened(tmp_path / file, model=model, image_size=64)[1].size == 64


def test_an_image_size_that_weights_are_not_for_is_named(tmp_path):
    given = {"model": "timm/test_vit", "image_size": 64}
    torch.save(timm.create_model("test_vit", num_classes=3, img_size=64).state_dict(), tmp_path / "small.pth")
    assert opened(tmp_path / "small.pth", **given)[1].size == 64
    torch.save(timm.create_model("test_vit", num_classes=3).state_dict(), tmp_path / "w.pth")
    with pytest.raises(NetworkError, match=r"image_size is 64, and .*w\.pth is for other images: .*pos_embed") as error:
        opened(tmp_path / "w.pth", **given)
    assert error.value.names[0] == "image_size"
    with pytest.raises(WeightsError, match="pos_embed"):
        opened(tmp_path / "small.pth", model="timm/test_vit")


@pytest.mark.slow
def test_keep_output_of_weights_that_do_not_say_so(tmp_path, capsys):
    model = convert(torchvision.models.resnet18(num_classes=2), ("layer3",), keep_output=True)
    torch.save(model.state_dict(), tmp_path / "w.pth")
    given = {"model": "torchvision/resnet18", "layers": ("layer3",), "keep_output": True, "image_size": 64}
    found, _ = opened(tmp_path / "w.pth", **given)
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(found.eval()(images), model.eval()(images))
    flags = ["--model", "torchvision/resnet18", "--layers", "layer3", "--keep-output", "--image-size", "32"]
    output = ["--output", str(tmp_path / "x")]
    assert main(["export", str(tmp_path / "w.pth"), *flags, *output, "--format", "pt2"]) == 0


@pytest.mark.parametrize("init", ["half", "paper"])
def test_biases_of_weights_that_do_not_say_so(tmp_path, init):
    """Whether GALA has them is seen from the weights; to train on from them, the recipe has to start it so too."""
    model = gala_cuda.gala_resnet18(2, width=4, init=init).eval()
    torch.save(model.state_dict(), tmp_path / "w.pth")
    found, network = opened(tmp_path / "w.pth", model="gala_resnet18", image_size=64)
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(found.eval()(images), model(images))
        assert torch.equal(initial_model(network, str(tmp_path / "w.pth")).eval()(images), model(images))
    other = replace(network, init={"half": "paper", "paper": "half"}[init])
    with pytest.raises(NetworkError, match=rf"init is {other.init!r}, but the biases differ: .*; expected {init!r}"):
        initial_model(other, str(tmp_path / "w.pth"))


@pytest.mark.slow
def test_inspect_and_eval_prepare_pictures_as_the_library_does(tmp_path, monkeypatch, picture_folder, capsys):
    """Size, mean, interpolation and crop: what reaches the network is what timm's own transform gives."""
    from PIL import Image

    torch.manual_seed(0)
    network = timm.create_model("vit_tiny_patch16_224", num_classes=2)
    torch.save(network.state_dict(), tmp_path / "w.pth")
    picture = Image.fromarray(load_sample_images().images[0])
    picture.save(tmp_path / "china.png")
    for split in ("train", "val"):
        for name in ("china", "flower"):
            (tmp_path / "data" / split / name).mkdir(parents=True)
            picture.save(tmp_path / "data" / split / name / "0.png")
    seen = []
    forward = timm.models.VisionTransformer.forward
    monkeypatch.setattr(
        timm.models.VisionTransformer, "forward", lambda self, x: seen.append(x.detach()) or forward(self, x)
    )
    arguments = [str(tmp_path / "w.pth"), "--model", "timm/vit_tiny_patch16_224"]
    assert main(["inspect", *arguments, str(tmp_path / "china.png"), "--output", str(tmp_path / "out")]) == 0
    expected = of_timm("vit_tiny_patch16_224")(picture)
    torch.testing.assert_close(seen[-1][0], expected, rtol=0, atol=1e-5)
    assert main(["eval", *arguments, "--data", str(tmp_path / "data"), "--workers", "0"]) == 0
    torch.testing.assert_close(seen[-1], torch.stack([expected, expected]), rtol=0, atol=1e-5)
    assert "names are known on one side only" in capsys.readouterr().out


@pytest.mark.slow
def test_weights_record_how_their_pictures_were_prepared(tmp_path, picture_folder):
    command = ["train", "--data", str(picture_folder), "--model", "timm/test_vit", "--epochs", "1", "--workers", "0"]
    assert main([*command, "--batch-size", "100", "--output", str(tmp_path), "--quiet"]) == 0
    _, network = torch_file(tmp_path)
    assert (network.size, network.preprocessing.mean, network.preprocessing.crop) == (160, (0.5, 0.5, 0.5), (160, 168))
