"""The description of a network: a model's name and what else it takes to build it again, kept beside its weights."""

import json
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .. import models
from ..data.preprocessing import IMAGENET, Preprocessing
from ..models.resnet import MODELS
from . import libraries
from .classes import placeholder_names
from .errors import NetworkError, WeightsError
from .state_dict import holds_gala, load_weights, strip_prefix

LAYERS = ("layer3",)  # the paper's
KEY = "gala_cuda"  # of the description in the metadata of a safetensors file
PREPROCESSING_KEY = "how"  # of the field ``preprocessing`` in that description


@dataclass(frozen=True)
class Network:
    """What it takes to build a network again; the metadata of our weights files hold it.

    Args:
        model: a name of ``MODELS``, "timm/NAME" or "torchvision/NAME".
        layers: stages or blocks with GALA; () means layer3 for gala_resnets and none for others.
        width, stem: channels of the first stage and kind of stem, of our networks.
        keep_output: GALA as ``convert(keep_output=True)`` makes it.
        classes: their names.
        channels, size: of the images; the size in pixels.
        preprocessing: of pictures.
        init: how GALA starts where not by ``keep_output``, and so its squash, and whether it has biases. Files that do
            not say are older, and have "paper".
        multi_label: an image has any number of the classes, each by the sigmoid of its logit.
    """

    model: str
    layers: tuple[str, ...]
    width: int
    keep_output: bool
    stem: str
    classes: tuple[str, ...]
    channels: int
    size: int
    preprocessing: Preprocessing = IMAGENET
    init: str = "paper"
    multi_label: bool = False

    def metadata(self) -> dict[str, str]:
        """The description for the metadata of a safetensors file."""
        values = asdict(self)
        values[PREPROCESSING_KEY] = values.pop("preprocessing")
        if self.init == "paper":
            del values["init"]  # as files have it that earlier versions wrote
        if not self.multi_label:
            del values["multi_label"]
        return {KEY: json.dumps(values)}

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str], path: Path | str) -> "Network | None":
        """The network that the ``metadata`` of the file at ``path`` describe; None where they describe none.

        Raises WeightsError where they are damaged, or of a later version.
        """
        if KEY not in metadata:
            return None
        try:
            values: dict[str, Any] = json.loads(metadata[KEY])
            preprocessing = Preprocessing(**_with_tuples(values.pop(PREPROCESSING_KEY, {})))
            network = cls(**_with_tuples(values), preprocessing=preprocessing)
        except (AttributeError, TypeError, ValueError) as error:
            raise WeightsError(f"{path} does not describe its network as this version does: {error}") from error
        numbers = (network.width, network.channels, network.size)
        names = (network.model, network.stem, network.init, *network.layers, *network.classes)
        right = all(type(number) is int and number > 0 for number in numbers) and type(network.multi_label) is bool
        if not right or not all(type(name) is str for name in names):
            raise WeightsError(f"{path} does not describe its network as this version does: {metadata[KEY]}")
        return network

    def build(self, weights: Mapping[str, Tensor] | None = None) -> nn.Module:
        """The network: random, or from ``weights`` of it, of the same without GALA, or with another number of classes.

        Raises:
            NetworkError: an argument is out of range.
            WeightsError: the weights are of another network.
        """
        without_gala = self.model.startswith("gala_") and weights is not None and not holds_gala(weights)
        # Whether GALA is put into a network that is built, and gets its weights, without it.
        converts = self.keep_output or "/" in self.model or without_gala
        model = self._build_without_gala() if converts else self._build_own(self.model, self.layers)
        if weights is not None:
            load_weights(model, self.own_weights(weights, model.state_dict()), self.head_names())
        if converts and self.gala_layers:
            try:
                init = "half" if self.keep_output else self.init
                models.convert(model, self.gala_layers, init=init, keep_output=self.keep_output)
            except ValueError as error:
                raise NetworkError("layers", str(error)) from error
        elif self.keep_output:
            raise NetworkError("layers", f"keep_output needs GALA, which {self.model} has not; expected some layers")
        return model

    @property
    def gala_layers(self) -> tuple[str, ...]:
        """Stages or blocks with GALA."""
        return self.layers or (LAYERS if self.model.startswith("gala_") else ())

    @property
    def class_names(self) -> tuple[str, ...]:
        """The classes, by ImageNet's names where there are 1,000 without names in a network of timm or torchvision."""
        nameless = "/" in self.model and self.classes == placeholder_names(1000)
        return libraries.imagenet_names() if nameless else self.classes

    def first_names(self) -> list[str]:
        """Names of the weights that see the images, as far as they are known."""
        return libraries.first_convolutions(self.model) if "/" in self.model else ["conv1.weight"]

    def head_names(self) -> frozenset[str]:
        """Names of the last layer's weights: those whose shape depends on the number of classes."""
        two, three = (replace(self, classes=placeholder_names(count)).state_dict_without_gala() for count in (2, 3))
        return frozenset(name for name in two if two[name].shape != three[name].shape)

    def state_dict_without_gala(self) -> dict[str, Tensor]:
        """The names and shapes of the weights without GALA. The tensors take no memory where that is possible."""
        try:
            with torch.device("meta"):
                return self._build_without_gala().state_dict()
        except NetworkError:  # some of timm's read numbers from tensors while they are built
            return self._build_without_gala().state_dict()

    def own_weights(self, weights: Mapping[str, Tensor], names: Collection[str]) -> dict[str, Tensor]:
        """Of a file's ``weights`` those of this network, whose weights have ``names``. Raises WeightsError."""
        return libraries.rename_published(self.model, strip_prefix(weights, names))

    def _build_without_gala(self) -> nn.Module:
        if "/" in self.model:
            return libraries.build(self.model, len(self.classes), self.channels, self.size)
        return self._build_own(self.model.removeprefix("gala_"), ())

    def _build_own(self, name: str, layers: tuple[str, ...]) -> nn.Module:
        if name not in MODELS:
            known = ", ".join(MODELS)
            raise NetworkError("model", f"there is no {self.model!r}; expected timm/NAME, torchvision/NAME or: {known}")
        options: dict[str, Any] = {"in_channels": self.channels, "width": self.width, "stem": self.stem}
        if layers and not name.startswith("gala_"):
            raise NetworkError("layers", f"{name} has no GALA; expected --model gala_resnet...")
        if name.startswith("gala_"):
            options |= {"layers": layers or LAYERS, "init": self.init}
        try:
            return MODELS[name](len(self.classes), **options)
        except ValueError as error:
            raise NetworkError("init" if str(error).startswith("init ") else "layers", str(error)) from error


def default_preprocessing(model: str, size: int | None, file: str | None = None) -> tuple[int | None, Preprocessing]:
    """(the size of images, their preprocessing) that ``model`` is made for; a given ``size`` stays. None: any size.

    ``file`` is the name of a weights file, for models that are published with several. Raises NetworkError where a
    library has no such model.
    """
    return libraries.published_preprocessing(model, size, file) if "/" in model else (size, IMAGENET)


def _with_tuples(values: dict[str, Any]) -> dict[str, Any]:
    """``values`` from JSON with tuples in place of lists."""
    return {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
