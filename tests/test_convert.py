"""``convert`` on ResNets of torchvision, of timm and of this package."""

import copy
import io
import subprocess
import sys
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from networks import NETWORKS, VARIANTS, images, network, randomized, relative_difference
from torch import nn

import gala_cuda
from gala_cuda import GALA, convert


def whole(library: str, name: str) -> nn.Module:
    """One of the networks that people convert, of full size."""
    if library == "torchvision":
        models = pytest.importorskip("torchvision.models", reason="torchvision is not installed")
        return getattr(models, name)(num_classes=5)
    timm = pytest.importorskip("timm", reason="timm is not installed")
    return timm.create_model(name, num_classes=5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("library", "name", "squash"),
    [
        ("torchvision", "resnet50", "tanh"),
        ("timm", "resnet50", "sigmoid"),
        ("torchvision", "resnet18", "sigmoid"),
        ("timm", "resnet18", "tanh"),
    ],
)
def test_keep_output_of_whole_networks(library, name, squash):
    torch.manual_seed(0)
    model = randomized(whole(library, name)).double().eval()
    x = images(2, 64)
    with torch.no_grad():
        expected = model(x)
        assert convert(model, squash=squash, keep_output=True) is model
        assert relative_difference(model(x), expected) < 1e-12
    assert len(blocks_with_gala(model)) == {"resnet18": 2, "resnet50": 6}[name]


@pytest.mark.slow
@pytest.mark.parametrize("name", [*NETWORKS, *VARIANTS])
def test_keep_output_in_training_mode(name):
    """In training, with the batch's statistics and, where there are any, the same random drops in the same places."""
    model = network(name).train()
    converted = convert(copy.deepcopy(model), ("layer2", "layer3"), keep_output=True)
    outputs = []
    for each in (model, converted):
        torch.manual_seed(11)
        with torch.no_grad():
            outputs.append(each(images(8)))
    assert relative_difference(outputs[1], outputs[0]) < 1e-12
    kept = converted.state_dict()
    running = [key for key in kept if key.startswith("layer4") and key.endswith(("running_mean", "running_var"))]
    assert all(relative_difference(kept[key], model.state_dict()[key]) < 1e-12 for key in running)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_keep_output_in_lower_precision(dtype):
    model = network("torchvision-bottleneck", dtype).eval()
    with torch.no_grad():
        expected = model(images(dtype=dtype))
        found = convert(model, keep_output=True)(images(dtype=dtype))
    assert relative_difference(found, expected) < 8 * torch.finfo(dtype).eps


@pytest.mark.slow
@pytest.mark.parametrize(("name", "squash"), [("torchvision-basic", "tanh"), ("timm-basic", None)])
def test_keep_output_trains_afterwards(name, squash):
    model = convert(network(name), squash=squash, keep_output=True).train()
    assert model.layer3[0].attention.squash == "tanh"
    layers = blocks_with_gala(model)
    x, target = images(8, 16), torch.arange(8) % 5
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
    losses, moved = [], []
    for _ in range(5):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), target)
        loss.backward()
        losses.append(loss.item())
        moved.append({name for layer in layers for name, p in layer.named_parameters() if p.grad.any()})
        optimizer.step()
    everything = {name for name, _ in layers[0].named_parameters()}
    assert moved[0] >= {"w_expand", "v_collapse", "b_w_expand", "b_v_collapse"}
    assert moved[1] == everything
    for layer in layers:
        assert all(p.grad.any() for p in layer.parameters())
    assert losses[-1] < 0.7 * losses[0]


def blocks_with_gala(model: nn.Module) -> list[GALA]:
    return [module for module in model.modules() if isinstance(module, GALA)]


