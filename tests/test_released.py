"""The released code's variant: the layer against its formulas, its network, and its recipe."""

import json

import pytest
import torch
import torch.nn.functional as F

import gala_cuda
from gala_cuda import GALA, ReleasedGALA, gala_preact_resnet50, preact_resnet50
from gala_cuda.cli.main import main
from gala_cuda.clickme.loss import GalaMapLoss
from gala_cuda.models.with_maps import gala_layers
from gala_cuda.networks import read_weights, rebuild
from gala_cuda.training.optimizer import build_optimizer
from gala_cuda.training.recipe_file import resolve

pytestmark = pytest.mark.usefixtures("one_thread")
DOUBLE = torch.float64


def layer(channels=8, dtype=DOUBLE, **options):
    torch.manual_seed(0)
    made = ReleasedGALA(channels, dtype=dtype, **options)
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if name.startswith("b_"):
                parameter.normal_(std=0.3)
    return made


def image(*shape, dtype=DOUBLE, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE).to(dtype)


def by_formula(made, x):
    """A [N, C, H, W], pixel by pixel."""
    n, _, height, width = x.shape
    p = x.mean((2, 3))
    g = (made.w_expand @ (made.w_shrink @ p.T + made.b_w_shrink[:, None]).relu() + made.b_w_expand[:, None]).relu().T
    hidden = (torch.einsum("rc,nchw->nrhw", made.v_shrink, x) + made.b_v_shrink[:, None, None]).relu()
    around = F.pad(hidden, (2, 2, 2, 2))
    s = torch.empty(n, height, width, dtype=x.dtype)
    for i in range(height):
        for j in range(width):
            seen = torch.einsum("qrij,nrij->nq", made.v_spatial, around[:, :, i : i + 5, j : j + 5])
            s[:, i, j] = (seen + made.b_v_spatial).relu() @ made.v_collapse + made.b_v_collapse
    total = made.a * g + (made.a + made.m * g) * s[..., None, None].squeeze(-1).permute(1, 2, 0, 3)  # [H, W, N, C]
    return total.sigmoid().permute(2, 3, 0, 1)


@torch.no_grad()
def test_it_is_its_formula():
    made, x, residual = layer(), image(2, 8, 4, 3), image(2, 8, 4, 3, seed=2)
    expected = by_formula(made, x)
    torch.testing.assert_close(made.attention(x), expected)
    torch.testing.assert_close(made(x), x * expected)
    out, attn_map = made(x, residual, return_map=True)
    torch.testing.assert_close(out, (x * expected + residual).relu())
    torch.testing.assert_close(attn_map, expected.norm(dim=1))


@torch.no_grad()
def test_where_the_convolution_does_nothing_and_g_is_positive_it_is_gala():
    made = layer()
    made.v_spatial.zero_()
    made.b_v_spatial.zero_()
    made.v_spatial[range(2), range(2), 2, 2] = 1
    made.w_expand.abs_()
    made.b_w_expand.abs_()
    plain = GALA(8, squash="sigmoid", bias=True, dtype=DOUBLE)
    plain.load_state_dict({name: value for name, value in made.state_dict().items() if "spatial" not in name})
    x = image(2, 8, 4, 3)
    torch.testing.assert_close(made(x), plain(x))


def test_gradients_of_first_and_second_order():
    made, x = layer(4), image(1, 4, 3, 3).requires_grad_()
    names = [name for name, _ in made.named_parameters()]

    def call(x, *parameters):
        return torch.func.functional_call(made, dict(zip(names, parameters, strict=True)), (x,), {"return_map": True})

    inputs = (x, *(parameter.detach().requires_grad_() for parameter in made.parameters()))
    assert torch.autograd.gradcheck(call, inputs)
    assert torch.autograd.gradgradcheck(call, inputs)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@torch.no_grad()
def test_dtype_and_memory_format_stay(dtype):
    made = layer(dtype=torch.float32)
    x = image(2, 8, 6, 6, dtype=dtype).to(memory_format=torch.channels_last)
    out, attn_map = made(x, return_map=True)
    assert out.dtype == dtype
    assert attn_map.dtype == torch.float32
    assert out.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(out, (x.float() * made.attention(x.float())).to(dtype))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(made(x), out)


def test_the_numbers_of_weights_are_those_of_the_docstring():
    made = ReleasedGALA(1024)
    plain = sum(parameter.numel() for name, parameter in made.named_parameters() if "spatial" not in name)
    assert plain == 790_273
    assert made.v_spatial.numel() == 25 * 256**2 == 1_638_400
    assert not any(parameter.any() for name, parameter in made.named_parameters() if name.startswith("b_"))
    before = made.v_spatial.clone()
    made.reset_parameters()
    assert not torch.equal(made.v_spatial, before)
    assert made.v_spatial.std().item() == pytest.approx((2 / (25 * 256)) ** 0.5, rel=0.01)


def test_what_is_not_for_the_layer_is_refused():
    made, x = layer(), image(2, 8, 3, 3)
    for wrong, error, message in (
        (x[:, :4], ValueError, "x has 4 channels"),
        (x.float(), TypeError, "x is torch.float32; expected this layer's torch.float64"),
        (x[0], ValueError, "x has"),
        ([1], TypeError, "x is a list"),
    ):
        with pytest.raises(error, match=message):
            made(wrong)
    for residual in (x[:1], x.float()):
        with pytest.raises(ValueError, match=r"residual is torch\.float"):
            made(x, residual)


