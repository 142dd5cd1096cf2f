"""Attention maps and input gradients as pictures."""

import pytest
import torch
from torch import nn

from gala_cuda import gala_resnet18
from gala_cuda.inspection import attention_maps, input_gradient, overlay


def test_attention_maps_in_evaluation_mode():
    torch.manual_seed(0)
    model = gala_resnet18(3, ("layer2", "layer3.1"), in_channels=1, stem="small", width=4).train()
    images = torch.randn(2, 1, 12, 12)
    logits, maps = attention_maps(model, images)
    assert model.training
    assert {name: tuple(amap.shape) for name, amap in maps.items()} == {
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
    with torch.no_grad():  # as callers that evaluate may have it
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
