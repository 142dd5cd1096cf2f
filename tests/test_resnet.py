"""ResNet, SE-ResNet and GALA-ResNet against torchvision, timm, published sizes and the formulas."""

import pytest
import torch
import torch.nn.functional as F
from networks import images, randomized, relative_difference

import gala_cuda
from gala_cuda import GALA, SqueezeExcite

DOUBLE = torch.float64


def small_gala(**options) -> gala_cuda.ResNet:
    torch.manual_seed(0)
    return randomized(gala_cuda.gala_resnet26(5, width=8, stem="small", **{"dtype": DOUBLE, **options}))


@pytest.mark.parametrize("name", ["resnet18", "resnet34", "resnet50", "resnet101"])
def test_state_dicts_are_torchvisions(name):
    models = pytest.importorskip("torchvision.models", reason="torchvision is not installed")
    with torch.device("meta"):
        theirs = getattr(models, name)().state_dict()
    ours = getattr(gala_cuda, name)(device="meta").state_dict()
    assert [(key, t.shape, t.dtype) for key, t in ours.items()] == [
        (key, t.shape, t.dtype) for key, t in theirs.items()
    ]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_torchvision_weights_give_torchvision_outputs(name):
    models = pytest.importorskip("torchvision.models", reason="torchvision is not installed")
    torch.manual_seed(0)
    theirs = randomized(getattr(models, name)(num_classes=7)).double()
    ours = getattr(gala_cuda, name)(7, dtype=DOUBLE)
    ours.load_state_dict(theirs.state_dict())
    x = images()
    with torch.no_grad():
        assert torch.equal(ours(x), theirs(x))  # in training mode, which updates the running statistics
        assert torch.equal(ours.eval()(x), theirs.eval()(x))


def test_timm_resnet26_weights_give_timm_outputs():
    timm = pytest.importorskip("timm", reason="timm is not installed")
    torch.manual_seed(0)
    theirs = randomized(timm.create_model("resnet26", num_classes=7)).double().eval()
    ours = gala_cuda.resnet26(7, dtype=DOUBLE).eval()
    ours.load_state_dict(theirs.state_dict())
    with torch.no_grad():
        assert relative_difference(ours(images()), theirs(images())) < 1e-14


SIZES = [  # published: torchvision's table, timm's seresnet50, the paper's 4.74 M for six blocks
    pytest.param(gala_cuda.resnet18, {}, 11_689_512, id="resnet18"),
    pytest.param(gala_cuda.resnet50, {}, 25_557_032, id="resnet50"),
    pytest.param(gala_cuda.resnet101, {}, 44_549_160, id="resnet101"),
    pytest.param(gala_cuda.se_resnet50, {}, 28_088_024, id="se_resnet50"),
    pytest.param(gala_cuda.gala_resnet50, {}, 25_557_032 + 6 * 790_273, id="gala_resnet50"),
    pytest.param(
        gala_cuda.gala_resnet50,
        {"layers": "layer3.2", "init": "paper"},
        25_557_032 + 3 * 256 * 1024 + 256 + 2 * 1024,
        id="one-block",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("build", "options", "expected"), SIZES)
def test_number_of_parameters(build, options, expected):
    assert sum(p.numel() for p in build(device="meta", **options).parameters()) == expected


@pytest.mark.parametrize("depth", [18, 26, 34, 50, 101])
def test_siblings_add_attention_keys_only(depth):
    plain, se, gala = (
        set(getattr(gala_cuda, f"{kind}resnet{depth}")(device="meta").state_dict()) for kind in ("", "se_", "gala_")
    )
    assert plain < se
    assert plain < gala
    assert {key.split(".attention.")[0] for key in se - plain} == {
        key.rsplit(".conv1", 1)[0] for key in plain if ".conv1" in key
    }
    assert {key.split(".")[0] for key in gala - plain} == {"layer3"}
    assert "layer3.0.attention.w_shrink" in gala


def test_layers_choose_stages_and_blocks():
    model = gala_cuda.gala_resnet50(layers=("layer2", "layer3.1"), device="meta")
    found = [name for name, block in model.blocks() if isinstance(block.attention, GALA)]
    assert found == ["layer2.0", "layer2.1", "layer2.2", "layer2.3", "layer3.1"]


def test_the_same_seed_gives_the_plain_networks_weights():
    torch.manual_seed(3)
    plain = gala_cuda.resnet26(5, width=8).state_dict()
    torch.manual_seed(3)
    gala = gala_cuda.gala_resnet26(5, width=8, init="paper").state_dict()
    assert all(torch.equal(gala[key], value) for key, value in plain.items())
    torch.manual_seed(3)
    half = gala_cuda.gala_resnet26(5, width=8).state_dict()
    doubled = {key for key, value in plain.items() if not torch.equal(half[key], value)}
    assert doubled == {"layer3.0.bn3.weight", "layer3.1.bn3.weight"}
    assert all(torch.equal(half[key], 2 * plain[key]) for key in doubled)
    torch.manual_seed(3)
    converted = gala_cuda.convert(gala_cuda.resnet26(5, width=8)).state_dict()
    assert all(torch.equal(half[key], value) for key, value in converted.items())


def test_initial_weights():
    torch.manual_seed(0)
    model = gala_cuda.resnet50(zero_init_residual=True)
    conv = model.layer2[1].conv2.weight  # 147,456 values, whose standard deviation is known to 0.2 %
    assert conv.std().item() == pytest.approx((2 / (128 * 9)) ** 0.5, rel=0.01)
    blocks = [block for _, block in model.blocks()]
    assert all(block.bn3.weight.eq(0).all() and block.bn1.weight.eq(1).all() for block in blocks)


def test_every_backend_gives_the_references_network(backend):
    ours, reference = small_gala(backend=backend), small_gala(backend="reference")
    x, target = images(4, 16), torch.tensor([0, 1, 2, 3])
    gradients = []
    for model in (ours, reference):
        logits = model(x)
        F.cross_entropy(logits, target).backward()
        gradients.append([logits.detach(), *(p.grad for p in model.parameters())])
    for found, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", ["gala_resnet18", "gala_resnet26", "se_resnet18", "se_resnet26"])
def test_attention_sits_after_the_last_batch_norm(name):
    torch.manual_seed(0)
    block = randomized(getattr(gala_cuda, name)(5, width=8, dtype=DOUBLE)).eval().layer3[0]
    last = block.bn3 if hasattr(block, "bn3") else block.bn2
    seen = {}
    last.register_forward_hook(lambda module, inputs, output: seen.update(x=output.clone()))
    u = torch.randn(2, block.conv1.in_channels, 8, 8, dtype=DOUBLE)
    with torch.no_grad():
        out, x = block(u), seen["x"]
        attended = x * block.attention.attention(x) if name.startswith("gala") else block.attention(x)
        expected = torch.relu(attended + block.downsample(u))
    torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-12)


