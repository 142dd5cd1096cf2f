"""Early stopping: after so many epochs without a better test, also of a training that was interrupted."""

from dataclasses import replace

import pytest
import torch

from gala_cuda.cli.main import main
from gala_cuda.console import PlainConsole
from gala_cuda.data.load import load
from gala_cuda.training import loop
from gala_cuda.training.epoch import epochs_since_best
from gala_cuda.training.evaluate import evaluate
from gala_cuda.training.loop import fit
from gala_cuda.training.recipe import Recipe
from gala_cuda.training.run import Run

pytestmark = pytest.mark.usefixtures("one_thread")
ACCURACIES = (0.5, 0.6, 0.6, 0.55, 0.7, 0.1, 0.2, 0.3, 0.4)
RECIPE = Recipe(epochs=9, patience=3)


@pytest.fixture
def tested(monkeypatch):
    """The accuracies that tests find one after the other; the list of those still to come."""
    left = list(ACCURACIES)

    def find(*arguments, **options):
        return replace(evaluate(*arguments, **options), top1=left.pop(0), loss=1.0)

    monkeypatch.setattr(loop, "evaluate", find)
    return left


def train(output, recipe=RECIPE, resume=False):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
    console = PlainConsole(record=True, width=150)
    run = Run(output, torch.device("cpu"), console, resume=resume)
    return fit(model, load("digits", 512, seed=0, size=8), recipe, run), console.export_text()


def test_training_ends_after_so_many_epochs_without_a_better_test(tmp_path, tested):
    log, printed = train(tmp_path)
    assert len(log) == 8
    assert epochs_since_best(log) == 3
    assert "no better test for 3 epochs after epoch 5: ended early\n" in printed
    assert len((tmp_path / "log.jsonl").read_text().splitlines()) == 8
    assert (tmp_path / "curves.png").exists()
    again, printed = train(tmp_path, resume=True)  # is already at its end
    assert again == log
    assert "ended early" in printed
    more, _ = train(tmp_path, replace(RECIPE, patience=4), resume=True)
    assert [epoch.test_accuracy for epoch in more] == list(ACCURACIES)


def test_patience_outlasts_an_interruption(tmp_path, tested, monkeypatch):
    def interrupted(*arguments, **options):
        if len(tested) == 3:
            raise KeyboardInterrupt
        return original(*arguments, **options)

    original = loop.evaluate
    monkeypatch.setattr(loop, "evaluate", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path)
    monkeypatch.setattr(loop, "evaluate", original)
    log, _ = train(tmp_path, resume=True)
    assert len(log) == 8


def test_without_patience_every_epoch_is_trained(tmp_path, tested):
    log, printed = train(tmp_path, replace(RECIPE, patience=None))
    assert len(log) == 9
    assert "ended early" not in printed


def test_no_patience_at_all_is_refused_by_its_flag(tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(["train", "--patience", "0", "--output", str(tmp_path)])
    assert "argument --patience: patience is 0; expected a whole number of at least 1" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
