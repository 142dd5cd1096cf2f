"""A network described by name and numbers, and files of weights: this package's, torchvision's and timm's."""

import json
import re
from collections import OrderedDict
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .. import models
from ..data.pictures import IMAGENET, Preprocessing
from . import libraries, weights_file
from .classes import places, unnamed
from .libraries import NetworkError
from .weights_file import WeightsError

MODELS = {name: getattr(models, name) for name in models.__all__ if "resnet" in name}
LAYERS = ("layer3",)  # the paper's
KEY = "gala_cuda"  # of our metadata in a safetensors file
_AVERAGED_NAME = re.compile(r"(^|[._])(ema|averaged?|swa)([._]|$)")


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
        how: pictures are prepared.
    """

    model: str
    layers: tuple[str, ...]
    width: int
    keep_output: bool
    stem: str
    classes: tuple[str, ...]
    channels: int
    size: int
    how: Preprocessing = IMAGENET

    def metadata(self) -> dict[str, str]:
        return {KEY: json.dumps(asdict(self))}

    def build(self, weights: Mapping[str, Tensor] | None = None) -> nn.Module:
        """The network; random, or from ``weights`` of it, of the same without GALA, or with another number of classes.

        Raises:
            NetworkError: an argument is out of range.
            WeightsError: the weights are of another network.
        """
        later = self.keep_output or "/" in self.model  # GALA is put into a network that is there already
        network = self._plain() if later else self._ours(self.model, self.layers)
        if weights is not None:
            load_weights(network, self.own(weights, network.state_dict()), self.heads())
        layers = self.attended
        if later and layers:
            try:
                models.convert(network, layers, keep_output=self.keep_output)
            except ValueError as error:
                raise NetworkError("layers", str(error)) from error
        elif self.keep_output:
            raise NetworkError("layers", f"keep_output needs GALA, which {self.model} has not; expected some layers")
        return network

    @property
    def attended(self) -> tuple[str, ...]:
        """Stages or blocks with GALA."""
        return self.layers or (LAYERS if self.model.startswith("gala_") else ())

    def heads(self) -> frozenset[str]:
        """Names of the weights whose shape depends on the number of classes."""
        few, many = (replace(self, classes=unnamed(count)).skeleton() for count in (2, 3))
        return frozenset(name for name in few if few[name].shape != many[name].shape)

    def skeleton(self) -> dict[str, Tensor]:
        """The state dict without GALA, its tensors without memory."""
        try:
            with torch.device("meta"):
                return self._plain().state_dict()
        except NetworkError:  # some of timm's read numbers from tensors while they are built
            return self._plain().state_dict()

    def own(self, weights: Mapping[str, Tensor], names: Collection[str]) -> dict[str, Tensor]:
        """Of a file's ``weights`` those of the network, whose weights have ``names``. Raises WeightsError."""
        return libraries.as_built(self.model, of_network(weights, names))

    def _plain(self) -> nn.Module:
        if "/" in self.model:
            return libraries.build(self.model, len(self.classes), self.channels, self.size)
        return self._ours(self.model.removeprefix("gala_"), ())

    def _ours(self, name: str, layers: tuple[str, ...]) -> nn.Module:
        if name not in MODELS:
            known = ", ".join(MODELS)
            raise NetworkError("model", f"there is no {self.model!r}; expected timm/NAME, torchvision/NAME or: {known}")
        options: dict[str, Any] = {"in_channels": self.channels, "width": self.width, "stem": self.stem}
        if layers and not name.startswith("gala_"):
            raise NetworkError("layers", f"{name} has no GALA; expected --model gala_resnet...")
        if layers:
            options["layers"] = layers
        try:
            return MODELS[name](len(self.classes), **options)
        except ValueError as error:
            raise NetworkError("layers", str(error)) from error


def start(network: Network, path: str | None) -> nn.Module:
    """``network`` with random weights, or from the file ``path``, whose last layer goes by the names of classes."""
    if path is None:
        return network.build()
    weights, of = read_weights(path)
    if of is None or of.classes == network.classes:
        return network.build(weights)
    try:
        rows, _ = places(network.classes, of.classes)
    except ValueError:  # other classes: a new last layer
        return network.build({name: tensor for name, tensor in weights.items() if name not in of.heads()})
    heads = of.heads()
    return network.build({name: tensor[rows] if name in heads else tensor for name, tensor in weights.items()})


def read_weights(path: Path | str) -> tuple[dict[str, Tensor], Network | None]:
    """(state dict on the CPU, the network where the file names it) of a safetensors file or of one by torch.save.

    Raises:
        WeightsError: the file is missing, damaged, or holds something else.
    """
    file = weights_file.read(Path(path))
    return file.tensors, named_in(file.metadata, path)


def named_in(metadata: Mapping[str, str], path: Path | str) -> Network | None:
    """The network in the ``metadata`` of a file. Raises WeightsError where they are damaged, or of a later version."""
    if KEY not in metadata:
        return None
    try:
        values: dict[str, Any] = json.loads(metadata[KEY])
        how = {name: _fixed(value) for name, value in values.pop("how", {}).items()}
        network = Network(**{name: _fixed(value) for name, value in values.items()}, how=Preprocessing(**how))
    except (AttributeError, TypeError, ValueError) as error:
        raise WeightsError(f"{path} does not describe its network as this version does: {error}") from error
    numbers = (network.width, network.channels, network.size)
    names = (network.model, network.stem, *network.layers, *network.classes)
    if not all(type(number) is int and number > 0 for number in numbers) or not all(type(n) is str for n in names):
        raise WeightsError(f"{path} does not describe its network as this version does: {metadata[KEY]}")
    return network


