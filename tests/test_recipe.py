"""The recipe: ranges, presets, YAML, flags, schedules."""

import argparse
import math

import pytest

from gala_cuda.cli.flags_from_recipe import add_recipe_flags, given_flags
from gala_cuda.training.recipe import Recipe, RecipeError
from gala_cuda.training.recipe_file import PRESETS, as_yaml, resolve
from gala_cuda.training.schedule import learning_rate


def test_cosine():
    recipe = Recipe(warm_up=0.2, lr=1.0)
    assert learning_rate(recipe, 0) == 0.01
    assert learning_rate(recipe, 0.1) == 0.5
    assert learning_rate(recipe, 0.2) == 1
    assert learning_rate(recipe, 0.6) == pytest.approx(0.5)
    assert learning_rate(recipe, 1) == 0
    assert learning_rate(recipe, 1.5) == 0


def test_the_paper_decays_at_epochs_30_60_and_80():
    paper, steps = resolve("paper", {}), 1251  # of an ImageNet epoch
    assert (paper.model, paper.epochs, paper.batch_size, paper.peak_lr) == ("gala_resnet50", 90, 1024, 0.4)

    def share(epoch, step=0):
        return learning_rate(paper, (epoch * steps + step) / (90 * steps)) / paper.peak_lr

    assert [share(epoch) for epoch in (5, 30, 60, 80)] == pytest.approx([1, 0.1, 0.01, 0.001])
    assert [share(epoch, -1) for epoch in (30, 60, 80)] == pytest.approx([1, 0.1, 0.01])
    assert share(2.5) == pytest.approx(0.5)


@pytest.mark.parametrize("name", PRESETS)
def test_what_is_written_is_read_again(tmp_path, name):
    recipe = resolve(name, {"weights": "w.pth"})
    (tmp_path / "recipe.yaml").write_text(as_yaml(recipe))
    again = resolve(str(tmp_path / "recipe.yaml"), {})
    assert again.differences(recipe) == {}
    assert again == recipe
    assert resolve(str(tmp_path / "recipe.yaml"), {"seed": 5}).differences(recipe) == {"seed": (5, 0)}


def test_a_stored_learning_rate_is_derived_anew_unless_it_was_given(tmp_path):
    file = str(tmp_path / "recipe.yaml")
    (tmp_path / "recipe.yaml").write_text(as_yaml(Recipe(batch_size=128)))
    assert "lr: null\n" in (tmp_path / "recipe.yaml").read_text()
    assert "peak_lr: 0.2\n" in (tmp_path / "recipe.yaml").read_text()
    assert resolve(file, {"batch_size": 256}).peak_lr == 0.4
    (tmp_path / "recipe.yaml").write_text(as_yaml(Recipe(batch_size=128, lr=0.3)))
    assert resolve(file, {"batch_size": 256}).peak_lr == 0.3
    assert resolve(file, {"batch_size": 256, "lr_256": 0.5}).peak_lr == 0.5


def test_recipes_of_before_are_read(tmp_path):
    (tmp_path / "recipe.yaml").write_text("epochs: 3\nlr: 0.1\ntime_limit: null\nversions: {torch: 2.10}\ngit: null\n")
    assert resolve(str(tmp_path / "recipe.yaml"), {}) == Recipe(epochs=3, lr=0.1, init="paper")  # there was no other


def test_flags_replace_what_a_file_says_and_a_file_what_its_preset_says(tmp_path):
    file, parser = tmp_path / "mine.yaml", argparse.ArgumentParser()
    file.write_text("preset: modern\nepochs: 7\nlr: 5e-2\nlayers: [layer2, layer3.0]\n")
    add_recipe_flags(parser)
    flags = given_flags(parser.parse_args(["--epochs", "8", "--no-channels-last", "--decay-at", "0.5", "0.75"]))
    recipe = resolve(str(file), flags)
    assert (recipe.epochs, recipe.lr, recipe.layers) == (8, 0.05, ("layer2", "layer3.0"))
    assert (recipe.channels_last, recipe.decay_at, recipe.ema) == (False, (0.5, 0.75), 0.9998)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("epochs", 0), ("lr", math.nan), ("lr", math.inf), ("momentum", 1.0), ("weight_decay", -1.0),
        ("decay_at", (0.5, 1.0)), ("workers", -1), ("precision", "int8"),
    ],
)  # fmt: skip
def test_what_is_out_of_range_is_named(name, value):
    with pytest.raises(RecipeError, match=f"{name} is {value!r}".replace("(", r"\(").replace(")", r"\)")):
        Recipe(**{name: value})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param("epoch: 3", "recipe has a field 'epoch'; expected some of data,", id="unknown"),
        pytest.param("epochs: few", "epochs is 'few'; expected a whole number", id="text"),
        pytest.param("epochs: 2.5", "epochs is 2.5; expected a whole number", id="fraction"),
        pytest.param("compile: 1", "compile is 1; expected true or false", id="truth"),
        pytest.param("epochs: .inf", "epochs is inf; expected a whole number", id="infinite"),
        pytest.param("preset: [modern]", "preset is ['modern']; expected one of paper", id="preset-list"),
        pytest.param("data: [a, b]", "data is ['a', 'b']; expected text", id="list-for-text"),
        pytest.param("layers: layer3", "layers is 'layer3'; expected", id="no-list"),
        pytest.param("preset: best", "preset is 'best'; expected one of paper", id="preset"),
        pytest.param("- epochs", "holds a list; expected fields and values", id="list"),
        pytest.param("a: [", "is no YAML", id="syntax"),
        pytest.param(None, "expected one of paper, gala_tpu, modern, finetune, or a YAML file", id="missing"),
    ],
)
def test_a_bad_file_is_named(tmp_path, text, message):
    file = tmp_path / "recipe.yaml"
    if text is not None:
        file.write_text(text)
    with pytest.raises(RecipeError) as refused:
        resolve(str(file), {})
    assert message in str(refused.value)
