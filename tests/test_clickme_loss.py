"""The loss on attention maps against its formulas in NumPy float64; masks, zeros, gradients, saved memory."""

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage, signal
from torch.autograd.graph import saved_tensors_hooks

from gala_cuda import GALA, gala_resnet50
from gala_cuda.clickme.loss import WEIGHTS, GalaMapLoss
from gala_cuda.testing import paper

pytestmark = pytest.mark.usefixtures("one_thread")
CLOSE = {"rtol": 1e-6, "atol": 1e-9}
CHANNELS = (8, 8, 4)
SIZES = ((14, 14), (14, 14), (5, 7))


def bicubic(human, size):
    """Bicubic resizing by Pillow, which antialiases."""
    return np.asarray(Image.fromarray(human.astype(np.float32)).resize(size[::-1], Image.BICUBIC), np.float64)


def corners_aligned(human, size):
    for axis, count in enumerate(size):
        places = np.linspace(0, human.shape[axis] - 1, count)
        old = np.arange(human.shape[axis])
        human = np.apply_along_axis(lambda line, at, of: np.interp(at, of, line), axis, human, places, old)
    return human


def by_paper(maps, human):
    """Σ_l ‖R/‖R‖ - A/‖A‖‖ of one image."""
    total = 0.0
    for attn_map in maps:
        r = bicubic(human, attn_map.shape)
        total += np.linalg.norm(r / np.linalg.norm(r) - attn_map / np.linalg.norm(attn_map))
    return total


def by_released_code(maps, human):
    point = np.zeros((49, 49))
    point[24, 24] = 1
    blurred = signal.convolve2d(human, ndimage.gaussian_filter(point, 28), "same")
    total = 0.0
    for attn_map, channels in zip(maps, CHANNELS, strict=True):
        r, q = corners_aligned(blurred, attn_map.shape), attn_map**2 / channels
        total += 0.5 * ((r / np.sqrt(r.sum()) - q / np.sqrt(q.sum())) ** 2).sum()
    return total / len(maps)


def drawn(images=3, height=56, width=48, seed=0):
    """(maps, heatmap) in float64, the heatmap's numbers those of float32."""
    rng = torch.Generator().manual_seed(seed)
    maps = [torch.rand(images, *size, generator=rng, dtype=torch.float64) + 0.1 for size in SIZES]
    return maps, torch.rand(images, 1, height, width, generator=rng).double() ** 2


def loss_of(mode, **options):
    return GalaMapLoss(mode, channels=CHANNELS, **options)


@pytest.mark.parametrize(("mode", "formula"), [("paper", by_paper), ("gala_tpu", by_released_code)])
@pytest.mark.parametrize(("height", "width"), [(56, 48), (14, 14), (8, 9)], ids=["shrunk", "equal", "enlarged"])
def test_the_map_loss_is_that_of_its_formula(mode, formula, height, width):
    maps, heatmap = drawn(height=height, width=width)
    has_map = torch.tensor([True, False, True])
    of_images = [formula([attn_map[i].numpy() for attn_map in maps], heatmap[i, 0].numpy()) for i in (0, 2)]
    expected = torch.tensor([of_images[0], 0, of_images[1]], dtype=torch.float64)
    loss = loss_of(mode, weight=3.0)
    torch.testing.assert_close(loss.per_image(maps, heatmap, has_map), expected, **CLOSE)
    torch.testing.assert_close(loss(maps, heatmap, has_map), 3 * expected.sum() / 3, **CLOSE)
    named = {f"layer{i}": attn_map for i, attn_map in enumerate(maps)}
    assert torch.equal(loss(named, heatmap, has_map), loss(maps, heatmap, has_map))
    single = loss([attn_map.float() for attn_map in maps], heatmap.float(), has_map)
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), loss(maps, heatmap, has_map), rtol=1e-5, atol=0)


def test_parts_of_a_batch_add_up():
    maps, heatmap = drawn(4)
    has_map, loss = torch.tensor([True, True, False, True]), loss_of("paper")
    parts = [loss([attn_map[i : i + 2] for attn_map in maps], heatmap[i : i + 2], has_map[i : i + 2]) for i in (0, 2)]
    torch.testing.assert_close(sum(parts) / 2, loss(maps, heatmap, has_map))


@pytest.mark.parametrize("mode", ["paper", "gala_tpu"])
def test_images_without_a_map_have_no_influence_and_no_gradient(mode):
    maps, heatmap = drawn()
    has_map, loss = torch.tensor([True, False, True]), loss_of(mode)
    heatmap[1] = torch.nan
    maps[0][1], maps[1][1] = torch.inf, 0
    leaves = [attn_map.requires_grad_() for attn_map in maps]
    grads = torch.autograd.grad(loss(leaves, heatmap, has_map), leaves)
    for grad in grads:
        assert torch.equal(grad[1], torch.zeros_like(grad[1]))
        assert grad[[0, 2]].isfinite().all()
        assert grad[[0, 2]].abs().sum() > 0
    of_none = loss(leaves, heatmap, torch.zeros(3, dtype=torch.bool))
    assert of_none == 0
    assert not any(grad.any() for grad in torch.autograd.grad(of_none, leaves))


@pytest.mark.parametrize("mode", ["paper", "gala_tpu"])
@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        pytest.param(0.0, 1.0, id="no-attention"),
        pytest.param(1.0, 0.0, id="zero-human-map"),
        pytest.param(0.0, 0.0, id="both-zero"),
        pytest.param(2.0, 3.0, id="both-constant"),
    ],
)
def test_constant_maps_have_finite_gradients(mode, ours, theirs):
    leaves = [torch.full((2, *size), ours, requires_grad=True) for size in SIZES]
    value = loss_of(mode)(leaves, torch.full((2, 1, 20, 20), theirs), torch.ones(2, dtype=torch.bool))
    grads = torch.autograd.grad(value, leaves)
    assert value.isfinite()
    assert all(grad.isfinite().all() for grad in grads)


