"""Networks of timm and torchvision: how they are built, and how their pictures are preprocessed."""

import math
import re
from collections.abc import Mapping
from typing import Any

import torchvision
from torch import Tensor, nn

from ..data.preprocessing import IMAGENET, Preprocessing
from ..models.narrow_convs import replace_narrow_convs
from .errors import NetworkError

DEFAULT_SIZE = 224  # pixels, where a library does not say
# Models of torchvision that have several outputs in training unless they are built without the auxiliary ones; and
# whose published weights expect them to rescale the images themselves. With the prefixes of the auxiliary weights.
_AUXILIARY = {"googlenet": ("aux1.", "aux2."), "inception_v3": ("AuxLogits.",)}


def build(model: str, classes: int, channels: int, size: int) -> nn.Module:
    """``model``, "timm/NAME" or "torchvision/NAME", with random weights; its output is logits [N, classes].

    Raises:
        NetworkError: there is none, or it does not take so many channels or images of ``size`` pixels.
    """
    library, name = _library_and_name(model)
    options: dict[str, Any] = {}
    if library == "torchvision":
        if channels != 3:
            raise NetworkError("model", f"{model} takes 3 channels; the images have {channels}")
        if name in _AUXILIARY:
            options = {"aux_logits": False, "transform_input": True, "init_weights": True}
        elif name.startswith("vit_"):
            options = {"image_size": size}

        def create() -> nn.Module:
            return torchvision.models.get_model(name, weights=None, num_classes=classes, **options)
    else:
        import timm

        config = timm.get_pretrained_cfg(name)
        if config is not None and config.fixed_input_size and tuple(config.input_size[1:]) != (size, size):
            options = {"img_size": size}

        def create() -> nn.Module:
            return timm.create_model(name, num_classes=classes, in_chans=channels, **options)

    try:
        network = create()
    except (AssertionError, RuntimeError, TypeError, ValueError) as error:
        if options.keys() & {"image_size", "img_size"}:
            problem = f"{model} cannot be built for images of {size} pixels: {error}"
            raise NetworkError("image_size", problem) from error
        raise NetworkError("model", f"{model} cannot be built: {error}") from error
    replace_narrow_convs(network)
    return network


def rename_published(model: str, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Published ``weights`` of ``model`` by the names of a model by ``build``, without those that it leaves out."""
    left_out = _AUXILIARY.get(model.removeprefix("torchvision/"), ())
    kept = {name: tensor for name, tensor in weights.items() if not name.startswith(left_out)}
    if model.startswith("torchvision/densenet"):  # named as in 2017: denselayer1.norm.1.weight
        return {re.sub(r"(denselayer\d+\.(?:norm|conv))\.([12])\.", r"\1\2.", name): t for name, t in kept.items()}
    return kept


def imagenet_names() -> tuple[str, ...]:
    """The names of ImageNet's 1,000 classes, in the order of weights of timm and torchvision."""
    return tuple(torchvision.models.ResNet50_Weights.IMAGENET1K_V2.meta["categories"])


def input_channels(model: str, weights: Mapping[str, Tensor]) -> int:
    """How many channels the images have that ``model`` with ``weights`` takes."""
    first = [weights[name] for name in first_convolutions(model)[:1] if name in weights]
    return first[0].shape[1] if first and first[0].dim() == 4 else 3


def first_convolutions(model: str) -> list[str]:
    """The names of the weights of ``model`` that see the images, as far as its library says them."""
    library, name = _library_and_name(model)
    if library == "torchvision":
        return []
    import timm

    config = timm.get_pretrained_cfg(name)
    layers = None if config is None else config.first_conv
    return [f"{layer}.weight" for layer in ([layers] if isinstance(layers, str) else layers or [])]


def published_preprocessing(model: str, size: int | None, file: str | None = None) -> tuple[int, Preprocessing]:
    """(size in pixels, preprocessing) by the library's own configuration of ``model``; a given ``size`` stays.

    ``file`` is the name of a weights file: torchvision publishes several for a network, not all of them alike.

    Raises:
        NetworkError: there is no such network, or its images are not square.
    """
    library, name = _library_and_name(model)
    return _torchvision_preprocessing(name, size, file) if library == "torchvision" else _timm_preprocessing(name, size)


def _torchvision_preprocessing(name: str, size: int | None, file: str | None) -> tuple[int, Preprocessing]:
    published = torchvision.models.get_model_weights(name)
    if not len(published):
        return size or DEFAULT_SIZE, IMAGENET
    of_file = [each for each in published if each.url.rpartition("/")[2] == file]
    transforms = (of_file or [published.DEFAULT])[0].transforms()
    (crop,), (resize,) = transforms.crop_size, transforms.resize_size
    mean, std = tuple(transforms.mean), tuple(transforms.std)
    return size or crop, Preprocessing(mean, std, transforms.interpolation.value, (crop, resize))


def _timm_preprocessing(name: str, size: int | None) -> tuple[int, Preprocessing]:
    import timm

    config = timm.get_pretrained_cfg(name)
    if config is None:
        return size or DEFAULT_SIZE, IMAGENET
    given = {} if size is None else {"input_size": (3, size, size)}
    resolved = timm.data.resolve_data_config(given, pretrained_cfg=config.to_dict())
    _, height, width = resolved["input_size"]
    if height != width:
        raise NetworkError("image_size", f"timm/{name} takes images of {height} x {width} pixels; expected a square")
    mean, std = (tuple(map(float, resolved[name])) for name in ("mean", "std"))
    crop = height, math.floor(height / resolved["crop_pct"])
    return height, Preprocessing(mean, std, resolved["interpolation"], crop, resolved["crop_mode"] == "squash")


def _library_and_name(model: str) -> tuple[str, str]:
    library, _, name = model.partition("/")
    if library == "timm":
        import timm

        if timm.is_model(name):
            return library, name
    elif library == "torchvision" and name in torchvision.models.list_models(module=torchvision.models):
        return library, name
    raise NetworkError("model", f"there is no {model!r}; expected a model of timm or torchvision")
