"""Evaluation, files of weights of three libraries, and the commands eval and export."""

import json

import onnxruntime
import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn

from gala_cuda import GALA
from gala_cuda.cli.main import main
from gala_cuda.data.load import load
from gala_cuda.networks.errors import NetworkError, WeightsError
from gala_cuda.networks.loading import initial_model, read_weights, rebuild
from gala_cuda.networks.network import Network
from gala_cuda.networks.state_dict import load_weights
from gala_cuda.training.evaluate import evaluate
from gala_cuda.training.export import ExportError, export_onnx
from gala_cuda.training.recipe import Recipe
from gala_cuda.training.start import network_of

pytestmark = pytest.mark.usefixtures("one_thread")
CPU = torch.device("cpu")
CLASSES = tuple("0123456789")


def described(model, layers=(), keep_output=False, classes=CLASSES, channels=3):
    return Network(model, layers, 64, keep_output, "imagenet", classes, channels, 64)


def images(size=64, count=2):
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(1))


def perturbed(model):
    """Every weight and statistic at random, so that no part of a network can hide."""
    generator = torch.Generator().manual_seed(2)
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point():
            noise = torch.rand(tensor.shape, generator=generator)
            tensor.copy_(0.5 + noise if "running_var" in name else tensor + 0.1 * noise)
    return model.eval()


def test_evaluation_equals_a_count_by_hand():
    data, model = load("digits", 64, seed=0, size=8), nn.Sequential(nn.Flatten(), nn.Linear(64, 10), nn.Dropout())
    found = evaluate(model, data.test, CPU)
    pictures, labels = (torch.cat(parts) for parts in zip(*data.test.epoch(), strict=True))
    logits = model[:2](pictures).double()
    assert model.training
    assert found.images == len(labels) == 450
    assert found.loss == pytest.approx(nn.functional.cross_entropy(logits, labels).item(), rel=1e-5)
    ranks = (logits > logits.gather(1, labels[:, None])).sum(1)
    assert found.top1 == (ranks == 0).double().mean().item()
    assert found.top5 == pytest.approx((ranks < 5).double().mean().item(), abs=1e-12)
    for (label, answer), count in {(3, 5): 0, (0, 0): 0}.items():
        count = ((labels == label) & (logits.argmax(1) == answer)).sum()
        assert found.confusion[label, answer] == count
    assert torch.equal(found.confusion.sum(1), labels.bincount())


def of_torchvision(path):
    torch.save(perturbed(network := torchvision.models.resnet18(num_classes=10)).state_dict(), path)
    return network


def of_timm(path):
    network = perturbed(timm.create_model("resnet18", num_classes=10))
    torch.save({"epoch": 3, "state_dict": {f"module.{k}": v for k, v in network.state_dict().items()}}, path)
    return network


def in_safetensors(path):
    network = perturbed(timm.create_model("resnet18d", num_classes=10))
    save_file(network.state_dict(), path)
    return network


@pytest.mark.parametrize(
    ("write", "file", "model"),
    [
        pytest.param(of_torchvision, "w.pth", "resnet18", id="torchvision"),
        pytest.param(of_timm, "w.pth.tar", "resnet18", id="timm"),
        pytest.param(of_torchvision, "w.pth", "torchvision/resnet18", id="torchvision-own"),
        pytest.param(in_safetensors, "w.safetensors", "timm/resnet18d", id="timm-own"),
    ],
)
@torch.no_grad()
def test_weights_of_other_libraries(tmp_path, write, file, model):
    network, path = write(tmp_path / file), tmp_path / file
    weights, named = read_weights(path)
    assert named is None
    found = rebuild(described(model), weights).eval()
    torch.testing.assert_close(found(images()), network(images()))


@pytest.mark.slow
@pytest.mark.parametrize("model", ["gala_resnet18", "torchvision/resnet18"])
@torch.no_grad()
def test_fine_tuning_starts_from_the_outputs_of_the_weights(tmp_path, model):
    original = of_torchvision(tmp_path / "w.pth")
    network = described(model, ("layer3", "layer4.1"), keep_output=True)
    model = initial_model(network, str(tmp_path / "w.pth")).eval()
    assert [name for name, layer in model.named_modules() if isinstance(layer, GALA)] == [
        "layer3.0.attention", "layer3.1.attention", "layer4.1.attention"]  # fmt: skip
    torch.testing.assert_close(model(images()), original(images()), rtol=1e-4, atol=1e-4)
    again = rebuild(network, model.state_dict()).eval()
    assert torch.equal(again(images()), model(images()))


@torch.no_grad()
def test_other_classes_get_a_new_last_layer(tmp_path):
    original = of_torchvision(tmp_path / "w.pth")
    for model in ("resnet18", "gala_resnet18"):
        found = initial_model(described(model, classes=("a", "b")), str(tmp_path / "w.pth"))
        assert found.fc.weight.shape == (2, 512)
        assert torch.equal(found.layer3[1].conv2.weight, original.layer3[1].conv2.weight)