@pytest.mark.parametrize("init", ["half", "paper"])
@pytest.mark.parametrize("name", NETWORKS)
def test_a_converted_block_is_the_formula(name, init):
    model = convert(network(name), "layer3.0", init=init).eval()
    block = model.layer3[0]
    last = block.bn3 if hasattr(block, "bn3") else block.bn2
    seen = {}
    last.register_forward_hook(lambda module, inputs, output: seen.update(x=output.clone()))
    u = torch.randn(2, block.conv1.in_channels, 8, 8, dtype=torch.float64)
    with torch.no_grad():
        out = block(u)
        attended = seen["x"] * block.attention.attention(seen["x"])
        expected = torch.relu(attended + block.downsample(u))
    torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-12)
    assert any(name.startswith("b_") for name, _ in block.attention.named_parameters()) == (init == "half")


@pytest.mark.parametrize("keep_output", [False, True])
def test_everything_trains_behind_a_scale_of_0(keep_output):
    """timm's networks start with the last scale of each block at 0."""
    torch.manual_seed(0)
    model = convert(timm.create_model("resnet18", num_classes=3), keep_output=keep_output)
    assert not model.layer3[0].bn2.weight.any()
    optimizer, reached = torch.optim.SGD(model.parameters(), lr=0.1), set()
    for seed in range(6):
        optimizer.zero_grad()
        x = torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(seed))
        torch.nn.functional.cross_entropy(model(x), torch.tensor([0, 1, 2, 0])).backward()
        optimizer.step()
        reached |= {name for name, p in model.named_parameters() if p.grad.any()}
    assert reached == {name for name, _ in model.named_parameters()}


def test_the_papers_start_would_never_leave_a_scale_of_0():
    with pytest.raises(ValueError, match=r"layer3\.0 ends in a normalisation of scale 0, behind which GALA with init="):
        convert(timm.create_model("resnet18"), init="paper")
    with pytest.raises(ValueError, match="zero_init_residual is True; expected False with init='paper' and tanh"):
        gala_cuda.gala_resnet18(zero_init_residual=True, init="paper")
    convert(timm.create_model("resnet18", zero_init_last=False), init="paper")
    convert(timm.create_model("resnet18"), init="paper", squash="sigmoid")
    gala_cuda.gala_resnet18(zero_init_residual=True, init="paper", squash="sigmoid", width=4)


def test_other_activations_are_kept():
    model = convert(network("timm-everything"), "layer3.1").eval()
    block = model.layer3[1]
    seen = {}
    block.bn3.register_forward_hook(lambda module, inputs, output: seen.update(x=output.clone()))
    u = torch.randn(2, block.conv1.in_channels, 4, 4, dtype=torch.float64)
    with torch.no_grad():
        out = block(u)
        expected = F.silu(seen["x"] * block.attention.attention(seen["x"]) + u)
    torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("name", "training", "fused"),
    [
        ("torchvision-basic", True, True),
        ("torchvision-bottleneck", True, True),
        ("timm-basic", True, True),
        ("timm-drop-path", False, True),
        ("timm-drop-path", True, False),
        ("timm-everything", False, False),
        ("ours-bottleneck", True, True),
    ],
)
def test_fused_where_the_block_allows_it(name, training, fused):
    model = convert(network(name), "layer3.1").train(training)
    given = []
    model.layer3[1].attention.register_forward_pre_hook(
        lambda module, inputs, options: given.append("residual" in options), with_kwargs=True
    )
    model(images())
    assert given == [fused]


def test_a_watched_relu_is_called_as_before():
    model = convert(network("torchvision-bottleneck")).eval()
    fused = model(images())
    calls = []
    model.layer3[0].relu.register_forward_hook(lambda module, inputs, output: calls.append(output.shape[1]))
    torch.testing.assert_close(model(images()), fused, rtol=1e-12, atol=1e-12)
    assert calls == [256, 256, 1024]


