"""Builds networks from files of weights: as the file describes them, or as the shapes of its weights tell."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from torch import Tensor, nn

from ..data.choices import CHANNELS
from . import libraries, weights_file
from .classes import match_classes, placeholder_names
from .errors import NetworkError, WeightsError
from .network import Network, default_preprocessing
from .state_dict import holds_gala, load_weights, of_channels


def read_weights(path: Path | str) -> tuple[dict[str, Tensor], Network | None]:
    """(state dict on the CPU, the network if the file describes it) of a file by safetensors or torch.save.

    Raises:
        WeightsError: the file is missing, damaged, or holds something else.
    """
    file = weights_file.read(Path(path))
    return file.tensors, Network.from_metadata(file.metadata, path)


def rebuild(network: Network, weights: Mapping[str, Tensor]) -> nn.Module:
    """The model of ``network`` with exactly ``weights``.

    Raises:
        NetworkError, WeightsError
    """
    model = network.build()
    load_weights(model, network.own_weights(weights, model.state_dict()))
    return model


def initial_model(network: Network, path: str | None, say: Callable[[str], object] = lambda line: None) -> nn.Module:
    """The model of ``network`` to start a training from: random, or with the weights of the file ``path``.

    The rows of the last layer are matched by the names of the classes; where those are others, it starts random. The
    first layer of weights of RGB images is changed for grey and for four channels; ``say`` is told.

    Raises:
        NetworkError, WeightsError
    """
    if path is None:
        return network.build()
    weights, former = read_weights(path)
    _refuse_other_biases(network, weights, path)
    weights = network.own_weights(weights, network.state_dict_without_gala())
    if changed := of_channels(weights, network.first_names(), network.channels):
        how = "summed for grey" if network.channels == 1 else "0 for the fourth channel"
        say(f"weights of RGB: {', '.join(changed)} {how}")
        weights |= changed
    if former is None or former.classes == network.classes:
        return network.build(weights)
    head = former.head_names()
    try:
        rows, _ = match_classes(network.classes, former.classes)
    except ValueError:
        return network.build({name: tensor for name, tensor in weights.items() if name not in head})
    return network.build({name: tensor[rows] if name in head else tensor for name, tensor in weights.items()})


def _refuse_other_biases(network: Network, weights: Mapping[str, Tensor], path: str) -> None:
    """Raises NetworkError where ``weights`` hold GALA with biases and ``network`` has it without, or the reverse."""
    if not network.gala_layers or network.keep_output or not holds_gala(weights):
        return
    if _init_of(weights) != network.init:
        has, expected = ("none", "paper") if network.init == "half" else ("some", "half")
        raise NetworkError(
            "init", f"init is {network.init!r}, but the biases differ: GALA in {path} has {has}; expected {expected!r}"
        )


def infer_network(
    path: Path,
    weights: Mapping[str, Tensor],
    model: str | None,
    layers: tuple[str, ...] = (),
    keep_output: bool = False,
    image_size: int | None = None,
) -> Network:
    """The network of ``weights`` from a file that does not describe it: ``model``, with GALA in ``layers``.

    Images have ``image_size`` pixels, else as many as the library says, which also says how they are preprocessed;
    those of this package's networks have 224, with a small stem 32.

    Raises:
        NetworkError: there is no ``model``.
        WeightsError: the first or the last layer is not found.
    """
    if model is None:
        raise NetworkError("model", f"{path} does not name its network; expected --model NAME")
    size, preprocessing = default_preprocessing(model, image_size, path.name)
    guess = Network(
        model, layers, 64, keep_output, "imagenet", placeholder_names(2), 3, size or 224, preprocessing,
        init=_init_of(weights),
    )  # fmt: skip
    weights = guess.own_weights(weights, guess.state_dict_without_gala())
    counts = {len(weights[name]) for name in guess.head_names() if name in weights and weights[name].dim()}
    if len(counts) != 1:
        raise WeightsError(f"{path} holds no last layer of {model}; expected the weights of {model}")
    guess = replace(guess, classes=placeholder_names(counts.pop()))
    if "/" in model:
        return _of_channels(guess, libraries.input_channels(model, weights))
    stem = weights.get("conv1.weight")
    if stem is None or stem.dim() != 4:
        raise WeightsError(f"{path} holds no first layer of {model}; expected the weights of {model}")
    width, channels, kernel, _ = stem.shape
    guess = _of_channels(replace(guess, width=width), channels)
    return replace(guess, stem="small", size=size or 32) if kernel == 3 else guess


def _of_channels(network: Network, channels: int) -> Network:
    """The network for images of so many channels, to which its pictures are converted where they can be."""
    preprocessing = network.preprocessing
    if channels in CHANNELS:
        preprocessing = preprocessing.of_channels(channels)
    return replace(network, channels=channels, preprocessing=preprocessing)


def _init_of(weights: Mapping[str, Tensor]) -> str:
    """The start of a network with ``weights``, as far as it matters then: "half" has biases."""
    return "half" if any(name.endswith(".attention.b_w_expand") for name in weights) else "paper"
