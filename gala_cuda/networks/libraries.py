"""Networks of timm and torchvision: how they are built, and how their pictures are to be prepared."""

import math
import re
from collections.abc import Mapping
from typing import Any

import torchvision
from torch import Tensor, nn

from ..data.pictures import IMAGENET, Preprocessing
from ..errors import SettingError
from ..models.narrow import guard

NAMES = ("timm", "torchvision")
SIZE = 224  # pixels, where a library does not say
# Of torchvision: their outputs in training are several, unless they are built without the auxiliary ones; and their
# published weights expect them to rescale the images themselves.
_AUXILIARY = {"googlenet": ("aux1.", "aux2."), "inception_v3": ("AuxLogits.",)}


class NetworkError(SettingError):
    """There is no such network, or it cannot have what is asked of it; ``name`` is the argument."""

    def __init__(self, name: str, problem: str):
        super().__init__((name,), problem)


def build(model: str, classes: int, channels: int, size: int) -> nn.Module:
    """``model``, "timm/NAME" or "torchvision/NAME", with random weights; its output is logits [N, classes].

    Raises:
        NetworkError: there is none, or it does not take so many channels or images of ``size`` pixels.
    """
    library, name = _found(model)
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
    guard(network)
    return network


def as_built(model: str, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Published ``weights`` of ``model`` by the names that :func:`build` has, without what it leaves out."""
    left_out = _AUXILIARY.get(model.removeprefix("torchvision/"), ())
    found = {name: tensor for name, tensor in weights.items() if not name.startswith(left_out)}
    if model.startswith("torchvision/densenet"):  # named as in 2017: denselayer1.norm.1.weight
        return {re.sub(r"(denselayer\d+\.(?:norm|conv))\.([12])\.", r"\1\2.", name): t for name, t in found.items()}
    return found


def channels_of(model: str, weights: Mapping[str, Tensor]) -> int:
    """Channels of the images that ``weights`` of ``model`` take."""
    library, name = _found(model)
    if library == "timm":
        import timm

        config = timm.get_pretrained_cfg(name)
        layers = None if config is None else config.first_conv
        first = weights.get(f"{layers if isinstance(layers, str) else (layers or ('',))[0]}.weight")
        if first is not None and first.dim() == 4:
            return first.shape[1]
    return 3


def preparation(model: str, size: int | None, file: str | None = None) -> tuple[int, Preprocessing]:
    """(size in pixels, the rest) as the library's own configuration of ``model`` says, but for a given ``size``.

    ``file`` is the name of a file of weights; torchvision publishes several of a network, not all alike.

    Raises:
        NetworkError: there is no such network, or its images are not square.
    """
    library, name = _found(model)
    return (_of_torchvision if library == "torchvision" else _of_timm)(name, size, file)


def _of_torchvision(name: str, size: int | None, file: str | None) -> tuple[int, Preprocessing]:
    published = torchvision.models.get_model_weights(name)
    if not len(published):
        return size or SIZE, IMAGENET
    named = [each for each in published if each.url.rpartition("/")[2] == file]
    how = (named or [published.DEFAULT])[0].transforms()
    (crop,), (resize,) = how.crop_size, how.resize_size
    found = Preprocessing(tuple(how.mean), tuple(how.std), how.interpolation.value, (crop, resize))
    return size or crop, found


def _of_timm(name: str, size: int | None, file: str | None) -> tuple[int, Preprocessing]:
    import timm

    config = timm.get_pretrained_cfg(name)
    if config is None:
        return size or SIZE, IMAGENET
    given = {} if size is None else {"input_size": (3, size, size)}
    found = timm.data.resolve_data_config(given, pretrained_cfg=config.to_dict())
    _, height, width = found["input_size"]
    if height != width:
        raise NetworkError("image_size", f"timm/{name} takes images of {height} x {width} pixels; expected a square")
    mean, std = (tuple(map(float, found[name])) for name in ("mean", "std"))
    crop = height, math.floor(height / found["crop_pct"])
    return height, Preprocessing(mean, std, found["interpolation"], crop, found["crop_mode"] == "squash")


def _found(model: str) -> tuple[str, str]:
    library, _, name = model.partition("/")
    if library == "timm":
        import timm

        if timm.is_model(name):
            return library, name
    elif library == "torchvision" and name in torchvision.models.list_models(module=torchvision.models):
        return library, name
    raise NetworkError("model", f"there is no {model!r}; expected a model of timm or torchvision")
