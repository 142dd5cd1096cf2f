"""What the partner sees and says: pictures through bubbles, shown to a network."""

import functools
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import nn
from torchvision.transforms import v2

from ..data.errors import UnreadableError
from ..data.picture_decoding import decode_picture
from ..data.picture_files import read_file
from ..data.preprocessing import Preprocessing
from ..errors import GalaError
from ..networks.network import Network
from ..training.recipe_file import resolve
from ..training.trained_network import open_network
from .lite0 import open_lite0
from .rules import Points, reveal

VIEWS = ("crop", "whole")
NAMED = 5  # classes of a guess that players are told
FEW_CLASSES = 50  # with fewer the true class has to come first, else among the first five
_KEPT = 128  # decoded pictures


class Request(NamedTuple):
    """A picture to guess: the file, the bubbles that reveal it (None: all of it), the seed of the noise elsewhere."""

    path: str
    points: Points | None
    seed: int


class View:
    """A network and how pictures are shown to it.

    Args:
        model: takes images [N, 3, size, size], gives logits [N, classes].
        classes: names of its classes.
        how: "crop", as the network's own preprocessing cuts a picture, or "whole", squeezed into a square.
        top: how many names a guess has.
    """

    def __init__(
        self, model: nn.Module, classes: Sequence[str], size: int, preprocessing: Preprocessing, how: str = "crop",
        top: int = NAMED,
    ) -> None:  # fmt: skip
        self.model, self.classes, self.how, self.top = model.eval(), tuple(classes), how, min(top, len(classes))
        mode = v2.InterpolationMode(preprocessing.interpolation)
        shown = [v2.Resize((size, size), mode)] if how == "whole" else [preprocessing.resize(size), v2.CenterCrop(size)]
        self._prepare = v2.Compose([*shown, *preprocessing.normalisation()])
        self._shown = f"{size} {preprocessing} {how}"

    def fingerprint(self) -> str:
        """A digest of the weights and of how pictures are shown: with the same one the guesses are the same."""
        digest = hashlib.sha256(repr((self._shown, self.classes)).encode())
        for name, tensor in self.model.state_dict().items():
            digest.update(name.encode())
            digest.update(
                tensor.contiguous().view(torch.uint8).numpy() if tensor.dim() else repr(tensor.item()).encode()
            )
        return digest.hexdigest()

    def guess(self, batch: Sequence[Request]) -> Iterator[tuple[tuple[str, ...], str | None]]:
        """(the likeliest classes, why the picture cannot be seen or None) of each request."""
        views = [_seen(request) for request in batch]
        named = iter(self.names([view for view in views if not isinstance(view, str)]))
        for view in views:
            yield ((), view) if isinstance(view, str) else (next(named), None)

    @torch.inference_mode()
    def names(self, views: Sequence[np.ndarray]) -> list[tuple[str, ...]]:
        """The `top` likeliest classes of each of `views`, [H, W, 3] float32 from 0 to 1, the likeliest first."""
        if not views:
            return []
        images = torch.stack([self._prepare(torch.from_numpy(view).permute(2, 0, 1)) for view in views])
        numbers = self.model(images.contiguous(memory_format=torch.channels_last)).topk(self.top).indices
        return [tuple(self.classes[number] for number in row) for row in numbers.tolist()]


def _seen(request: Request) -> np.ndarray | str:
    """What the request shows, [H, W, 3] float32; or why it cannot be seen."""
    try:
        image = _pixels(request.path)
    except (OSError, UnreadableError) as error:
        return f"{Path(request.path).name} cannot be read: {getattr(error, 'strerror', None) or error}"
    if request.points is None:
        return image.astype(np.float32) / np.float32(255)
    return reveal(image, request.points, request.seed)


@functools.lru_cache(_KEPT)
def _pixels(path: str) -> np.ndarray:
    return np.array(decode_picture(read_file(path)))


@dataclass(frozen=True)
class ViewOptions:
    """A view of the network in a file of weights, as a function without arguments that another process can call.

    Attributes:
        weights: file of weights, or folder of a training, as ``gala-cuda predict`` takes them; None for the network of
            the demo, which knows ImageNet's classes.
        model: the network's name where the file does not say it.
        how: see `View`.
        top: how many of the likeliest classes may hold the true one; None: 5 of 50 classes or more, else 1.
    """

    weights: str | None
    model: str | None = None
    how: str = "crop"
    top: int | None = None

    def __call__(self) -> View:
        """Raises GalaError where the network cannot be opened."""
        model, network = open_lite0() if self.weights is None else _open(Path(self.weights), self.model)
        if network.channels != 3:
            raise GalaError(
                f"{self.weights} takes images of {network.channels} channels; expected 3, for red, green, blue"
            )
        return View(
            model, network.class_names, network.size, network.preprocessing, self.how, max(NAMED, self.top or 0)
        )


def _open(weights: Path, model: str | None) -> tuple[nn.Module, Network]:
    given = {} if model is None else {"model": model}
    return open_network(weights, resolve(None, given), given, lambda line: None)


def top_of(classes: int, asked: int | None) -> int:
    """How many of the likeliest of `classes` classes may hold the true one, unless `asked` says so."""
    return min(classes, asked or (NAMED if classes >= FEW_CLASSES else 1))