def _fixed(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def of_network(weights: Mapping[str, Tensor], names: Collection[str]) -> dict[str, Tensor]:
    """Of the weights of a whole training those of a network whose own have ``names``, by these names.

    Lightning and others have "model." or the like before them, and perhaps weights of a loss beside them. Of several
    networks the averaged one counts.

    Raises:
        WeightsError: there are several.
    """
    first = next(iter(names))
    if first in weights:
        return dict(weights)
    starts = [name.removesuffix(first) for name in weights if name.endswith(f".{first}")]
    found = {start: sum(f"{start}{name}" in weights for name in names) for start in starts}
    best = [start for start in starts if found[start] == max(found.values())]
    if len(best) > 1:
        best = [start for start in best if _AVERAGED_NAME.search(start)] or best
    if len(best) > 1:
        raise WeightsError(f"the weights are of several networks, {', '.join(best)}; expected one")
    if not best:
        return dict(weights)
    return {name.removeprefix(best[0]): tensor for name, tensor in weights.items() if name.startswith(best[0])}


@torch.no_grad()
def load_weights(network: nn.Module, weights: Mapping[str, Tensor], replaceable: Collection[str] | None = None) -> None:
    """Copies ``weights`` into ``network``. Counters of BatchNorm that are missing, as before torch 0.4.1, become 0.

    With names that are ``replaceable``, the last layer's, these and GALA may keep their own where they differ.

    Raises:
        WeightsError: names or shapes differ; nothing is changed.
    """
    own, new = network.state_dict(), replaceable or ()
    counters = [name for name in own if name.endswith("num_batches_tracked") and name not in weights]
    weights = {**weights, **{name: torch.zeros_like(own[name]) for name in counters}}
    misfits = {name for name in own.keys() & weights.keys() if own[name].shape != weights[name].shape}
    if not misfits.isdisjoint(new):
        misfits.difference_update(new)
        weights = {name: value for name, value in weights.items() if name not in new}
    missing = [
        name for name in own if name not in weights and name not in new
        and not (replaceable is not None and ".attention." in name)
    ]  # fmt: skip
    unknown = [name for name in weights if name not in own]
    problems = [
        *(f"{name} is missing" for name in missing),
        *(f"{name} is unknown" for name in unknown),
        *(f"{name} is {list(weights[name].shape)}, expected {list(own[name].shape)}" for name in sorted(misfits)),
    ]
    if problems:
        more = f", and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise WeightsError(f"the weights are of another network: {'; '.join(problems[:3])}{more}")
    state = OrderedDict(weights)
    state._metadata = own._metadata  # type: ignore[attr-defined]  # some of torchvision's modules ask for versions
    network.load_state_dict(state, strict=False)


def described_by(
    path: Path,
    weights: Mapping[str, Tensor],
    model: str | None,
    layers: tuple[str, ...] = (),
    keep_output: bool = False,
    image_size: int | None = None,
) -> Network:
    """The network of ``weights`` whose file does not name it: ``model``, with GALA in ``layers``.

    Images have ``image_size`` pixels, else as many as the library says, which says too how they are prepared; those of
    this package's networks have 224, with a small stem 32.

    Raises:
        NetworkError: there is no ``model``.
        WeightsError: no first or no last layer can be made out.
    """
    if model is None:
        raise NetworkError("model", f"{path} does not name its network; expected --model NAME")
    size, how = prepared(model, image_size, path.name)
    guess = Network(model, layers, 64, keep_output, "imagenet", unnamed(2), 3, size or 224, how)
    weights = guess.own(weights, guess.skeleton())
    counts = {len(weights[name]) for name in guess.heads() if name in weights and weights[name].dim()}
    if len(counts) != 1:
        raise WeightsError(f"{path} holds no last layer of {model}; expected the weights of {model}")
    guess = replace(guess, classes=unnamed(counts.pop()))
    if "/" in model:
        return replace(guess, channels=libraries.channels_of(model, weights))
    stem = weights.get("conv1.weight")
    if stem is None or stem.dim() != 4:
        raise WeightsError(f"{path} holds no first layer of {model}; expected the weights of {model}")
    width, channels, kernel, _ = stem.shape
    if kernel == 3:
        return replace(guess, width=width, channels=channels, stem="small", size=size or 32)
    return replace(guess, width=width, channels=channels)


def prepared(model: str, size: int | None, file: str | None = None) -> tuple[int | None, Preprocessing]:
    """(the size of images, their preparation) that ``model`` is for, but for a given ``size``; None: any size.

    Raises NetworkError where a library has no such model.
    """
    return libraries.preparation(model, size, file) if "/" in model else (size, IMAGENET)


def rebuilt(network: Network, weights: Mapping[str, Tensor]) -> nn.Module:
    """``network`` with exactly ``weights``.

    Raises:
        NetworkError, WeightsError
    """
    built = network.build()
    load_weights(built, network.own(weights, built.state_dict()))
    return built