@pytest.mark.parametrize("init", ["half", "paper"])
@pytest.mark.parametrize("name", ["torchvision-bottleneck", "timm-basic", "ours-bottleneck"])
def test_everything_else_stays(name, init):
    """But for scale and shift of the normalisations before an attention of 1/2, which are doubled."""
    model = network(name, torch.bfloat16).to(memory_format=torch.channels_last).train()
    model.layer3[0].eval()
    model.conv1.weight.requires_grad_(False)
    calls = []
    model.layer3[0].register_forward_hook(lambda *_: calls.append("block"))
    model.layer3[1].conv2.register_forward_pre_hook(lambda *_: calls.append("conv"))
    tensors = {name: (t, t.clone(), t.stride(), t.requires_grad) for name, t in named_tensors(model)}
    modes = {name: module.training for name, module in model.named_modules()}
    keys = list(model.state_dict())

    convert(model, reduction=2, init=init)
    doubled = [] if init == "paper" else last_norms(model.layer3)
    assert [key for key in model.state_dict() if ".attention." not in key] == keys
    after = dict(named_tensors(model))
    for name, (tensor, value, stride, requires_grad) in tensors.items():
        assert after[name] is tensor
        assert torch.equal(tensor, value * 2 if tensor.data_ptr() in doubled else value)
        assert (tensor.stride(), tensor.requires_grad) == (stride, requires_grad)
    assert all(module.training == modes[name] for name, module in model.named_modules() if name in modes)
    for block in model.layer3:
        assert block.attention.training == block.training
        assert {p.dtype for p in block.attention.parameters()} == {torch.bfloat16}
        channels = block.attention.channels
        assert block.attention.w_shrink.shape == (channels // 2, channels)
    features = {}
    model.layer3.register_forward_hook(lambda module, inputs, output: features.update(x=output))
    model(images(dtype=torch.bfloat16).to(memory_format=torch.channels_last))
    assert features["x"].is_contiguous(memory_format=torch.channels_last)
    assert calls == ["block", "conv"]


def last_norms(stage: Any) -> list[int]:
    """The addresses of the scales and shifts that end the dense paths of a stage."""
    norms = [block.bn3 if hasattr(block, "bn3") else block.bn2 for block in stage]
    return [tensor.data_ptr() for norm in norms for tensor in (norm.weight, norm.bias)]


@pytest.mark.parametrize("make", [torchvision.models.resnet18, gala_cuda.resnet26], ids=["torchvision", "ours"])
@torch.no_grad()
def test_the_dense_path_weighs_what_it_did(make):
    """By the default start; the paper's halves it."""
    ratios = {}
    for init in ("half", "paper"):
        torch.manual_seed(0)
        model = make(num_classes=5).train()
        norm, inputs = getattr(model.layer3[0], "bn3", model.layer3[0].bn2), []
        norm.register_forward_pre_hook(lambda _, args, inputs=inputs: inputs.append(args[0]))
        model(torch.randn(8, 3, 64, 64))
        before, attention = norm(inputs[0]), convert(model, init=init).layer3[0].attention
        ratios[init] = (attention(norm(inputs[0])).norm() / before.norm()).item()
    assert ratios["half"] == pytest.approx(1, abs=0.2)
    assert ratios["paper"] == pytest.approx(0.5, abs=0.2)


def named_tensors(model: nn.Module) -> list[tuple[str, torch.Tensor]]:
    return [*model.named_parameters(), *model.named_buffers()]


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_copies_pickles_and_state_dicts(name):
    model = convert(network(name, torch.float32), keep_output=True).eval()
    x = images(dtype=torch.float32)
    expected = model(x)
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    loaded = torch.load(buffer, weights_only=False)
    refilled = convert(network(name, torch.float32), keep_output=True).eval()
    refilled.load_state_dict({key: value + 0.01 for key, value in model.state_dict().items()})
    assert not torch.equal(refilled(x), expected)
    refilled.load_state_dict(model.state_dict())
    for other in (loaded, copy.deepcopy(model), refilled):
        assert torch.equal(other(x), expected)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["torchvision-basic", "timm-everything"])
def test_one_graph_under_compile(name):
    model = convert(network(name), "layer3.1").eval()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(images()), model(images()), rtol=1e-12, atol=1e-12)


@pytest.mark.slow
def test_neither_torchvision_nor_timm_is_imported_for_our_own_networks():
    code = (
        "import sys, gala_cuda; gala_cuda.convert(gala_cuda.resnet18(5, width=8)); "
        "assert not {'torchvision', 'timm'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
