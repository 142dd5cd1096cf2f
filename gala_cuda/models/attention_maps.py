"""Attention maps and input gradients of any network, and the choice of the blocks whose maps are shown."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .blocks import select_blocks
from .mode import in_mode
from .with_maps import MapRecorder, gala_layers

# The blocks of ResNet-50 in the paper's figure, and the numbers of their layers there.
PAPER_LAYERS = {"layer3.1": 27, "layer3.3": 33, "layer3.5": 39}
DEFAULT_COUNT = 3  # of blocks that are chosen where none are asked for


def attention_maps(model: nn.Module, images: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """(logits [N, K], {block: map [N, H', W']}) of ``images`` [N, C, H, W] by a network in evaluation mode.

    A map is the L2 norm of a block's attention over channels. GALA may sit in any network; one without it has no maps.
    The model's mode is restored.
    """
    recorder = MapRecorder(model)
    recorder.wanted = True
    try:
        with in_mode(model, training=False), torch.no_grad():
            logits = model(images)
    finally:
        recorder.remove()
    return logits, recorder.take()


def input_gradient(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """[N, H, W]: the L2 norm over channels of the gradient of each label's logit with respect to its image.

    ``images`` [N, C, H, W], ``labels`` [N] int64. The model runs in evaluation mode; its mode is restored, and the
    gradients of its parameters are untouched.
    """
    images = images.detach().requires_grad_()
    with in_mode(model, training=False), torch.enable_grad():
        logits = model(images).gather(1, labels[:, None])
        (gradient,) = torch.autograd.grad(logits.sum(), images)  # images are independent in evaluation mode
    return torch.linalg.vector_norm(gradient, dim=1)


def choose_blocks(names: Sequence[str], wanted: Sequence[str] = ()) -> list[str]:
    """Those of the blocks ``names`` that ``wanted`` selects, such as "layer3" or "layer3.0".

    Without ``wanted`` they are the paper's (its figure shows layers 27, 33 and 39, layer3.1, .3 and .5 of ResNet-50)
    where the network has all of them, else ``DEFAULT_COUNT`` at even distances up to the last.

    Raises:
        ValueError: an entry of ``wanted`` selects no block.
    """
    if wanted:
        return select_blocks(names, wanted, "layers")
    if set(PAPER_LAYERS) <= set(names):
        return [*PAPER_LAYERS]
    count = min(DEFAULT_COUNT, len(names))
    return [names[(i + 1) * len(names) // count - 1] for i in range(count)]


def gala_blocks(model: nn.Module) -> list[str]:
    """The names of the blocks with GALA, in the network's order, as ``attention_maps`` gives them."""
    return [name for name, _ in gala_layers(model)]
