"""``convert``: puts GALA into an existing ResNet."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TypeVar

from torch import nn

from ..backends.dtypes import DTYPES
from ..layer import GALA, starts_at_0
from . import blocks
from .blocks import double, last_layers, scale_and_shift, select_blocks
from .narrow_convs import replace_narrow_convs

Model = TypeVar("Model", bound=nn.Module)
Forms = dict[type[nn.Module], type[nn.Module]]

_KNOWN = "BasicBlock or Bottleneck of torchvision.models.resnet, timm.models.resnet or gala_cuda"
_AFFINE_FORWARDS = (nn.BatchNorm2d.forward, nn.SyncBatchNorm.forward, nn.GroupNorm.forward)
_FROZEN_BATCH_NORM = ("torchvision.ops.misc", "FrozenBatchNorm2d")


def convert(
    model: Model,
    where: str | Sequence[str] = ("layer3",),
    *,
    reduction: int = 4,
    squash: str | None = None,
    init: str = "half",
    keep_output: bool = False,
) -> Model:
    """Put GALA into residual blocks of a ResNet of torchvision, of timm or of this package, in place.

    Attention becomes ``<block>.attention``, after the last normalisation of the dense path and before timm's drop_path
    and the shortcut; the final ReLU is fused with it where nothing stands between. Where it starts near 1/2, scale and
    shift of that normalisation are doubled, so that the dense path weighs as much as it did. Everything else
    stays as it is: weights and their state-dict keys, buffers, dtype, device, memory format, training mode,
    requires_grad, hooks.
    The new parameters have the dtype and the device of the block's last convolution, and the block's training mode.
    Convert before making an optimizer and before wrapping the model for distributed training.

    1x1 convolutions of fewer than 16 input channels with a stride become ``NarrowConv2d``, which computes the same:
    torch's gradient of them damages memory on some CPUs.

    Args:
        model: holds blocks of exactly the classes BasicBlock or Bottleneck of torchvision.models.resnet,
            timm.models.resnet (ResNet-D, ResNeXt and others are made of them too) or gala_cuda.
        where: names of blocks, or of modules with blocks inside, such as "layer3" or "layer3.0".
        reduction, squash, init: as for ``gala_cuda.GALA``; "half" has sigmoid and biases, "paper" tanh and none.
        keep_output: start with an attention of exactly 1/2, so that the network's outputs are at first what they were,
            up to rounding; for pretrained weights. Unless ``squash`` says otherwise it is the paper's tanh. ``init``
            has to be "half", the last weights of which are then 0; all
            parameters train from the second step on.

    Returns:
        ``model``.

    Raises:
        TypeError: ``model`` is no module.
        ValueError: ``init`` is out of range, or is not "half" with ``keep_output``.
        ValueError: ``model`` has no such blocks; the message says which blocks it has.
        ValueError: an entry of ``where`` names no block, or one that cannot be converted: it is converted already, has
            another attention (``se``), is of a subclass, with ``keep_output`` has no scale and shift to double, or with
            "paper" and tanh ends in a scale of 0, as timm's networks do at first: neither would ever leave 0. The
            message gives the reason for each block, and nothing is changed.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model is a {type(model).__name__}; expected a torch.nn.Module")
    if keep_output and init != "half":
        raise ValueError(f"init is {init!r}; expected 'half' with keep_output, whose attention starts at 1/2")
    modules = dict(model.named_modules())
    forms = {name: own for name, module in modules.items() if (own := _gala_forms(module))}
    if not forms:
        raise ValueError(f"model is a {type(model).__name__}{_describe_blocks(modules)}; expected {_KNOWN}")
    chosen = select_blocks(forms, where, "where")
    at_0 = starts_at_0(init, squash)
    reasons = {name: _why_not(modules[name], forms[name], keep_output, at_0) for name in chosen}
    refused = [f"{name} {reason}" for name, reason in reasons.items() if reason]
    if refused:
        raise ValueError(f"where names blocks that cannot be converted: {'; '.join(refused)}")
    layers = {name: _gala_for(modules[name], reduction, squash, init, keep_output) for name in chosen}
    for name, layer in layers.items():
        _put(layer, modules[name], forms[name])
    replace_narrow_convs(model)
    return model


