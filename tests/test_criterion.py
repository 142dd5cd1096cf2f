"""Losses: binary cross-entropy, weights of classes, what is made of targets; average precision."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from gala_cuda.cli.main import main
from gala_cuda.training import answers
from gala_cuda.training.answers import Scores, average_precisions
from gala_cuda.training.criterion import Criterion, class_weights
from gala_cuda.training.recipe import Recipe, RecipeError

pytestmark = pytest.mark.usefixtures("one_thread")
LABELS = torch.tensor([0, 0, 0, 0, 1, 1, 2, 2])
CLASSES = ("ant", "bee", "cat")
SEVERAL = torch.tensor([[1, 0], [1, 1], [1, 0], [0, 0]], dtype=torch.bool)
TINY = ["train", "--image-size", "8", "--width", "4", "--epochs", "2", "--batch-size", "256", "--quiet"]


def logits(n=8, classes=3):
    return torch.randn(n, classes, generator=torch.Generator().manual_seed(0))


def test_without_options_it_is_cross_entropy_to_the_bit():
    assert torch.equal(
        Criterion(smoothing=0.1)(logits(), LABELS), F.cross_entropy(logits(), LABELS, label_smoothing=0.1)
    )


def test_binary_cross_entropy_is_that_of_each_class():
    x, p = logits().double(), logits().double().sigmoid()
    yes = F.one_hot(LABELS, 3)
    for smoothing in (0.0, 0.3):
        target = yes * (1 - smoothing) + smoothing / 3
        expected = -(target * p.log() + (1 - target) * (1 - p).log()).mean()
        torch.testing.assert_close(Criterion("bce", smoothing)(x, LABELS), expected)
        torch.testing.assert_close(Criterion("bce", smoothing)(x, yes.double()), expected)  # as mixup gives them
    weights = torch.tensor([1.0, 2.0, 5.0], dtype=torch.float64)
    expected = -(yes * weights * p.log() + (1 - yes) * (1 - p).log()).mean()
    torch.testing.assert_close(Criterion("bce", weights=weights)(x, LABELS), expected)
    several = torch.randint(2, (8, 3), dtype=torch.bool)
    target = several * 0.8 + 0.1  # 0.2 shared by yes and no
    expected = -(target * p.log() + (1 - target) * (1 - p).log()).mean()
    torch.testing.assert_close(Criterion("bce", 0.2, multi_label=True)(x, several), expected)


def test_weighted_parts_of_a_batch_add_up_to_it():
    whole = Criterion(weights=torch.tensor([1.0, 2.0, 5.0]))
    parts = [whole(logits()[i : i + 4], LABELS[i : i + 4]) for i in (0, 4)]
    torch.testing.assert_close(torch.stack(parts).mean(), whole(logits(), LABELS))
    each = F.cross_entropy(logits(), LABELS, reduction="none") * torch.tensor([1.0, 2.0, 5.0])[LABELS]
    torch.testing.assert_close(whole(logits(), LABELS), each.mean())


def test_balanced_weights_give_every_class_the_same_part():
    weights = class_weights(Recipe(class_weights=("balanced",)), LABELS, CLASSES)
    torch.testing.assert_close(weights * LABELS.bincount(), torch.full((3,), 8 / 3))
    binary = class_weights(Recipe(class_weights=("balanced",), loss="bce"), LABELS, CLASSES)
    torch.testing.assert_close(binary, torch.tensor([4 / 4, 6 / 2, 6 / 2]))
    several = class_weights(Recipe(class_weights=("balanced",), multi_label=True), SEVERAL, ("a", "b"))
    torch.testing.assert_close(several, torch.tensor([1 / 3, 3 / 1]))


def test_weights_come_from_numbers_or_a_file(tmp_path):
    (tmp_path / "w.csv").write_text("class,weight\ncat,4\nant,1\nbee,2\n")
    (tmp_path / "bare.csv").write_text("cat,4\nant,1\nbee,2\n")
    expected = torch.tensor([1.0, 2.0, 4.0]) * 8 / (4 + 2 * 2 + 2 * 4)  # whose mean over the images is 1
    for given in (("1", "2", "4"), (str(tmp_path / "w.csv"),), (str(tmp_path / "bare.csv"),)):
        torch.testing.assert_close(class_weights(Recipe(class_weights=given), LABELS, CLASSES), expected)
        found = class_weights(Recipe(class_weights=given, loss="bce"), LABELS, CLASSES)
        assert found.tolist() == [1, 2, 4]
    assert class_weights(Recipe(), LABELS, CLASSES) is None


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            ("1", "2"),
            "class_weights is 1 2; expected balanced, a CSV file of class,weight, or a number above 0 for each",
        ),
        (("1", "2", "-1"), "of 3 classes: ant, bee, cat"),
        (("1", "2", "inf"), "a number above 0"),
        (("nowhere.csv",), "class_weights is 'nowhere.csv'; expected balanced, numbers, or a CSV file .*No such file"),
        (("w.csv",), "w.csv has not one weight for each class; 'dog' is on one side only"),
        (("balanced", "1", "1"), "class_weights is balanced 1 1; expected"),
    ],
)
def test_weights_that_do_not_fit_are_refused(tmp_path, monkeypatch, given, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "w.csv").write_text("ant,1\nbee,2\ncat,1\ndog,1\n")
    with pytest.raises(RecipeError, match=message):
        class_weights(Recipe(class_weights=given), LABELS, CLASSES)


def test_a_class_without_images_cannot_be_balanced():
    with pytest.raises(RecipeError, match="class_weights is balanced, and 'cat' is the label of none or of all images"):
        class_weights(Recipe(class_weights=("balanced",)), LABELS.clamp(max=1), CLASSES)


def test_average_precision_is_the_mean_precision_at_each_image_that_has_the_label():
    rng = np.random.default_rng(0)
    labels, scores = torch.from_numpy(rng.random((50, 4)) < 0.3), torch.from_numpy(rng.random((50, 4)))
    labels[:, 3] = False
    found = average_precisions(labels, scores)
    for k in range(3):
        right = labels[scores[:, k].argsort(descending=True), k].double()
        precision = right.cumsum(0) / torch.arange(1, 51)
        assert found[k].item() == pytest.approx((precision * right).sum().item() / right.sum().item())
    assert found[3].isnan()


def test_scores_of_all_processes_are_ranked_together(monkeypatch):
    scores, labels = torch.rand(9, 3), torch.rand(9, 3) < 0.5
    labels[0] = True
    parts = [Scores(), Scores()]
    for part, rows in zip(parts, (slice(0, 5), slice(5, 9)), strict=True):
        part.add(scores[rows], labels[rows])
    parts[1].add(scores[:0], labels[:0])  # an empty last batch
    mine = []
    monkeypatch.setattr(answers, "all_gather", lambda item: mine.append(item) or list(mine))
    parts[0].result()
    found = parts[1].result()["average_precision"]
    torch.testing.assert_close(found, average_precisions(labels, scores))


@pytest.mark.slow
@pytest.mark.parametrize("options", [["--loss", "bce"], ["--class-weights", "balanced", "--mixup", "0.2"]])
def test_digits_are_learned_with_other_losses(tmp_path, capsys, options):
    assert main([*TINY, "--output", str(tmp_path), *options, "--epochs", "6"]) == 0
    last = json.loads((tmp_path / "log.jsonl").read_text().splitlines()[-1])
    assert last["test_accuracy"] > 0.5
    assert main(["eval", str(tmp_path / "last.safetensors"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["loss"] == pytest.approx(last["test_loss"], rel=1e-6)


@pytest.mark.parametrize(("arguments", "message"), [
    ("--loss hinge", "argument --loss: invalid choice: 'hinge'"),
    ("--class-weights 1 2", "argument --class-weights: class_weights is 1 2; expected balanced"),
    ("--multi-label", "argument --multi-label: multi_label is True, and builtin:digits is no folder of pictures"),
    ("--multi-label --loss cross_entropy", "argument --loss: loss is cross_entropy; expected bce with multi_label"),
    ("--label-column x", "argument --label-column: label_column is x, and builtin:digits is no folder"),
])  # fmt: skip
def test_bad_arguments_are_named(tmp_path, capsys, arguments, message):
    with pytest.raises(SystemExit):
        main([*TINY, "--output", str(tmp_path / "run"), *arguments.split()])
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
