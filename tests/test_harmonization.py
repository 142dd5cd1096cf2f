"""The loss on input gradients against its formula in NumPy float64, and its gradient against finite differences."""

import numpy as np
import pytest
import torch
from scipy import signal
from torch import nn

from gala_cuda import GALA
from gala_cuda.clickme.loss import HarmonizationLoss

pytestmark = pytest.mark.usefixtures("one_thread")
CLOSE = {"rtol": 1e-6, "atol": 1e-9}


class Smooth(nn.Module):
    """A smooth network whose images have no influence on each other."""

    def __init__(self, channels=3, classes=4):
        super().__init__()
        self.conv, self.attention, self.fc = nn.Conv2d(channels, 6, 3), GALA(6), nn.Linear(6, classes)

    def forward(self, x):
        return self.fc(torch.tanh(self.attention(torch.tanh(self.conv(x)))).mean((2, 3)) * 5)


def standardised(h):
    return np.maximum((h - h.mean()) / (h.std() + 1e-5), 0)


def pyramid(h):
    """Five levels; where the side is even, the second zero of each pair beyond the far edge has no partner."""
    row = np.array([1, 4, 6, 4, 1]) / 16
    levels = [h]
    for _ in range(4):
        full = signal.convolve2d(levels[-1], np.outer(row, row), "full")  # full[i] is centred at i - 2
        first = [2 + (2 - (3 if side % 2 == 0 else 4) // 2) for side in levels[-1].shape]
        rows, columns = (first[axis] + 2 * np.arange(-(-side // 2)) for axis, side in enumerate(levels[-1].shape))
        levels.append(full[np.ix_(rows, columns)])
    return levels


def harmonization(model, images, labels, heatmap, has_map, largest=None):
    """(loss of each image, the maxima of z(g)), the gradient image by image."""
    losses, maxima = [], []
    for i, image in enumerate(images):
        image = image[None].detach().requires_grad_()
        (gradient,) = torch.autograd.grad(model(image)[0, labels[i]], image)
        ours, theirs = standardised(gradient[0].mean(0).numpy()), standardised(heatmap[i, 0].numpy())
        maxima.append(ours.max())
        top = maxima[i] if largest is None else largest[i]
        theirs = theirs / (theirs.max() + 1e-6) * (top + 1e-6)
        pairs = zip(pyramid(ours), pyramid(theirs), strict=True)
        losses.append(has_map[i].item() * np.mean([((a - b) ** 2).mean() for a, b in pairs]))
    return np.array(losses), maxima


def test_harmonization_is_that_of_its_formula_and_so_are_its_gradients():
    torch.manual_seed(0)
    model = Smooth().double()
    images, labels = torch.randn(3, 3, 21, 18, dtype=torch.float64), torch.tensor([0, 3, 1])
    heatmap, has_map = torch.rand(3, 1, 21, 18, dtype=torch.float64), torch.tensor([True, False, True])
    expected, maxima = harmonization(model, images, labels, heatmap, has_map)
    loss = HarmonizationLoss(weight=2.0).double()
    leaf = images.clone().requires_grad_()
    logits = model(leaf)
    found = loss.per_image(logits, leaf, labels, heatmap, has_map)
    torch.testing.assert_close(found, torch.from_numpy(expected), **CLOSE)
    value = loss(logits, leaf, labels, heatmap, has_map)
    torch.testing.assert_close(value, torch.tensor(2 * expected.mean()), **CLOSE)

    grads = torch.autograd.grad(value, list(model.parameters()), allow_unused=True)
    step = 1e-6
    for parameter, grad in zip(model.parameters(), grads, strict=True):
        direction = torch.randn_like(parameter)
        there = []
        for sign in (1, -1):
            parameter.data.add_(sign * step * direction)
            there.append(2 * harmonization(model, images, labels, heatmap, has_map, maxima)[0].mean())
            parameter.data.sub_(sign * step * direction)
        slope = (there[0] - there[1]) / (2 * step)
        along = 0.0 if grad is None else (grad * direction).sum().item()
        assert along == pytest.approx(slope, rel=1e-5, abs=1e-8)


def test_harmonization_leaves_out_images_without_a_map():
    torch.manual_seed(0)
    model, loss = Smooth(), HarmonizationLoss()
    images, labels = torch.randn(2, 3, 16, 16, requires_grad=True), torch.tensor([1, 2])
    heatmap, has_map = torch.rand(2, 1, 32, 32), torch.tensor([True, False])
    heatmap[1] = torch.nan

    def grads(images, labels, heatmap, has_map):
        values = loss.per_image(model(images), images, labels, heatmap, has_map)
        return values, torch.autograd.grad(values.sum(), model.conv.weight)[0]

    values, both = grads(images, labels, heatmap, has_map)
    _, first = grads(images[:1], labels[:1], heatmap[:1], has_map[:1])
    assert values[1] == 0
    torch.testing.assert_close(both, first)
    values, none = grads(images, labels, heatmap, torch.zeros_like(has_map))
    assert not values.any()
    assert not none.any()


def test_harmonization_of_constant_maps_and_gradients_is_finite():
    model, images = nn.Sequential(nn.Flatten(), nn.Linear(48, 4)), torch.ones(2, 3, 4, 4, requires_grad=True)
    nn.init.ones_(model[1].weight)
    loss = HarmonizationLoss()(
        model(images), images, torch.tensor([0, 1]), torch.ones(2, 1, 4, 4), torch.ones(2).bool()
    )
    (grad,) = torch.autograd.grad(loss, model[1].weight)
    assert loss == 0
    assert grad.isfinite().all()


IMAGES, LABELS = torch.ones(2, 3, 6, 6, requires_grad=True), torch.ones(2, dtype=torch.int64)
HEATMAP, HAS_MAP = torch.ones(2, 1, 6, 6), torch.ones(2, dtype=torch.bool)


@pytest.mark.parametrize(
    ("images", "logits", "labels", "message"),
    [
        (
            IMAGES.detach(),
            IMAGES.flatten(1),
            LABELS,
            r"images is float32 \[2, 3, 6, 6\] and requires_grad is F",
        ),
        (IMAGES, IMAGES, LABELS, r"logits is float32 \[2, 3, 6, 6\]; expected 2 dimensions, the first 2"),
        (IMAGES, IMAGES.flatten(1), LABELS[:1], r"labels is int64 \[1\]; expected 1 dimensions"),
    ],
)
def test_arguments_of_harmonization_are_named(images, logits, labels, message):
    with pytest.raises(ValueError, match=message):
        HarmonizationLoss()(logits, images, labels, HEATMAP, HAS_MAP)


def test_the_weight_is_1_unless_given():
    assert HarmonizationLoss().weight == 1
    with pytest.raises(ValueError, match="weight is -2; expected a number of at least 0"):
        HarmonizationLoss(-2)


@pytest.mark.parametrize("side", [(5, 6), (7, 1), (16, 3)], ids=str)
def test_a_map_of_another_size_is_resized(side):
    """Maps of another size are resized to the images before anything else."""
    torch.manual_seed(0)
    model, images, labels = Smooth(), torch.randn(2, 3, 16, 16, requires_grad=True), torch.tensor([1, 2])
    heatmap, has_map = torch.rand(2, 1, *side), torch.ones(2, dtype=torch.bool)
    resized = nn.functional.interpolate(heatmap, (16, 16), mode="bilinear", antialias=True)
    logits = model(images)
    found, expected = (HarmonizationLoss()(logits, images, labels, h, has_map) for h in (heatmap, resized))
    assert found == expected > 0
