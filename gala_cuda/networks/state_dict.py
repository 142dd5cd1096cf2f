"""Matches a state dict to a network: takes the network's own part of it, compares names and shapes, and copies it."""

import re
from collections import OrderedDict
from collections.abc import Collection, Mapping

import torch
from torch import Tensor, nn

from .errors import WeightsError

MAX_NAMED = 3  # problems that a message names
_AVERAGED = re.compile(r"(^|[._])(ema|averaged?|swa)([._]|$)")


def holds_gala(weights: Collection[str]) -> bool:
    """Whether there is GALA among the weights of these names."""
    return any(name.endswith(".attention.w_expand") for name in weights)


def strip_prefix(weights: Mapping[str, Tensor], names: Collection[str]) -> dict[str, Tensor]:
    """Of the ``weights`` of a whole training those of the network whose weights have ``names``, by these names.

    Lightning and others put "model." or the like before them, and the weights of a loss may lie beside them. Of several
    networks the averaged one is taken.

    Raises:
        WeightsError: there are several.
    """
    first = next(iter(names))
    if first in weights:
        return dict(weights)
    prefixes = [name.removesuffix(first) for name in weights if name.endswith(f".{first}")]
    matches = {prefix: sum(f"{prefix}{name}" in weights for name in names) for prefix in prefixes}
    best = [prefix for prefix in prefixes if matches[prefix] == max(matches.values())]
    if len(best) > 1:
        best = [prefix for prefix in best if _AVERAGED.search(prefix)] or best
    if len(best) > 1:
        raise WeightsError(f"the weights are of several networks, {', '.join(best)}; expected one")
    if not best:
        return dict(weights)
    return {name.removeprefix(best[0]): tensor for name, tensor in weights.items() if name.startswith(best[0])}


@torch.no_grad()
def of_channels(weights: Mapping[str, Tensor], names: Collection[str], channels: int) -> dict[str, Tensor]:
    """Those of ``weights`` that are of ``names`` and of RGB images, for images of 1 or 4 channels; {} for others.

    For grey they are summed, which gives what they made of a grey picture in RGB; those of a fourth channel are 0.
    """
    of_rgb = {name: weights[name] for name in names if name in weights and weights[name].shape[1:2] == (3,)}
    if channels == 1:
        return {name: weight.sum(1, keepdim=True) for name, weight in of_rgb.items()}
    if channels == 4:
        return {name: torch.cat([weight, torch.zeros_like(weight[:, :1])], 1) for name, weight in of_rgb.items()}
    return {}


@torch.no_grad()
def load_weights(model: nn.Module, weights: Mapping[str, Tensor], replaceable: Collection[str] | None = None) -> None:
    """Copies ``weights`` into ``model``. Counters of BatchNorm that are missing, as before torch 0.4.1, become 0.

    With the names of ``replaceable`` weights, the last layer's, these and GALA keep their own values where the file's
    do not fit or are missing.

    Raises:
        WeightsError: names or shapes differ; nothing is changed.
    """
    own, may_stay = model.state_dict(), replaceable or ()
    counters = [name for name in own if name.endswith("num_batches_tracked") and name not in weights]
    weights = {**weights, **{name: torch.zeros_like(own[name]) for name in counters}}
    misshapen = {name for name in own.keys() & weights.keys() if own[name].shape != weights[name].shape}
    if not misshapen.isdisjoint(may_stay):
        misshapen.difference_update(may_stay)
        weights = {name: value for name, value in weights.items() if name not in may_stay}
    missing = [
        name for name in own if name not in weights and name not in may_stay
        and not (replaceable is not None and ".attention." in name)
    ]  # fmt: skip
    unknown = [name for name in weights if name not in own]
    problems = [
        *(f"{name} is missing" for name in missing),
        *(f"{name} is unknown" for name in unknown),
        *(f"{name} is {list(weights[name].shape)}, expected {list(own[name].shape)}" for name in sorted(misshapen)),
    ]
    if problems:
        more = f", and {len(problems) - MAX_NAMED} more" if len(problems) > MAX_NAMED else ""
        raise WeightsError(f"the weights are of another network: {'; '.join(problems[:MAX_NAMED])}{more}")
    state = OrderedDict(weights)
    state._metadata = own._metadata  # type: ignore[attr-defined]  # some of torchvision's modules ask for versions
    model.load_state_dict(state, strict=False)
