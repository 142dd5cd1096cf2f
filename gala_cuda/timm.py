"""GALA-ResNets for timm: after ``import gala_cuda.timm``, ``timm.create_model("gala_resnet50")`` and timm's scripts.

They are timm's own ResNets, with all their options, and GALA in ``layers`` as :func:`gala_cuda.convert` puts it there.
"""

from collections.abc import Sequence

import timm
from timm.models import generate_default_cfgs, register_model
from torch import nn

from .models import convert

_CFG = {
    "url": "", "num_classes": 1000, "input_size": (3, 224, 224), "pool_size": (7, 7), "crop_pct": 0.875,
    "interpolation": "bicubic", "mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225), "first_conv": "conv1",
    "classifier": "fc",
}  # fmt: skip
_DEPTHS = (18, 26, 34, 50, 101)

default_cfgs = generate_default_cfgs({f"gala_resnet{depth}.untrained": _CFG for depth in _DEPTHS})


def _create(
    name: str,
    pretrained: bool,
    layers: str | Sequence[str] = ("layer3",),
    reduction: int = 4,
    squash: str = "tanh",
    keep_output: bool = False,
    pretrained_cfg: object = None,
    pretrained_cfg_overlay: object = None,
    cache_dir: object = None,
    **options,
) -> nn.Module:
    if pretrained:
        raise ValueError(f"pretrained is True, but there are no weights of {name}; expected False")
    model = timm.create_model(name.removeprefix("gala_"), **options)
    convert(model, layers, reduction=reduction, squash=squash, keep_output=keep_output)
    model.pretrained_cfg = model.default_cfg = default_cfgs[name].default.to_dict()
    return model


@register_model
def gala_resnet18(pretrained: bool = False, **options) -> nn.Module:
    """timm's resnet18 with GALA.

    Args:
        pretrained: has to be False.
        options: layers=("layer3",), reduction=4, squash="tanh", keep_output=False as of :func:`gala_cuda.convert`;
            others, such as num_classes, in_chans and drop_path_rate, go to timm.

    Raises:
        ValueError: ``pretrained`` is True, or an option of GALA is out of range.
    """
    return _create("gala_resnet18", pretrained, **options)


@register_model
def gala_resnet26(pretrained: bool = False, **options) -> nn.Module:
    """timm's resnet26 with GALA. Arguments as of :func:`gala_resnet18`."""
    return _create("gala_resnet26", pretrained, **options)


@register_model
def gala_resnet34(pretrained: bool = False, **options) -> nn.Module:
    """timm's resnet34 with GALA. Arguments as of :func:`gala_resnet18`."""
    return _create("gala_resnet34", pretrained, **options)


@register_model
def gala_resnet50(pretrained: bool = False, **options) -> nn.Module:
    """timm's resnet50 with GALA, the paper's network. Arguments as of :func:`gala_resnet18`."""
    return _create("gala_resnet50", pretrained, **options)


@register_model
def gala_resnet101(pretrained: bool = False, **options) -> nn.Module:
    """timm's resnet101 with GALA. Arguments as of :func:`gala_resnet18`."""
    return _create("gala_resnet101", pretrained, **options)
