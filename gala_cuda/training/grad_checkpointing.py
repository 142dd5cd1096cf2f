"""Gradient checkpointing (Chen et al., 2016): activations inside blocks are computed again in the backward pass."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from ..models.with_maps import wanted_again, wanting
from .recipe import RecipeError


def checkpoint_blocks(model: nn.Module) -> None:
    """Has each block of the stages of `model` keep its input alone. Results, gradients and statistics are the same.

    Blocks are what lies in the model's nn.Sequentials: residual blocks of ResNets, layers of timm's transformers.

    Raises:
        RecipeError: there are none.
    """
    stages = [stage for stage in model.children() if isinstance(stage, nn.Sequential)]
    blocks = [block for stage in stages for block in stage.children() if any(True for _ in block.parameters())]
    if not blocks:
        raise RecipeError(
            "grad_checkpointing", f"is True, but {type(model).__name__} has no stages of blocks; expected a network "
            "with some, as ResNets have", ["model"],
        )  # fmt: skip
    for block in blocks:
        block.forward = partial(_call, block, block.forward)


def _call(block: nn.Module, forward: Callable, *args: Any, **kwargs: Any) -> Any:
    if not torch.is_grad_enabled():
        return forward(*args, **kwargs)
    if torch.compiler.is_compiling():  # what compiled code computes again is not what changes statistics
        return checkpoint(forward, *args, use_reentrant=False, **kwargs)
    return checkpoint(forward, *args, use_reentrant=False, context_fn=partial(_contexts, block), **kwargs)


def _contexts(block: nn.Module) -> tuple[AbstractContextManager, AbstractContextManager]:
    return nullcontext(), _SecondPass(block)


class _SecondPass(AbstractContextManager):
    """Has `block` save for backward what it saves now, and change nothing; as often as it is differentiated."""

    def __init__(self, block: nn.Module):
        self.block, self.recorders, self.entered = block, wanting(), ExitStack()

    def __enter__(self) -> None:
        self.entered.enter_context(wanted_again(self.recorders))
        self.entered.enter_context(_without_statistics(self.block))

    def __exit__(self, *raised: Any) -> None:
        self.entered.close()


@contextmanager
def _without_statistics(block: nn.Module) -> Iterator[None]:
    """BatchNorms in training, inside `block`, leave their statistics as they are: a second pass is no second batch."""
    norms = [
        norm for norm in block.modules()
        if isinstance(norm, _BatchNorm) and norm.training and norm.track_running_stats
    ]  # fmt: skip
    before = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum, norm.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for norm, (momentum, count) in zip(norms, before, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, count
