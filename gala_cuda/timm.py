"""GALA-ResNets for timm: after `import gala_cuda.timm`, `timm.create_model("gala_resnet50")` and timm's scripts.

They are timm's own ResNets, with all their options, and GALA in `layers` as `gala_cuda.convert` puts it there.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models import resnet as timm_resnet
from torch import Tensor, nn

from .models import convert
from .models.resnet import ARCHITECTURES

_CFG = {
    "url": "", "num_classes": 1000, "input_size": (3, 224, 224), "pool_size": (7, 7), "crop_pct": 0.875,
    "interpolation": "bicubic", "mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225), "first_conv": "conv1",
    "classifier": "fc",
}  # fmt: skip

default_cfgs = generate_default_cfgs({f"gala_resnet{depth}.untrained": _CFG for depth in ARCHITECTURES})


def _create(depth: int, pretrained: bool, **options) -> nn.Module:
    block, layers = ARCHITECTURES[depth]
    return build_model_with_cfg(
        _build,
        f"gala_resnet{depth}",
        pretrained,
        pretrained_filter_fn=_expect_attention,
        block=getattr(timm_resnet, block.__name__),
        depths=layers,
        **options,
    )


def _build(
    block: Any,  # a class of timm
    depths: tuple[int, ...],
    layers: str | Sequence[str] = ("layer3",),
    reduction: int = 4,
    squash: str | None = None,
    init: str = "half",
    keep_output: bool = False,
    **options,
) -> nn.Module:
    model = timm_resnet.ResNet(block, depths, **options)
    return convert(model, layers, reduction=reduction, squash=squash, init=init, keep_output=keep_output)


def _expect_attention(weights: Mapping[str, Tensor], model: nn.Module) -> Mapping[str, Tensor]:
    """`weights` of a file for `model`; timm itself is not strict where the number of classes differs."""
    own = [name for name in model.state_dict() if ".attention." in name]
    missing = [name for name in own if name not in weights]
    unknown = [name for name in weights if ".attention." in name and name not in own]
    problems = [f"no {name}" for name in missing[:1]] + [f"{name}, which the network has not" for name in unknown[:1]]
    if problems:
        raise ValueError(
            f"pretrained weights have {' and '.join(problems)}; expected those of a network with the same layers and "
            "init"
        )
    return weights


@register_model
def gala_resnet18(pretrained: bool = False, **options) -> nn.Module:
    """timm's resnet18 with GALA.

    Args:
        pretrained: load weights as timm does for its own networks. There are none to download: they come from a folder
            ("local-dir:FOLDER", which `timm.models.save_for_hf` writes), a repository ("hf-hub:NAME") or
            `pretrained_cfg_overlay=dict(file=..., num_classes=...)`, such as weights of gala-cuda train.
        options: layers=("layer3",), reduction=4, squash=None, init="half", keep_output=False as of
            `gala_cuda.convert`; others, such as num_classes, in_chans, features_only and drop_path_rate, go to timm.

    Raises:
        ValueError: an option of GALA is out of range, or pretrained weights have GALA elsewhere.
        RuntimeError: `pretrained` is True and nothing says where the weights are, or they do not fit.
    """
    return _create(18, pretrained, **options)


@register_model
def gala_resnet26(pretrained: bool = False, **options) -> nn.Module:
    """timm's resnet26 with GALA. Arguments as of `gala_resnet18`."""
    return _create(26, pretrained, **options)


@register_model
def gala_resnet34(pretrained: bool = False, **options) -> nn.Module:
    """timm's resnet34 with GALA. Arguments as of `gala_resnet18`."""
    return _create(34, pretrained, **options)


@register_model
def gala_resnet50(pretrained: bool = False, **options) -> nn.Module:
    """timm's resnet50 with GALA, the paper's network. Arguments as of `gala_resnet18`."""
    return _create(50, pretrained, **options)


@register_model
def gala_resnet101(pretrained: bool = False, **options) -> nn.Module:
    """timm's resnet101 with GALA. Arguments as of `gala_resnet18`."""
    return _create(101, pretrained, **options)
