"""Attention maps of a network that does not return them itself: any with GALA inside, such as ``convert`` makes."""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, ClassVar
from weakref import WeakSet

from torch import Tensor, nn

from ..layer import GALA


class WithMaps(nn.Module):
    """Any network with GALA inside, called as ``gala_resnet50`` is: ``WithMaps(model)(images, return_maps=True)``.

        model = gala_cuda.convert(torchvision.models.resnet50())
        logits, maps = gala_cuda.WithMaps(model)(images, return_maps=True)

    The maps come from the same pass as the output, and gradients flow through them, so that ``GalaMapLoss`` can teach
    them. Compile, or wrap for distributed training, this module and not ``model``; save the weights of ``model``, whose
    keys stay. ``model`` keeps the hooks by which this works, which do nothing when it is called by itself.

    Args:
        model: calls each of its GALA layers once; of one that it calls more often, the last map counts.

    Raises:
        TypeError: ``model`` is no module.
        ValueError: there is no GALA in it.
    """

    def __init__(self, model: nn.Module):
        super().__init__()
        if not isinstance(model, nn.Module):
            raise TypeError(f"model is a {type(model).__name__}; expected a torch.nn.Module")
        if not gala_layers(model):
            raise ValueError(f"model is a {type(model).__name__} without GALA; see gala_cuda.convert")
        self.model = model
        self._recorder = MapRecorder(model)

    def forward(self, images: Tensor, return_maps: bool = False) -> Any:
        """What ``model`` makes of ``images``; with ``return_maps`` (that, {block: map [N, H, W]}).

        A map is the L2 norm of a block's attention over channels, float32 (float64 for float64 images).
        """
        if not return_maps:
            return self.model(images)
        recorder = self._recorder
        recorder.wanted = True
        try:
            output = self.model(images)
        finally:
            recorder.wanted = False
        return output, recorder.take()


class MapRecorder:
    """Hooks of the GALA layers of ``model`` that keep their maps by the names of blocks, while ``wanted`` is True."""

    alive: ClassVar[WeakSet["MapRecorder"]] = WeakSet()

    def __init__(self, model: nn.Module):
        self.alive.add(self)
        self.wanted, self._asked = False, False
        self._maps: dict[str, Tensor] = {}
        self._handles = []
        for name, layer in gala_layers(model):
            self._handles.append(layer.register_forward_pre_hook(self._ask, with_kwargs=True))
            self._handles.append(layer.register_forward_hook(partial(self._keep, name)))

    def take(self) -> dict[str, Tensor]:
        """The maps so far, which are forgotten here."""
        maps, self._maps = self._maps, {}
        return maps

    def remove(self) -> None:
        """Takes the hooks away."""
        for handle in self._handles:
            handle.remove()

    def _ask(self, layer: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        """Has the layer return its map, unless the network does so itself."""
        self._asked = self.wanted and len(args) < 3 and not kwargs.get("return_map", False)
        return args, {**kwargs, "return_map": True} if self._asked else kwargs

    def _keep(self, name: str, layer: nn.Module, args: tuple, output: Any) -> Any:
        if self.wanted and isinstance(output, tuple):
            self._maps[name] = output[1]
        return output[0] if self._asked else output


def wanting() -> list[MapRecorder]:
    """The recorders that want maps at this time."""
    return [recorder for recorder in MapRecorder.alive if recorder.wanted]


@contextmanager
def wanted_again(recorders: list[MapRecorder]) -> Iterator[None]:
    """GALA layers return maps to `recorders`, which drop them: a second pass gives what the first one gave."""
    for recorder in recorders:
        recorder.wanted = True
    try:
        yield
    finally:
        for recorder in recorders:
            recorder.wanted = False
            recorder.take()


def gala_layers(model: nn.Module) -> list[tuple[str, GALA]]:
    """The GALA layers in the network's order, and the names of the blocks that they are the attention of."""
    return [
        (name.removesuffix(".attention"), layer) for name, layer in model.named_modules() if isinstance(layer, GALA)
    ]


def returning_maps(model: nn.Module) -> nn.Module:
    """What to call in place of ``model`` so that it takes ``return_maps``: itself, as our ResNets do, or around it.

    A network without GALA stays as it is.
    """
    accepts = "return_maps" in inspect.signature(model.forward).parameters
    return model if accepts or not gala_layers(model) else WithMaps(model)
