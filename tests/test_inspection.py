"""Attention maps and input gradients, drawn on PNG sheets and on an HTML page."""

import base64
import io
import re

import numpy as np
import pytest
import torch
import torchvision
from imagesets import VAL, write_folder
from PIL import Image
from torch import nn

from gala_cuda import convert, gala_resnet18
from gala_cuda.cli.main import main
from gala_cuda.data.augmentation import centre_crop
from gala_cuda.data.picture_decoding import decode_picture
from gala_cuda.inspection.images import open_images
from gala_cuda.inspection.sheet import overlay
from gala_cuda.models.attention_maps import attention_maps, choose_blocks, gala_blocks, input_gradient
from gala_cuda.networks.loading import read_weights, rebuild
from gala_cuda.networks.network import Network
from gala_cuda.training.checkpoint import as_bytes

pytestmark = pytest.mark.usefixtures("one_thread")


def test_attention_maps_in_evaluation_mode():
    torch.manual_seed(0)
    model = gala_resnet18(3, ("layer2", "layer3.1"), in_channels=1, stem="small", width=4).train()
    images = torch.randn(2, 1, 12, 12)
    logits, maps = attention_maps(model, images)
    assert model.training
    assert {name: tuple(attn_map.shape) for name, attn_map in maps.items()} == {
        "layer2.0": (2, 6, 6),
        "layer2.1": (2, 6, 6),
        "layer3.1": (2, 3, 3),
    }
    assert not logits.requires_grad
    torch.testing.assert_close(logits, model.eval()(images).detach())


def test_input_gradient_of_a_linear_model_is_its_weights():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 4 * 5, 7)).double().train()
    labels = torch.tensor([6, 0])
    with torch.no_grad():  # as around an evaluation
        gradient = input_gradient(model, torch.randn(2, 3, 4, 5, dtype=torch.float64), labels)
    weights = model[1].weight.detach().view(7, 3, 4, 5)
    torch.testing.assert_close(gradient, weights[labels].square().sum(1).sqrt())
    assert model.training
    assert model[1].weight.grad is None


def test_overlay_shows_each_image_and_map(tmp_path):
    images = torch.rand(2, 3, 8, 8)
    maps = {"flat": torch.ones(2, 4, 4), "rising": torch.arange(32.0).view(2, 4, 4)}
    figure = overlay(images, maps, ["first", "second"], "heading")
    assert [axes.get_title() for axes in figure.axes] == ["image", "flat", "rising", "", "", ""]
    flat, rising = (figure.axes[i].images[1].get_array() for i in (1, 2))
    assert flat.shape == rising.shape == (8, 8)
    assert flat.max() == flat.min() == 0  # a constant map is dark, not NaN
    assert rising[0, 0] == 0
    assert rising[-1, -1] == 1
    figure.savefig(tmp_path / "overlay.png")
    assert (tmp_path / "overlay.png").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("images", "maps", "titles", "message"),
    [
        pytest.param(torch.rand(2, 2, 8, 8), {}, ["a", "b"], "images has shape", id="channels"),
        pytest.param(torch.rand(0, 1, 8, 8), {}, [], "images has shape", id="no-images"),
        pytest.param(torch.rand(2, 1, 8, 8), {}, ["a"], "titles has 1 entries", id="titles"),
        pytest.param(torch.rand(2, 1, 8, 8), {"m": torch.rand(3, 4, 4)}, ["a", "b"], r"maps\['m'\]", id="maps"),
    ],
)
def test_overlay_names_what_does_not_fit(images, maps, titles, message):
    with pytest.raises(ValueError, match=message):
        overlay(images, maps, titles)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """The files of three untrained networks of the two classes china and flower."""
    folder = tmp_path_factory.mktemp("weights")
    for model, layers in (("gala_resnet18", ("layer2", "layer3")), ("resnet18", ()), ("timm/resnet18", ())):
        torch.manual_seed(0)
        network = Network(model, layers, 8, False, "imagenet", ("china", "flower"), 3, 32)
        state = network.build().state_dict()
        (folder / f"{model.replace('/', '-')}.safetensors").write_bytes(as_bytes(state, network.metadata()))
    return folder


