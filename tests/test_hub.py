"""Networks in folders as the Hugging Face Hub has them, and what is sent there; the Hub itself is stood in for."""

import json
import shutil
from pathlib import Path

import pytest
import timm
import torch
from huggingface_hub import HfApi, errors
from imagesets import write_folder

from gala_cuda.cli.main import main
from gala_cuda.hub import GalaResNet
from gala_cuda.networks import hub_files
from gala_cuda.networks.errors import NetworkError, WeightsError
from gala_cuda.networks.network import Network
from gala_cuda.training.epoch import Epoch, best_epoch

pytestmark = pytest.mark.usefixtures("one_thread")
OPTIONS = ["--image-size", "16", "--width", "4", "--epochs", "2", "--workers", "0", "--batch-size", "16"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of a training on two classes of pictures, and these pictures."""
    place = tmp_path_factory.mktemp("run")
    pictures = write_folder(place / "pictures")
    assert main(["train", "--data", str(pictures), *OPTIONS, "--output", str(place / "run")]) == 0
    return place / "run", pictures


def images():
    return torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A folder that stands for the Hub: OWNER/NAME/FILE."""
    place = tmp_path / "hub"

    def download(repo_id, filename, **options):
        found = place / repo_id / filename
        if not found.is_file():
            raise errors.LocalEntryNotFoundError(f"there is no {repo_id}/{filename}\nand more")
        return str(found)

    def upload(self, *, repo_id, folder_path, **options):
        shutil.copytree(folder_path, place / repo_id)
        return type("Commit", (), {"commit_url": "url"})()

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    monkeypatch.setattr("huggingface_hub.hub_mixin.hf_hub_download", download)
    monkeypatch.setattr(HfApi, "upload_folder", upload)
    monkeypatch.setattr(HfApi, "create_repo", lambda self, repo_id, **options: type("Repo", (), {"repo_id": repo_id})())
    return place


def test_a_training_is_opened_saved_and_opened_again(run, tmp_path):
    folder, _ = run
    log = [Epoch(**json.loads(line)) for line in (folder / "log.jsonl").read_text().splitlines()]
    model = GalaResNet.from_pretrained(folder).eval()
    assert (model.network.classes, model.epoch) == (("china", "flower"), best_epoch(log))
    model.save_pretrained(tmp_path / "saved")
    again = GalaResNet.from_pretrained(tmp_path / "saved").eval()
    assert (again.network, again.epoch) == (model.network, model.epoch)
    with torch.no_grad():
        logits, maps = model(images(), return_maps=True)
        assert torch.equal(again(images()), logits)
    assert list(maps) == ["layer3.0", "layer3.1"]
    assert sorted(path.name for path in (tmp_path / "saved").iterdir()) == [
        "README.md",
        "config.json",
        hub_files.WEIGHTS,
    ]


def test_the_card_has_the_figures_of_the_training(run):
    folder, _ = run
    model = GalaResNet.from_pretrained(folder)
    card = model.generate_model_card()
    assert card.data.library_name == "gala-cuda"
    assert f"{100 * (1 - model.epoch.test_accuracy):.2f} %" in card.text
    assert f"{model.epoch.test_loss:.4f}" in card.text
    assert "Classes: china, flower." in card.text
    assert "16 x 16 pixels" in card.text
    model.epoch = None
    assert "top-1" not in model.generate_model_card().text


def test_to_the_hub_and_back(run, hub, tmp_path, capsys):
    folder, pictures = run
    model = GalaResNet.from_pretrained(folder).eval()
    model.push_to_hub("me/pets")
    again = GalaResNet.from_pretrained("me/pets").eval()
    with torch.no_grad():
        assert torch.equal(again(images()), model(images()))
    assert again.epoch == model.epoch
    tables = []
    for weights in ("hf-hub:me/pets", str(folder)):
        output = tmp_path / f"{len(tables)}.jsonl"
        command = ["predict", weights, str(pictures / "val"), "--workers", "0", "--output", str(output)]
        assert main(command) == 0
        tables.append(output.read_text())
    assert tables[0] == tables[1]
    command = ["train", "--data", str(pictures), "--weights", "hf-hub:me/pets", *OPTIONS, "--output"]
    assert main([*command, str(tmp_path / "finetuned")]) == 0
    assert "weights: hf-hub:me/pets" in (tmp_path / "finetuned" / "recipe.yaml").read_text()


def test_what_is_not_there_is_named(hub, tmp_path, capsys):
    with pytest.raises(WeightsError, match=r"hf-hub:me/none cannot be had: there is no me/none/model\.safetensors$"):
        hub_files.download("me/none")
    with pytest.raises(SystemExit):
        main(["predict", "hf-hub:me/none", str(tmp_path)])
    assert "argument WEIGHTS: hf-hub:me/none cannot be had: there is no" in capsys.readouterr().err


def test_other_networks_are_refused(tmp_path):
    network = Network("timm/resnet18", (), 64, False, "imagenet", ("a", "b"), 3, 64)
    with pytest.raises(NetworkError, match=r"is timm/resnet18, a ResNet; expected one of this package's"):
        GalaResNet.of(timm.create_model("resnet18", num_classes=2), network)
    Path(tmp_path / hub_files.WEIGHTS).write_bytes(b"")
    with pytest.raises(WeightsError, match="cannot be read as weights"):
        GalaResNet.from_pretrained(tmp_path)