def test_squeeze_excite_is_the_formula():
    torch.manual_seed(0)
    layer = SqueezeExcite(32, reduction=4, dtype=DOUBLE)
    x = torch.randn(2, 32, 3, 5, dtype=DOUBLE)
    w1, b1, w2, b2 = layer.parameters()
    z = torch.einsum("nchw->nc", x) / 15
    expected = x * torch.sigmoid((z @ w1.T + b1).clamp(min=0) @ w2.T + b2).reshape(2, 32, 1, 1)
    assert w1.shape == (8, 32)
    torch.testing.assert_close(layer(x), expected, rtol=1e-12, atol=1e-12)
    with pytest.raises(ValueError, match="reduction is 0"):
        SqueezeExcite(32, reduction=0)


def test_maps_are_the_norms_of_the_attention():
    model = small_gala(layers=("layer2.1", "layer3")).eval()
    seen = {}
    for name, block in model.blocks():
        block.bn3.register_forward_hook(lambda module, inputs, output, name=name: seen.update({name: output}))
    x = images(2, 16)
    logits, maps = model(x, return_maps=True)
    assert list(maps) == ["layer2.1", "layer3.0", "layer3.1"]
    for name, block in model.blocks():
        if name in maps:
            expected = block.attention.attention(seen[name]).norm(dim=1)
            torch.testing.assert_close(maps[name], expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(logits, model(x), rtol=0, atol=0)
    sum(attn_map.sum() for attn_map in maps.values()).backward()
    assert model.layer3[1].attention.v_collapse.grad.abs().max() > 0
    assert model.conv1.weight.grad.abs().max() > 0


def test_maps_need_gala():
    for model in (gala_cuda.resnet18(5, width=8), gala_cuda.se_resnet18(5, width=8)):
        with pytest.raises(ValueError, match="return_maps is True, but this network has no GALA"):
            model(images(1, 32, torch.float32), return_maps=True)


@pytest.mark.slow
def test_one_graph_under_compile():
    model = small_gala().eval()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    x = images(2, 16)
    torch.testing.assert_close(compiled(x), model(x), rtol=1e-12, atol=1e-12)
    logits, maps = compiled(x, return_maps=True)
    expected_logits, expected_maps = model(x, return_maps=True)
    torch.testing.assert_close((logits, maps), (expected_logits, expected_maps), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("stem", "side"), [("imagenet", 8), ("small", 32)])
def test_stem_sets_the_resolution(stem, side):
    model = gala_cuda.resnet18(5, in_channels=1, stem=stem, width=8)
    seen = {}
    model.layer1.register_forward_hook(lambda module, inputs, output: seen.update(shape=output.shape))
    assert model(torch.zeros(2, 1, 32, 32)).shape == (2, 5)
    assert seen["shape"] == (2, 8, side, side)


BAD = [
    pytest.param({"stem": "cifar"}, "stem is 'cifar'; expected one of 'imagenet', 'small'", id="stem"),
    pytest.param({"width": 0}, "width is 0", id="width"),
    pytest.param({"in_channels": 1.0}, "in_channels is 1.0", id="in_channels"),
    pytest.param({"layers": ("layer3", "layer3.9")}, r"'layer3\.9'; .*layer3\.0, layer3\.1, lay", id="layers"),
    pytest.param({"layers": ()}, "layers names nothing", id="no layers"),
    pytest.param({"layers": "layer"}, "layers names 'layer'", id="half a name"),
    pytest.param({"reduction": 0}, "reduction is 0", id="reduction"),
    pytest.param({"squash": "relu"}, "squash is 'relu'", id="squash"),
]


@pytest.mark.parametrize(("options", "message"), BAD)
def test_bad_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        gala_cuda.gala_resnet18(5, device="meta", **options)
