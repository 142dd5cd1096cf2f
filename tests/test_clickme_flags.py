"""`gala-cuda train` and `eval` with a folder of human maps: what they write and print, and what they refuse."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from scipy import stats
from test_clickme_training import SIDE, TEST, TRAIN

from gala_cuda.cli.main import main
from gala_cuda.clickme.score import mean_over_layers
from gala_cuda.data.load import load
from gala_cuda.models.attention_maps import attention_maps, input_gradient
from gala_cuda.networks.loading import read_weights, rebuild
from gala_cuda.networks.network import Network
from gala_cuda.training.recipe_file import resolve

pytestmark = pytest.mark.usefixtures("one_thread")


def write(folder, spots, count):
    """The first images as NPZ."""
    folder.mkdir(parents=True)
    pictures = (32 * spots.images + 128).clamp(0, 255).byte().permute(0, 2, 3, 1).numpy()
    for i in range(count):
        heatmap = spots.maps[i, 0].nan_to_num(0).numpy()
        np.savez(folder / f"{i:03}.npz", image=pictures[i], heatmap=heatmap, label=spots.labels[i].numpy())


@pytest.mark.parametrize(
    "network",
    [["--width", "4"], ["--model", "torchvision/resnet18", "--layers", "layer3"]],
    ids=["ours", "torchvision"],
)
def test_the_commands_train_and_evaluate_a_folder_of_maps(tmp_path, capsys, network):
    pictures, output = tmp_path / "clickme", tmp_path / "run"
    write(pictures / "train", TRAIN, 64)
    write(pictures / "val", TEST, 20)
    options = ["--image-size", str(SIDE), *network, "--batch-size", "16", "--workers", "0", "--epochs", "2"]
    command = ["train", "--clickme", str(pictures), "--clickme-weight", "3", *options, "--output", str(output)]
    assert main(command) == 0
    assert "map loss" in capsys.readouterr().out
    assert resolve(str(output / "recipe.yaml"), {}).map_weight == 3
    log = [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]
    assert [epoch["map_loss"] > 0 for epoch in log] == [True, True]
    assert main([*command, "--resume"]) == 0
    weights = str(output / "last.safetensors")
    capsys.readouterr()
    assert main(["eval", weights, "--clickme", str(pictures), "--maps", "--json", "--workers", "0"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["map_similarity"] == pytest.approx(log[-1]["map_similarity"], abs=1e-6)
    assert result["maps"]["rho"] == pytest.approx(log[-1]["map_similarity"], abs=1e-6)
    assert result["maps"]["images"] == 16


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--clickme", "nowhere"], "argument --clickme: "),
        (["--clickme-weight", "-1"], "argument --clickme-weight: clickme_weight is -1.0; expected at least 0"),
        (
            ["--clickme", "FOLDER", "--model", "resnet18"],
            "argument --model: clickme_loss is 'paper', but ResNet",
        ),
    ],
)
def test_refusals_of_the_command_are_named_and_write_nothing(tmp_path, capsys, options, message):
    write(tmp_path / "clickme/train", TRAIN, 4)
    write(tmp_path / "clickme/val", TEST, 2)
    options = [str(tmp_path / "clickme") if option == "FOLDER" else option for option in options]
    with pytest.raises(SystemExit):
        main(["train", *options, "--image-size", "24", "--output", str(tmp_path / "run")])
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """File of an untrained GALA-ResNet for two classes and images of 32 pixels."""
    torch.manual_seed(0)
    network = Network("gala_resnet18", (), 4, False, "small", ("0", "1"), 3, 32)
    path = tmp_path_factory.mktemp("weights") / "network.safetensors"
    save_file(network.build().state_dict(), path, metadata=network.metadata())
    return str(path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Eight images to train on and twelve to test on, every fourth without a map, as NPZ."""
    place, rng = tmp_path_factory.mktemp("clickme"), np.random.default_rng(0)
    for split, count in (("train", 8), ("val", 12)):
        (place / split).mkdir()
        for i in range(count):
            heatmap = rng.random((37, 37), np.float32) * (i % 4 > 0)
            image = rng.integers(0, 256, (37, 37, 3), np.uint8)
            np.savez(place / split / f"{i:02}.npz", image=image, heatmap=heatmap, label=np.int64(i % 2))
    return str(place)


@pytest.mark.parametrize("options", [[], ["--saliency"]], ids=["attention", "saliency"])
def test_eval_prints_the_columns_of_the_papers_table(weights, folder, capsys, options):
    command = ["eval", weights, "--clickme", folder, "--maps", "--workers", "0", *options]
    assert main([*command, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    test = load(folder, 64, 0, 32, map_mode="paper").test
    # Batches and layout are the command's: interpolated maps have values that only rounding tells apart.
    model, rho = rebuild(*reversed(read_weights(weights))).eval().to(memory_format=torch.channels_last), []
    for images, labels, heatmaps, has_map in test.epoch():
        images = images.to(memory_format=torch.channels_last)
        _, attention = attention_maps(model, images)
        maps = input_gradient(model, images, labels) if options else mean_over_layers(attention, (32, 32))
        pairs = zip(maps[has_map], heatmaps[has_map], strict=True)
        rho += [stats.spearmanr(ours.flatten(), theirs.flatten()).statistic for ours, theirs in pairs]
    score = result["maps"]
    assert (score["of"], score["images"]) == ("input gradient" if options else "attention", 9)
    assert score["rho"] == pytest.approx(np.mean(rho), abs=1e-6)
    assert result["map_similarity"] == pytest.approx(np.mean(rho), abs=1e-6)
    assert score["low"] < score["rho"] < score["high"]
    assert main(command) == 0
    printed = capsys.readouterr().out
    shown = (f"{100 * (1 - result['top1']):.2f}", f"{100 * score['ratio']:.2f}", f"{score['p']:.4f}", "top-5 error")
    assert [text for text in shown if text not in printed] == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--maps"], "argument --maps: compares with human maps; expected --clickme DIR"),
        (["--saliency"], "argument --saliency: is what --maps compares; expected --maps too"),
        (
            ["--maps", "--clickme", "x", "--ceiling", "2"],
            "argument --ceiling: is 2.0; expected a correlation, at most 1",
        ),
        (["--clickme", "no-such-folder"], "argument --clickme: "),
    ],
)
def test_arguments_of_eval_that_do_not_go_together_are_named(weights, capsys, arguments, message):
    with pytest.raises(SystemExit):
        main(["eval", weights, *arguments])
    assert message in capsys.readouterr().err