def _put(layer: GALA, block: nn.Module, forms: Forms) -> None:
    _, norm = last_layers(block)
    if layer.init == "half" and not _why_not_double(norm):
        double(norm)
    block.__class__ = forms[type(block)]
    block.attention = layer


def _describe_blocks(modules: Mapping[str, nn.Module]) -> str:
    """Which blocks a network has, if none that can be converted: the outermost classes of its library that repeat."""
    counts: dict[type[nn.Module], int] = {}
    counted: tuple[str, ...] = ()  # prefixes of the names of modules inside the blocks found so far
    classes = Counter(type(module) for module in modules.values())
    for name, module in modules.items():
        cls = type(module)
        if name and not f"{name}.".startswith(counted) and classes[cls] > 1 and _is_block(module):
            counts[cls] = classes[cls]
            counted += (f"{name}.",)
    most = sorted(counts, key=lambda cls: -counts[cls])[:3]
    names = ", ".join(f"{cls.__name__} of {cls.__module__}" for cls in most)
    return f" whose blocks are {names}" if names else " without blocks"


def _is_block(module: nn.Module) -> bool:
    """Whether it is of a library's own class, not just a container, and has several layers with weights."""
    cls = type(module)
    container = isinstance(module, nn.Sequential | nn.ModuleList | nn.ModuleDict) or "Stage" in cls.__name__
    if container or cls.__module__.startswith("torch.nn."):
        return False
    return sum(isinstance(each, nn.Conv2d | nn.Linear) for each in module.modules()) > 1


def _gala_forms(block: nn.Module) -> Forms | None:
    """The GALA forms of the blocks of the library that ``block`` comes from; None for modules of any other kind."""
    for cls in type(block).__mro__:
        if cls.__name__ not in ("BasicBlock", "Bottleneck"):
            continue
        if cls.__module__ == blocks.__name__:
            return blocks.GALA_FORMS
        if cls.__module__ == "torchvision.models.resnet":
            from . import torchvision_blocks

            return torchvision_blocks.GALA_FORMS
        if cls.__module__ == "timm.models.resnet":
            from . import timm_blocks

            return timm_blocks.GALA_FORMS
    return None


def _why_not(block: nn.Module, forms: Forms, keep_output: bool, at_0: bool) -> str | None:
    """Why ``block`` cannot be converted, as the end of a sentence about it; None where it can."""
    for attribute in ("attention", "se"):
        present = getattr(block, attribute, None)
        if isinstance(present, GALA):
            return "is converted already"
        if present is not None:
            return f"has another attention, {attribute} = {type(present).__name__}"
    if type(block) not in forms:
        bases = " or ".join(cls.__qualname__ for cls in forms)
        return f"is a {type(block).__qualname__}, expected exactly {bases}"
    conv, norm = last_layers(block)
    if conv.weight.dtype not in DTYPES:
        return f"is {conv.weight.dtype}, expected one of {', '.join(map(str, DTYPES))}"
    scale = scale_and_shift(norm).get("weight")
    if at_0 and scale is not None and not scale.is_meta and not scale.any():
        return "ends in a normalisation of scale 0, behind which GALA with init='paper' and tanh never trains"
    return _why_not_double(norm) if keep_output else None


def _why_not_double(norm: nn.Module) -> str | None:
    cls = type(norm)
    if cls.forward not in _AFFINE_FORWARDS and (cls.__module__, cls.__name__) != _FROZEN_BATCH_NORM:
        return f"ends in {cls.__qualname__}, expected BatchNorm2d, SyncBatchNorm, GroupNorm or FrozenBatchNorm2d"
    if not scale_and_shift(norm).keys() >= {"weight", "bias"}:
        return f"ends in {cls.__qualname__} without weight and bias of its own, which keep_output needs"
    return None


def _gala_for(block: nn.Module, reduction: int, squash: str | None, init: str, keep_output: bool) -> GALA:
    conv, _ = last_layers(block)
    weight = conv.weight
    squash = "tanh" if keep_output and squash is None else squash
    layer = GALA(conv.out_channels, reduction, squash, init=init, device=weight.device, dtype=weight.dtype)
    if keep_output:
        for last in (layer.w_expand, layer.v_collapse):
            nn.init.zeros_(last)
    return layer.train(block.training)
