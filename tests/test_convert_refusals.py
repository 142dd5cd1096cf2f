"""What ``convert`` refuses: unknown networks, blocks that cannot have GALA, and names that lead to no block."""

import pytest
import torch
from networks import NETWORKS, timm_resnet
from torch import nn

import gala_cuda
from gala_cuda import convert


class OwnBlock(gala_cuda.models.blocks.Bottleneck):
    """A subclass whose own forward ``convert`` does not know."""


def with_own_block() -> nn.Module:
    model = gala_cuda.resnet26(5, width=8)
    model.set_submodule("layer3.1", OwnBlock(128, 32, 1))
    return model


def without_affine() -> nn.Module:
    model = gala_cuda.resnet26(5, width=8)
    model.set_submodule("layer3.0.bn3", nn.BatchNorm2d(128, affine=False))
    return model


def with_activation_in_norm() -> nn.Module:
    layers = pytest.importorskip("timm.layers", reason="timm is not installed")
    return timm_resnet("BasicBlock", norm_layer=layers.BatchNormAct2d)


def with_squeeze_excite() -> nn.Module:
    layers = pytest.importorskip("timm.layers", reason="timm is not installed")
    return timm_resnet("Bottleneck", block_args={"attn_layer": layers.SEModule})


def unknown(library: str, name: str) -> nn.Module:
    """A network of another family; its weights take no memory."""
    module = pytest.importorskip(f"{library}.models", reason=f"{library} is not installed")
    with torch.device("meta"):
        return getattr(module, name)()


REFUSED = [
    (NETWORKS["ours-basic"], {"where": "layer5"}, r"where names 'layer5'; expected .* layer1, layer1\.0, layer1\.1, "),
    (NETWORKS["ours-basic"], {"where": ("layer3", "layer")}, r"where names 'layer'; expected"),
    (NETWORKS["ours-basic"], {"where": "layer3.0.conv1"}, r"where names 'layer3\.0\.conv1'; expected"),
    (NETWORKS["ours-basic"], {"where": []}, "where names nothing"),
    (lambda: nn.Sequential(nn.Conv2d(3, 5, 1)), {}, "^model is a Sequential without blocks; expected BasicBlock or Bo"),
    (
        lambda: unknown("timm", "resnetv2_50"),
        {},
        r"ResNetV2 whose blocks are PreActBottleneck of timm\.models\.resnetv2; ",
    ),
    (
        lambda: unknown("timm", "skresnet18"),
        {},
        r"ResNet whose blocks are SelectiveKernelBasic of timm\.models\.sknet;",
    ),
    (
        lambda: unknown("timm", "regnetx_002"),
        {},
        r"RegNet whose blocks are Bottleneck of timm\.models\.regnet; expected",
    ),
    (
        lambda: unknown("torchvision", "densenet121"),
        {},
        r"DenseNet whose blocks are _DenseLayer of torchvision\.models\.d",
    ),
    (
        lambda: unknown("torchvision", "vgg11"),
        {},
        "^model is a VGG without blocks; expected BasicBlock or Bottleneck of ",
    ),
    (lambda: convert(NETWORKS["torchvision-basic"](), "layer3.1"), {}, r"converted: layer3\.1 is converted already$"),
    (
        lambda: gala_cuda.gala_resnet26(5, width=8),
        {},
        r"layer3\.0 is converted already; layer3\.1 is conv",
    ),
    (lambda: gala_cuda.se_resnet18(5, width=8), {}, r"layer3\.0 has another attention, attention = SqueezeExcite"),
    (with_squeeze_excite, {}, r"layer3\.0 has another attention, se = SEModule"),
    (with_own_block, {}, r"converted: layer3\.1 is a OwnBlock, expected exactly BasicBlock or Bottleneck"),
    (without_affine, {"keep_output": True}, r"layer3\.0 ends in BatchNorm2d without weight and bias"),
    (with_activation_in_norm, {"keep_output": True}, r"layer3\.0 ends in BatchNormAct2d, expected BatchNorm2d, "),
    (lambda: gala_cuda.resnet18(5, width=8).to(torch.float8_e4m3fn), {}, r"layer3\.0 is torch.float8_e4m3fn, expected"),
    (NETWORKS["ours-basic"], {"reduction": 0}, "reduction is 0"),
    (NETWORKS["ours-basic"], {"squash": "relu", "keep_output": True}, "squash is 'relu'"),
    (NETWORKS["ours-basic"], {"init": "random"}, "init is 'random'; expected one of 'half', 'paper'"),
    (NETWORKS["ours-basic"], {"init": "paper", "keep_output": True}, "init is 'paper'; expected 'half' with keep_out"),
]


@pytest.mark.parametrize(("build", "options", "message"), REFUSED)
def test_what_is_refused_stays_unchanged(build, options, message):
    model = build()
    classes = [type(module) for module in model.modules()]
    values = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(ValueError, match=message):
        convert(model, **options)
    assert [type(module) for module in model.modules()] == classes
    assert model.state_dict().keys() == values.keys()
    assert all(
        value.is_meta or torch.equal(value.float(), values[key].float()) for key, value in model.state_dict().items()
    )


def test_other_things_are_no_model():
    with pytest.raises(TypeError, match="model is a dict; expected"):
        convert({})
