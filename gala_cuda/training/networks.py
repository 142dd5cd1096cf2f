"""The network of a recipe, and files of weights: this package's, torchvision's, timm's."""

import json
import pickle
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import safetensors
import torch
import torchvision
from torch import Tensor, nn

from .. import models
from .recipe import Recipe

MODELS = {name: getattr(models, name) for name in models.__all__ if "resnet" in name}
LAYERS = ("layer3",)  # the paper's
SMALL_IMAGE = 64  # pixels; below, the stem keeps the resolution
KEY = "gala_cuda"  # of our metadata in a safetensors file
# What the two formats' readers raise for files of other kinds.
_UNREADABLE = (OSError, EOFError, LookupError, RuntimeError, ValueError, pickle.UnpicklingError,
               safetensors.SafetensorError)  # fmt: skip
_WRAPPERS = ("state_dict_ema", "model_ema", "state_dict", "model")  # where training scripts keep the weights


class BadNetwork(ValueError):
    """No such network, or one that cannot have what is asked of it; ``name`` is the argument."""

    def __init__(self, name: str, problem: str):
        super().__init__(problem)
        self.name = name


class BadWeights(ValueError):
    """A file of weights cannot be read, or is another network's."""


@dataclass(frozen=True)
class Network:
    """What it takes to build a network again: it stands in the metadata of our weights.

    Args:
        model: a name of ``MODELS``, "timm/NAME" or "torchvision/NAME".
        layers: stages or blocks with GALA; () is layer3 for gala_resnets, none for others.
        width, stem: channels of the first stage and kind of stem, of our networks.
        keep_output: GALA as ``convert(keep_output=True)`` makes it.
        classes: their names.
        channels, size: of the images, in pixels.
    """

    model: str
    layers: tuple[str, ...]
    width: int
    keep_output: bool
    stem: str
    classes: tuple[str, ...]
    channels: int
    size: int

    @classmethod
    def of(cls, recipe: Recipe, classes: tuple[str, ...], channels: int, size: int) -> "Network":
        stem = "small" if size < SMALL_IMAGE else "imagenet"
        width = recipe.width or (16 if recipe.source == "digits" else 64)
        return cls(recipe.model, recipe.layers, width, recipe.keep_output, stem, classes, channels, size)

    def metadata(self) -> dict[str, str]:
        return {KEY: json.dumps(asdict(self))}

    def build(self, weights: Mapping[str, Tensor] | None = None) -> nn.Module:
        """The network; random, or from ``weights`` of it, of the same without GALA, or with another number of classes.

        Raises:
            BadNetwork: an argument is out of range.
            BadWeights: the weights are of another network.
        """
        later = self.keep_output or "/" in self.model  # GALA is put into a network that is there already
        network = self._plain() if later else self._ours(self.model, self.layers)
        if weights is not None:
            load_weights(network, weights, new=True)
        layers = self.layers or (LAYERS if self.model.startswith("gala_") else ())
        if later and layers:
            try:
                models.convert(network, layers, keep_output=self.keep_output)
            except ValueError as error:
                raise BadNetwork("layers", str(error)) from error
        elif self.keep_output:
            raise BadNetwork("layers", f"keep_output needs GALA, which {self.model} has not; expected some layers")
        return network

    def _plain(self) -> nn.Module:
        library, _, name = self.model.rpartition("/")
        if not library:
            return self._ours(name.removeprefix("gala_"), ())
        if library == "timm":
            import timm

            if timm.is_model(name):
                return timm.create_model(name, num_classes=len(self.classes), in_chans=self.channels)
        if library == "torchvision" and name in torchvision.models.list_models(module=torchvision.models):
            if self.channels != 3:
                raise BadNetwork("model", f"{self.model} takes 3 channels; the images have {self.channels}")
            return torchvision.models.get_model(name, weights=None, num_classes=len(self.classes))
        raise BadNetwork("model", f"there is no {self.model!r}; expected a model of timm or torchvision")

    def _ours(self, name: str, layers: tuple[str, ...]) -> nn.Module:
        if name not in MODELS:
            known = ", ".join(MODELS)
            raise BadNetwork("model", f"there is no {self.model!r}; expected timm/NAME, torchvision/NAME or: {known}")
        options: dict[str, Any] = {"in_channels": self.channels, "width": self.width, "stem": self.stem}
        if layers and not name.startswith("gala_"):
            raise BadNetwork("layers", f"{name} has no GALA; expected --model gala_resnet...")
        if layers:
            options["layers"] = layers
        try:
            return MODELS[name](len(self.classes), **options)
        except ValueError as error:
            raise BadNetwork("layers", str(error)) from error