def small(make, classes=3, **options):
    torch.manual_seed(0)
    return make(classes, in_channels=1, stem="small", width=4, **options)


def test_the_network_is_the_plain_one_with_attention_on_the_inputs():
    model, plain, x = small(gala_preact_resnet50), small(preact_resnet50), image(2, 1, 16, 16, dtype=torch.float32)
    own = {name: tensor for name, tensor in model.state_dict().items() if ".attention." not in name}
    assert own.keys() == plain.state_dict().keys()
    assert all(torch.equal(tensor, plain.state_dict()[name]) for name, tensor in own.items())
    assert [(name, attention.channels) for name, attention in gala_layers(model)] == [
        ("layer3.0", 32), *((f"layer3.{i}", 64) for i in range(1, 6))]  # fmt: skip
    seen = []
    model.layer3[0].register_forward_pre_hook(lambda block, args: seen.append(args[0]))
    logits, maps = model.eval()(x, return_maps=True)
    assert torch.equal(model(x), logits)
    assert [tuple(attn_map.shape) for attn_map in maps.values()] == [(2, 8, 8), *[(2, 4, 4)] * 5]
    torch.testing.assert_close(maps["layer3.0"], model.layer3[0].attention.attention(seen[0]).norm(dim=1))
    attended = model.layer3[0].attention(seen[0])
    first = F.relu(model.layer3[0].bn1(attended))
    torch.testing.assert_close(
        model.layer3[0](seen[0]) - model.layer3[0].downsample(first),
        model.layer3[0].conv3(F.relu(model.layer3[0].bn3(model.layer3[0].conv2(F.relu(model.layer3[0].bn2(
            model.layer3[0].conv1(first))))))), rtol=1e-4, atol=1e-5,
    )  # fmt: skip
    block, inside = model.layer3[1], image(2, 64, 4, 4, dtype=torch.float32)
    for parameter in (block.conv3.weight,):
        torch.nn.init.zeros_(parameter)
    assert torch.equal(block(inside), inside)  # the identity goes past the attention


def test_wrong_options_of_the_network_are_named():
    for options, message in (
        ({"init": "half"}, "init is 'half'; expected 'paper'"), ({"stem": "big"}, "stem is 'big'"),
        ({"layers": "layer9"}, "layers names 'layer9'"), ({"width": 0}, "width is 0"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            gala_preact_resnet50(**options)
    with pytest.raises(ValueError, match="this network has no GALA block; see gala_preact_resnet50"):
        small(preact_resnet50)(torch.zeros(1, 1, 16, 16), return_maps=True)


def test_its_recipe_leaves_attention_out_of_the_weight_decay_and_teaches_its_maps():
    recipe, model = resolve("gala_tpu", {}), small(gala_preact_resnet50)
    assert (recipe.model, recipe.clickme_loss, recipe.map_weight, recipe.peak_lr) == (
        "gala_preact_resnet50", "gala_tpu", 1e-5, 0.4)  # fmt: skip
    decay = {
        id(p): group["weight_decay"] for group in build_optimizer(model, recipe).param_groups for p in group["params"]
    }
    for name, parameter in model.named_parameters():
        decays = parameter.dim() > 1 and ".attention." not in name
        assert decay[id(parameter)] == (1e-4 if decays else 0), name
    loss = GalaMapLoss("gala_tpu", channels=[attention.channels for _, attention in gala_layers(model)])
    _, maps = model(image(2, 1, 16, 16, dtype=torch.float32), return_maps=True)
    loss(maps, torch.rand(2, 1, 16, 16), torch.tensor([True, True])).backward()
    assert model.layer3[5].attention.v_spatial.grad.any()
    assert model.layer3[0].attention.v_spatial.grad.any()


@pytest.mark.slow
def test_the_recipe_from_training_to_prediction(tmp_path, capsys, picture_folder):
    run = ["train", "--recipe", "gala_tpu", "--data", str(picture_folder), "--image-size", "16", "--width", "4"]
    run += ["--epochs", "1", "--batch-size", "64", "--workers", "0", "--quiet", "--output", str(tmp_path)]
    assert main(run) == 0
    log = json.loads((tmp_path / "log.jsonl").read_text())
    weights, network = read_weights(tmp_path / "last.safetensors")
    assert (network.model, network.init) == ("gala_preact_resnet50", "paper")
    assert gala_layers(rebuild(network, weights))[5][1].v_spatial.shape == (16, 16, 5, 5)
    assert main(["eval", str(tmp_path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["loss"] == log["test_loss"]
    table = tmp_path / "p.jsonl"
    pictures = str(picture_folder / "val/china")
    assert main(["predict", str(tmp_path), pictures, "--maps", "--workers", "0", "--output", str(table)]) == 0
    assert len(json.loads(table.read_text().splitlines()[0])["attention"]) == 8
    with pytest.raises(SystemExit):
        main([*run[:-1], str(tmp_path / "other"), "--init", "half"])
    assert "argument --init: init is 'half'; expected 'paper'" in capsys.readouterr().err


def test_all_names_are_exported():
    assert {"ReleasedGALA", "gala_preact_resnet50", "preact_resnet50"} <= set(gala_cuda.__all__)
