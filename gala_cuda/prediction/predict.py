"""What a network makes of pictures, one by one in their order, those that cannot be read among them."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.data import ConcatDataset, DataLoader, Dataset

from ..clickme.score import mean_over_layers
from ..data.datasets import ImageDataset
from ..data.errors import UnreadableError
from ..models.attention_maps import attention_maps
from ..models.mode import in_mode
from ..training.evaluate import autocast


@dataclass(frozen=True)
class Prediction:
    """What the network makes of one picture.

    Attributes:
        image: its name.
        labels: the likeliest classes, the likeliest first; () where the picture cannot be read.
        probabilities: theirs, by softmax; by sigmoid where an image has any number of labels.
        attention: [H, W], the mean over layers of the attention's L2 norm over channels; None where not asked for.
        error: why the picture cannot be read, or None.
    """

    image: str
    labels: tuple[str, ...] = ()
    probabilities: tuple[float, ...] = ()
    attention: Tensor | None = None
    error: str | None = None


class _Read(Dataset):
    """(name, image [C, size, size] or None, why it cannot be read or None) of each of `images`."""

    def __init__(self, images: ImageDataset) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images.labels)

    def __getitem__(self, index: int) -> tuple[str, Tensor | None, str | None]:
        name = self.images.name(index)
        self.images.prepare([index])
        try:
            sample = self.images.read(index, 0)
        except UnreadableError as error:
            return name, None, str(error)
        return name, sample if isinstance(sample, Tensor) else sample.image, None


def predict(
    model: nn.Module,
    sources: Sequence[ImageDataset],
    classes: Sequence[str],
    device: torch.device,
    *,
    batch_size: int = 64,
    top: int = 1,
    maps: bool = False,
    precision: str = "float32",
    workers: int = 0,
    multi_label: bool = False,
) -> Iterator[Prediction]:
    """The predictions of `model`, which is on `device`, for all images of `sources`, in their order.

    Args:
        classes: names of the model's classes.
        batch_size: images in one forward pass.
        top: how many classes of each image; at most as many as there are.
        maps: return the attention too, of a network with GALA, resized to its largest layer.
        precision: dtype of activations, by autocast: "float32", "bfloat16", "float16".
        workers: processes that read images.
        multi_label: an image has any number of labels.
    """
    loader: Iterable[list[tuple[str, Tensor | None, str | None]]] = DataLoader(
        ConcatDataset([_Read(images) for images in sources]), batch_size, num_workers=workers, collate_fn=list
    )
    run = partial(_run, model, device=device, maps=maps, precision=precision)
    for batch in loader:
        readable = [image for _, image, _ in batch if image is not None]
        answers = _answers(*run(torch.stack(readable)), min(top, len(classes)), multi_label) if readable else iter(())
        for name, image, error in batch:
            if image is None:
                yield Prediction(name, error=error)
                continue
            numbers, probabilities, attention = next(answers)
            yield Prediction(name, tuple(classes[number] for number in numbers), tuple(probabilities), attention)


@torch.no_grad()
def _run(
    model: nn.Module, images: Tensor, *, device: torch.device, maps: bool, precision: str
) -> tuple[Tensor, Tensor | None]:
    """(logits [n, K] float32, attention [n, H, W] or None) of `images` [n, C, size, size], on the CPU."""
    images = images.to(device, memory_format=torch.channels_last)
    with in_mode(model, training=False), autocast(device, precision):
        logits, layers = attention_maps(model, images) if maps else (model(images), {})
    if not layers:
        return logits.float().cpu(), None
    height, width = (max(layer.shape[side] for layer in layers.values()) for side in (1, 2))
    return logits.float().cpu(), mean_over_layers(layers, (height, width)).float().cpu()


def _answers(
    logits: Tensor, attention: Tensor | None, top: int, multi_label: bool
) -> Iterator[tuple[list[int], list[float], Tensor | None]]:
    probabilities, numbers = (logits.sigmoid() if multi_label else logits.softmax(1)).topk(top)
    for i in range(len(logits)):
        yield numbers[i].tolist(), probabilities[i].tolist(), None if attention is None else attention[i]