def start(network: Network, path: str | None) -> nn.Module:
    """``network`` with random weights, or from the file ``path``."""
    return network.build(None if path is None else read_weights(Path(path))[0])


def read_weights(path: Path | str) -> tuple[dict[str, Tensor], Network | None]:
    """(state dict on the CPU, the network where the file names it) of a safetensors file or of one by torch.save.

    Raises:
        BadWeights: the file is missing, truncated, or holds something else.
    """
    path = Path(path)
    try:
        if path.suffix == ".safetensors":
            with safetensors.safe_open(path, "pt") as file:
                metadata = (file.metadata() or {}).get(KEY)
                return {name: file.get_tensor(name) for name in file.keys()}, _network(metadata)  # noqa: SIM118
        found = torch.load(path, map_location="cpu", weights_only=True)
    except _UNREADABLE as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        reason = error.strerror if isinstance(error, OSError) and error.strerror else first
        raise BadWeights(f"{path} cannot be read as weights: {reason}") from error
    for wrapper in _WRAPPERS:
        if isinstance(found, dict) and isinstance(found.get(wrapper), dict):
            found = found[wrapper]
    if not isinstance(found, dict) or not all(isinstance(value, Tensor) for value in found.values()):
        raise BadWeights(f"{path} holds no state dict")
    return {name.removeprefix("module."): value for name, value in found.items()}, None


def _network(metadata: str | None) -> Network | None:
    if metadata is None:
        return None
    values: dict[str, Any] = json.loads(metadata)
    values |= {name: tuple(values[name]) for name in ("layers", "classes")}
    return Network(**values)


@torch.no_grad()
def load_weights(network: nn.Module, weights: Mapping[str, Tensor], new: bool = False) -> None:
    """Copies ``weights`` into ``network``; with ``new``, GALA and a last layer of other classes may keep their own.

    Raises:
        BadWeights: names or shapes differ; nothing is changed.
    """
    own = network.state_dict()
    last = [name for name, module in network.named_modules() if isinstance(module, nn.Linear)][-1:]
    missing = [name for name in own if name not in weights and not (new and ".attention." in name)]
    unknown = [name for name in weights if name not in own]
    misfits = {name for name in own.keys() & weights.keys() if own[name].shape != weights[name].shape}
    if new and any(name == f"{head}.weight" for head in last for name in misfits):
        misfits -= (replaced := {f"{head}.{part}" for head in last for part in ("weight", "bias")})
        weights = {name: value for name, value in weights.items() if name not in replaced}
    problems = [
        *(f"{name} is missing" for name in missing),
        *(f"{name} is unknown" for name in unknown),
        *(f"{name} is {list(weights[name].shape)}, expected {list(own[name].shape)}" for name in sorted(misfits)),
    ]
    if problems:
        more = f", and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise BadWeights(f"the weights are of another network: {'; '.join(problems[:3])}{more}")
    network.load_state_dict(weights, strict=False)


def described_by(path: Path, weights: Mapping[str, Tensor], model: str | None, recipe: Recipe) -> Network:
    """The network of ``weights`` whose file does not name it: ``model``, with the recipe's layers.

    Raises:
        BadNetwork: there is no ``model``.
        BadWeights: no convolution or no last layer can be made out.
    """
    if model is None:
        raise BadNetwork("model", f"{path} does not name its network; expected --model NAME")
    first = next((value.shape for value in weights.values() if value.dim() == 4), None)
    heads = [len(value) for name, value in weights.items() if value.dim() == 2 and ".attention." not in name]
    if first is None or not heads:
        raise BadWeights(f"{path} holds no convolution or no linear layer; expected the weights of {model}")
    width, channels, kernel, _ = first
    stem = "small" if kernel == 3 else "imagenet"
    size = recipe.image_size or (32 if recipe.source == "digits" else 224)
    classes = tuple(map(str, range(heads[-1])))
    return Network(model, recipe.layers, width, recipe.keep_output, stem, classes, channels, size)


def rebuilt(network: Network, weights: Mapping[str, Tensor]) -> nn.Module:
    """``network`` with exactly ``weights``.

    Raises:
        BadNetwork, BadWeights
    """
    built = network.build()
    load_weights(built, weights)
    return built