def page_rows(output):
    """(columns, [(heading, pictures)]) of the page, each picture decoded."""
    text = (output / "inspection.html").read_text()
    assert "http" not in text
    columns = re.findall("<th>(.*?)</th>", text)[1:]
    found = []
    for row in re.findall("<tr style=.*", text):
        pictures = [base64.b64decode(data) for data in re.findall(r"data:image/png;base64,([\w+/=]+)", row)]
        found.append((re.search(r'<th scope="row">(.*?)</th>', row)[1], [Image.open(io.BytesIO(p)) for p in pictures]))
    return columns, found


def test_inspect_pictures(weights, tmp_path, capsys):
    pictures = write_folder(tmp_path / "pictures") / "val"
    (pictures / "china" / "broken<b>.png").write_bytes(b"no picture")
    output = tmp_path / "out"
    command = ["inspect", str(weights / "gala_resnet18.safetensors"), str(pictures), "--output", str(output)]
    assert main([*command, "--limit", "18"]) == 0
    printed = capsys.readouterr().out
    assert f"skipped {pictures}/china/broken<b>.png: no image of a known format" in printed
    columns, rows = page_rows(output)
    assert columns == ["image", "layer2.0", "layer2.1", "layer3.1", "input gradient"]
    assert len(rows) == 2 * VAL
    assert all([picture.size for picture in found] == [(32, 32), (4, 4), (4, 4), (2, 2), (32, 32)] for _, found in rows)
    model = rebuild(*read_weights(weights / "gala_resnet18.safetensors")[::-1]).eval()
    first = centre_crop(32)(decode_picture((pictures / "china" / "000.png").read_bytes()))
    probability, answer = model(first[None]).softmax(1)[0].max(0)
    assert f"<br>{('china', 'flower')[answer]}, {probability:.0%}" in rows[0][0]
    attn_map = attention_maps(model, first[None])[1]["layer3.1"][0]
    levels = torch.from_numpy(np.array(rows[0][1][3])).long()  # positions in the palette
    torch.testing.assert_close(
        levels, ((attn_map - attn_map.min()) / (attn_map.max() - attn_map.min()) * 255).round().long()
    )
    assert (output / "inspection.png").read_bytes().startswith(b"\x89PNG")


def test_inspect_clickme(weights, tmp_path):
    for i, peak in enumerate((1.0, 0.0)):  # the second has no map
        heatmap = np.zeros((36, 36), np.float32)
        heatmap[8:14, 20:24] = peak
        image = np.random.default_rng(i).integers(0, 256, (36, 36, 3), np.uint8)
        (tmp_path / "maps" / "val").mkdir(parents=True, exist_ok=True)
        np.savez(tmp_path / "maps" / "val" / f"{i}.npz", image=image, heatmap=heatmap, label=np.int64(i))
    command = ["inspect", str(weights / "gala_resnet18.safetensors"), str(tmp_path / "maps"), "--layers", "layer3.0"]
    assert main([*command, "--output", str(tmp_path / "out")]) == 0
    columns, ((_, first), (_, second)) = page_rows(tmp_path / "out")
    assert columns == ["image", "human map", "layer3.0", "input gradient"]
    assert [len(first), len(second)] == [4, 3]
    human = np.array(first[1])  # 36 pixels, of which the middle 32
    assert human[6:12, 18:22].min() == 255
    assert human.sum() == 255 * 6 * 4