def test_refusals_name_what_is_wrong(tmp_path):
    original = of_torchvision(tmp_path / "w.pth")
    for network, message in (
        (described("resnet34"), "another network: layer1.2.conv1.weight is missing"),
        (described("resnet18", channels=2), r"conv1.weight is \[64, 3, 7, 7\], expected \[64, 2, 7, 7\]"),
    ):
        with pytest.raises(WeightsError, match=message):
            initial_model(network, str(tmp_path / "w.pth"))
    with pytest.raises(WeightsError, match=r"fc.bias is \[2\], expected"):
        load_weights(original, torchvision.models.resnet18(num_classes=2).state_dict())
    for content, message in ((b"", "cannot be read"), (b"text" * 9, "cannot be read")):
        for name in ("x.safetensors", "x.pth"):
            (tmp_path / name).write_bytes(content)
            with pytest.raises(WeightsError, match=message):
                read_weights(tmp_path / name)
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(WeightsError, match="holds no state dict"):
        read_weights(tmp_path / "list.pth")
    for name in ("timm/resnet19", "torchvision/resnet19", "keras/resnet50", "resnet19"):
        with pytest.raises(NetworkError, match=f"there is no '{name}'"):
            described(name).build()
    with pytest.raises(NetworkError, match="resnet18 has not"):
        described("resnet18", keep_output=True).build()


@pytest.mark.slow
def test_own_images_to_checkpoint_to_eval_to_export(tmp_path, capsys):
    run = tmp_path / "run"
    tiny = ["--image-size", "8", "--width", "4", "--batch-size", "256"]
    assert main(["train", *tiny, "--epochs", "2", "--layers", "layer2.0", "--output", str(run), "--quiet"]) == 0
    assert capsys.readouterr().out == ""
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    for name, expected in (
        ("last.safetensors", lines[-1]),
        ("checkpoints/step-00000010", lines[-1]),
        ("", max(lines, key=lambda line: line["test_accuracy"])),
    ):
        assert main(["eval", str(run / name), "--json"]) == 0
        found = json.loads(capsys.readouterr().out)
        assert (found["top1"], found["top5"]) == (expected["test_accuracy"], expected["test_top5"])
    assert main(["eval", str(run)]) == 0
    assert "images by class" in capsys.readouterr().out

    assert main(["export", str(run), "--format", "onnx", "pt2", "--output", str(tmp_path / "net")]) == 0
    assert f"{tmp_path}/net.onnx: logits as the network's to" in capsys.readouterr().out
    weights, network = read_weights(run / "best.safetensors")
    model, x = rebuild(network, weights).eval(), torch.randn(5, 1, 8, 8)
    session = onnxruntime.InferenceSession(tmp_path / "net.onnx", providers=["CPUExecutionProvider"])
    with torch.no_grad():
        expected = model(x)
        torch.testing.assert_close(torch.export.load(tmp_path / "net.pt2").module()(x), expected)
    logits = torch.from_numpy(session.run(None, {"images": x.numpy()})[0])
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param("eval nowhere.pth", "nowhere.pth cannot be read as weights: No such file", id="missing"),
        pytest.param("eval w.pth", "argument --model: w.pth does not name its network", id="no-model"),
        pytest.param("eval w.pth --model resnet34", "argument WEIGHTS: the weights are of another network", id="model"),
        pytest.param(
            "eval w.pth --model resnet18", "--data: data is not given, and there is no recipe.yaml", id="data"
        ),
        pytest.param("eval .", "argument WEIGHTS: . holds none of best.safetensors", id="folder"),
        pytest.param("export w.pth --format tflite", "argument --format: invalid choice: 'tflite'", id="format"),
    ],
)
def test_bad_arguments_are_named(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    torch.save(torchvision.models.resnet18(num_classes=3).state_dict(), "w.pth")
    with pytest.raises(SystemExit):
        main(arguments.split())
    assert message in capsys.readouterr().err


@pytest.mark.slow
def test_an_export_that_differs_is_refused_and_removed(tmp_path):
    class Unsteady(nn.Module):
        """Gives other logits each time."""

        def __init__(self):
            super().__init__()
            self.fc, self.calls = nn.Linear(12, 3), 0

        def forward(self, x):
            self.calls += 1
            return self.fc(x.flatten(1)) + self.calls

    with pytest.raises(ExportError, match="gives other logits than the network"):
        export_onnx(Unsteady(), 3, 2, tmp_path / "net.onnx")
    assert not list(tmp_path.iterdir())


def test_a_recipe_describes_its_network():
    recipe = Recipe(model="gala_resnet26", layers=("layer2",), width=8)
    network = network_of(recipe, ("a", "b"), 3, 32)
    weights = network.build().state_dict()
    assert [name.split(".attention")[0] for name in weights if name.endswith("attention.a")] == ["layer2.0", "layer2.1"]
    assert weights["conv1.weight"].shape == (8, 3, 3, 3)