@pytest.mark.parametrize("mode", ["paper", "gala_tpu"])
def test_gradients_of_the_map_loss(mode):
    rng = torch.Generator().manual_seed(0)
    maps = [torch.rand(2, *size, generator=rng, dtype=torch.float64) + 0.1 for size in ((3, 4), (2, 2), (3, 4))]
    heatmap, has_map = torch.rand(2, 1, 9, 9, generator=rng, dtype=torch.float64), torch.tensor([True, False])
    leaves = [attn_map.requires_grad_() for attn_map in maps]
    loss = loss_of(mode, weight=1.0)
    assert torch.autograd.gradcheck(lambda *layers: loss(layers, heatmap, has_map), leaves)


@pytest.mark.parametrize("mode", ["paper", "gala_tpu"])
def test_gradients_reach_the_attention_layer(backend, mode):
    """The gradient through the fused map is that through an attention that is written out."""
    torch.manual_seed(0)
    layer, loss = GALA(8, init="paper", backend=backend, dtype=torch.float64), GalaMapLoss(mode, weight=6.0, channels=8)
    x, heatmap = torch.randn(2, 8, 5, 6, dtype=torch.float64), torch.rand(2, 1, 20, 24, dtype=torch.float64)
    has_map = torch.ones(2, dtype=torch.bool)
    _, attn_map = layer(x, return_map=True)
    found = torch.autograd.grad(loss([attn_map], heatmap, has_map), layer.parameters())
    _, attn_map = paper(x, layer.weights, None, "tanh")
    expected = torch.autograd.grad(loss([attn_map], heatmap, has_map), layer.parameters())
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, **CLOSE)


def kept(run):
    """Bytes of distinct tensors saved for backward, and the number of values of the largest."""
    storages, largest = {}, 0

    def pack(tensor):
        nonlocal largest
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
        largest = max(largest, tensor.numel())
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        result = run()
    return sum(storages.values()), largest, result


def test_no_tensor_of_the_attention_s_size_is_kept():
    """At the paper's shape, six layers of 1024 channels and 14x14 pixels: less than 1 % of what the network saves."""
    torch.manual_seed(0)
    model, images = gala_resnet50(10), torch.randn(1, 3, 224, 224)
    heatmap, has_map = torch.rand(1, 1, 224, 224), torch.ones(1, dtype=torch.bool)
    plain, _, _ = kept(lambda: model(images).logsumexp(1).sum())
    _, maps = model(images, return_maps=True)
    assert {tuple(attn_map.shape) for attn_map in maps.values()} == {(1, 14, 14)}
    assert len(maps) == 6
    _, largest, _ = kept(lambda: GalaMapLoss()(maps, heatmap, has_map))
    assert largest <= 14 * 14
    taught, _, _ = kept(lambda: taught_loss(model, images, heatmap, has_map))
    assert plain < taught < 1.01 * plain


def taught_loss(model, images, heatmap, has_map):
    logits, maps = model(images, return_maps=True)
    return logits.logsumexp(1).sum() + GalaMapLoss()(maps, heatmap, has_map)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "l1"}, "mode is 'l1'; expected one of 'paper', 'gala_tpu'"),
        ({"weight": -1}, "weight is -1; expected a number of at least 0"),
        ({"weight": float("nan")}, "weight is nan"),
        ({"mode": "gala_tpu"}, "channels is None; expected the attention's channels"),
        ({"mode": "gala_tpu", "channels": (8, 0)}, r"channels is \(8, 0\)"),
    ],
)
def test_options_out_of_range_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        GalaMapLoss(**options)


def test_weights_are_the_papers_unless_given():
    assert (GalaMapLoss().weight, GalaMapLoss("gala_tpu", channels=4).weight) == (6, 1e-5)
    assert WEIGHTS == {"paper": 6, "gala_tpu": 1e-5, "harmonization": 1}


MAPS, HEATMAP, HAS_MAP = [torch.ones(2, 3, 3)], torch.ones(2, 1, 6, 6), torch.ones(2, dtype=torch.bool)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([], HEATMAP, HAS_MAP), r"maps is empty; expected at least one \[N, H, W\]"),
        (([*MAPS, torch.ones(3, 3, 3)], HEATMAP, HAS_MAP), r"maps has float32 \[3, 3, 3\]"),
        (
            ([torch.ones(2, 3, 3, dtype=torch.int64)], HEATMAP, HAS_MAP),
            r"maps has int64 \[2, 3, 3\]; expected floating",
        ),
        (
            (MAPS, torch.ones(2, 6, 6), HAS_MAP),
            r"heatmap is float32 \[2, 6, 6\]; expected floating-point \[2, 1, H', W'\]",
        ),
        ((MAPS, HEATMAP, torch.ones(2)), r"has_map is float32 \[2\]; expected bool \[2\]"),
        ((MAPS, HEATMAP, HAS_MAP[:1]), r"has_map is bool \[1\]"),
    ],
)
def test_arguments_that_do_not_fit_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        GalaMapLoss()(*arguments)


def test_a_number_of_channels_that_does_not_fit_is_named():
    with pytest.raises(ValueError, match="maps has 1 layers; expected 3, as channels has"):
        loss_of("gala_tpu")(MAPS, HEATMAP, HAS_MAP)