def test_classes_of_human_maps_are_matched_by_name(tmp_path):
    pixels = np.zeros((36, 36, 3), np.uint8)
    (tmp_path / "val").mkdir()
    for i, label in enumerate((0, 1, -1)):
        np.savez(tmp_path / "val" / f"{i}.npz", image=pixels, heatmap=np.ones((36, 36), np.float32), label=label)
    network = Network("resnet18", (), 8, False, "imagenet", ("china", "flower", "tower"), 3, 32)
    for names, expected in (("flower\nchina\n", [1, 0, -1]), ("tower\nflower\n", [2, 1, -1])):
        (tmp_path / "classes.txt").write_text(names)
        assert open_images(str(tmp_path), network).labels.tolist() == expected
    (tmp_path / "classes.txt").write_text("china\nrose\n")
    with pytest.raises(ValueError, match="classes that the network does not know, rose"):
        open_images(str(tmp_path), network)


@pytest.mark.parametrize("model", ["resnet18", "timm-resnet18"])
def test_inspect_shows_the_gradient_alone_without_gala(weights, tmp_path, model):
    picture = tmp_path / "picture.png"
    Image.new("RGB", (40, 32), "red").save(picture)
    command = ["inspect", str(weights / f"{model}.safetensors"), str(picture), "--output", str(tmp_path)]
    assert main(command) == 0
    columns, rows = page_rows(tmp_path)
    assert columns == ["image", "input gradient"]
    assert len(rows) == 1


@pytest.mark.parametrize(
    ("model", "images", "options", "code", "message"),
    [
        pytest.param("resnet18", "missing", "", 2, "argument IMAGES: there is no missing", id="missing"),
        pytest.param("resnet18", "empty", "", 2, "argument IMAGES: there are no ClickMe records", id="empty"),
        pytest.param("resnet18", "digits", "", 2, "digits has images of 1 channels; expected 3", id="channels"),
        pytest.param("resnet18", "broken.png", "", 1, "none of the images can be read", id="none"),
        pytest.param("resnet18", "broken.png", "--layers layer3", 2, "argument --layers: layers names", id="no-gala"),
        pytest.param("gala_resnet18", "broken.png", "--layers layer1", 2, "'layer1'; expected names of", id="layers"),
        pytest.param("gala_resnet18", "broken.png", "--limit 0", 2, "argument --limit: '0' was given", id="limit"),
    ],
)
def test_inspect_refuses(weights, tmp_path, monkeypatch, capsys, model, images, options, code, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken.png").write_bytes(b"no picture")
    command = ["inspect", str(weights / f"{model}.safetensors"), images, *options.split(), "--output", "out"]
    try:
        found = main(command)
    except SystemExit as error:
        found = error.code
    assert found == code
    assert message in capsys.readouterr().err
    assert not list((tmp_path / "out").glob("*"))


def test_maps_of_a_converted_network_are_those_of_ours():
    torch.manual_seed(0)
    ours = gala_resnet18(3, ("layer3",), width=64).eval()
    theirs = convert(torchvision.models.resnet18(num_classes=3), ("layer3",))
    theirs.load_state_dict(ours.state_dict())
    images = torch.randn(2, 3, 32, 32)
    _, expected = ours(images, return_maps=True)
    _, maps = attention_maps(theirs, images)
    assert list(maps) == gala_blocks(theirs) == list(expected)
    for name, attn_map in maps.items():
        torch.testing.assert_close(attn_map, expected[name].detach())


@pytest.mark.parametrize(
    ("names", "wanted", "chosen"),
    [
        pytest.param([f"layer3.{i}" for i in range(6)], (), ["layer3.1", "layer3.3", "layer3.5"], id="paper"),
        pytest.param([f"layer3.{i}" for i in range(2)], (), ["layer3.0", "layer3.1"], id="few"),
        pytest.param([f"layer3.{i}" for i in range(23)], ("layer3.20",), ["layer3.20"], id="wanted"),
        pytest.param(
            ["layer1.0", *(f"layer2.{i}" for i in range(4))], (), ["layer1.0", "layer2.1", "layer2.3"], id="even"
        ),
    ],
)
def test_chosen_layers(names, wanted, chosen):
    assert choose_blocks(names, wanted) == chosen
