"""Logs of a training: the same figures in all, and what a resumed training makes of what is there."""

import csv
import json
import sys

import pytest
import wandb
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from gala_cuda.cli.main import main
from gala_cuda.training.epoch import Epoch
from gala_cuda.training.logs import CsvTable
from gala_cuda.training.tensorboard import TensorBoard
from gala_cuda.training.weights_and_biases import WeightsAndBiases

pytestmark = pytest.mark.usefixtures("one_thread")
TINY = ["train", "--image-size", "8", "--width", "4", "--batch-size", "256", "--quiet", "--model", "resnet18"]


@pytest.fixture(autouse=True)
def offline(monkeypatch, tmp_path):
    """Nothing leaves the machine; wandb's own folders are the test's."""
    for name in ("CACHE_DIR", "CONFIG_DIR", "DATA_DIR"):
        monkeypatch.setenv(f"WANDB_{name}", str(tmp_path / "wandb-of-user"))
    monkeypatch.setenv("WANDB_MODE", "offline")


def epoch(number, **figures):
    zeros = dict.fromkeys(
        ("lr", "loss", "train_accuracy", "train_top5", "test_loss", "test_accuracy", "test_top5", "images_per_second",
         "data_wait", "peak_memory", "flops_per_second", "skipped", "seconds"), 0.0
    )  # fmt: skip
    return Epoch(**{**zeros, "mfu": None, "epoch": number, "step": 10 * number, **figures})


def table(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_csv_has_what_the_json_lines_have(tmp_path):
    assert main([*TINY, "--epochs", "2", "--log", "csv", "--output", str(tmp_path / "run")]) == 0
    lines = [json.loads(line) for line in (tmp_path / "run/log.jsonl").read_text().splitlines()]
    rows = table(tmp_path / "run/log.csv")
    assert [
        {name: None if text == "" else json.loads(text) for name, text in row.items()} for row in rows
    ] == lines  # fmt: skip


def test_a_resumed_csv_keeps_what_came_before_alone(tmp_path):
    path = tmp_path / "log.csv"
    log = CsvTable(path, 0)
    for number in (1, 2, 3):
        log.add_epoch(epoch(number, loss=0.1 * number))
    path.write_text(path.read_text() + "4,4")  # cut by a power failure
    before = path.read_text().splitlines()
    CsvTable(path, 25).add_epoch(epoch(3, loss=7.0))
    assert path.read_text().splitlines()[:3] == before[:3]
    assert [(row["epoch"], row["loss"]) for row in table(path)] == [("1", "0.1"), ("2", "0.2"), ("3", "7.0")]
    CsvTable(path, 0)
    assert table(path) == []


def test_tensorboard_has_the_figures_that_there_are(tmp_path):
    log = TensorBoard(tmp_path, 0)
    log.add_step(5, loss=2.0, lr=0.5)
    log.add_epoch(epoch(1, test_accuracy=None, test_map=0.25))
    log.close()
    events = EventAccumulator(str(tmp_path)).Reload()
    names = set(events.Tags()["scalars"])
    assert {"step/loss", "epoch/test_map"} <= names
    assert not {"epoch/test_accuracy", "epoch/mfu", "epoch/step"} & names
    assert [(each.step, each.value) for each in events.Scalars("epoch/test_map")] == [(10, 0.25)]


@pytest.mark.slow
def test_weights_and_biases_has_recipe_steps_and_epochs(tmp_path):
    output = tmp_path / "run"
    assert main([*TINY, "--epochs", "1", "--log", "wandb", "csv", "--output", str(output)]) == 0
    (first,) = output.glob("wandb/offline-run-*/*.wandb")
    recorded = first.read_bytes()
    for text in (b"step/loss", b"epoch/test_accuracy", b"batch_size", b"layer_decay", b"gala-cuda"):
        assert text in recorded
    assert json.loads((output / "log.jsonl").read_text())["test_loss"].__repr__().encode() in recorded
    run = (output / "wandb-id.txt").read_text()
    assert first.name == f"run-{run}.wandb"
    assert main([*TINY, "--epochs", "2", "--log", "wandb", "--resume", "--output", str(output)]) == 0
    assert (output / "wandb-id.txt").read_text() == run
    assert len({file.name for file in output.glob("wandb/offline-run-*/*.wandb")}) == 1


def test_a_refusal_of_wandb_is_told_in_one_line(tmp_path, monkeypatch, capsys):
    def refuse(**options):
        raise wandb.errors.UsageError("No API key configured.")

    monkeypatch.setattr(wandb, "init", refuse)
    assert main([*TINY, "--epochs", "1", "--log", "wandb", "--output", str(tmp_path / "run")]) == 1
    assert capsys.readouterr().err == "gala-cuda: wandb cannot be started: No API key configured.\n"


@pytest.mark.parametrize("name", ["tensorboard", "wandb"])
def test_a_log_without_its_package_is_refused_before_anything_is_written(monkeypatch, tmp_path, capsys, name):
    monkeypatch.setitem(sys.modules, name, None)
    assert main([*TINY, "--log", "csv", name, "--output", str(tmp_path / "run")]) == 1
    assert capsys.readouterr().err == f"gala-cuda: {name} is not installed; pip install 'gala-cuda[{name}]'\n"
    assert not (tmp_path / "run").exists()


def test_an_unknown_log_is_named(capsys):
    with pytest.raises(SystemExit):
        main([*TINY, "--log", "mlflow"])
    assert "argument --log: invalid choice: 'mlflow'" in capsys.readouterr().err


def test_logs_have_one_interface():
    for log in (CsvTable, TensorBoard, WeightsAndBiases):
        assert all(callable(getattr(log, name)) for name in ("add_step", "add_epoch", "close"))
