"""One training in several processes, which torchrun starts: sums over all of them, replicas or shards, whole states."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from ..errors import GalaError
from ..models.with_maps import returning_maps
from .recipe import Recipe

T = TypeVar("T")


class LostProcessError(GalaError, RuntimeError):
    """Another process of the training ended, or its machine is out of reach."""


@dataclass(frozen=True)
class World:
    """The number of this process, its rank, and how many processes there are."""

    rank: int = 0
    size: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this is the process that prints and writes files."""
        return self.rank == 0


def world() -> World:
    """The processes of `process_group`; outside of it there is one."""
    return World(dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else World()


@contextmanager
def process_group(device: torch.device) -> Iterator[World]:
    """Joins the processes that torchrun started, by NCCL on GPUs, else gloo; without torchrun there is one.

    To join again after torchrun's restarts, TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 has to be set for torchrun: its store
    otherwise still has the addresses of the processes that ended (pytorch/pytorch#135712).

    Raises:
        LostProcessError: the connection to another process is lost.
    """
    if "WORLD_SIZE" not in os.environ:
        yield World()
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield world()
        dist.barrier()  # rank 0 writes while the others have nothing left to do
    except RuntimeError as error:
        if not isinstance(error, dist.DistError) and "gloo/transport" not in str(error):
            raise
        raise LostProcessError(
            f"process {dist.get_rank()} of {dist.get_world_size()} lost another one, of which the output of its own "
            f"torchrun tells more; --resume goes on from the last checkpoint ({error})"
        ) from error
    finally:
        dist.destroy_process_group()


def was_restarted() -> bool:
    """Whether torchrun started the processes again after a failure; every rank has to call.

    Of several machines each counts its own failures alone, and may hear of another's before its own process fails.
    """
    return max(all_gather(int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)))) > 0


def parallelize(model: nn.Module, recipe: Recipe, device: torch.device) -> nn.Module:
    """The module to call in place of `model`, which takes `return_maps` if there is GALA in it.

    With FSDP2 the parameters of `model` are replaced by shards.
    """
    size, called = world().size, returning_maps(model)
    if size == 1:
        return called
    if recipe.parallel == "ddp":
        return DistributedDataParallel(called, device_ids=[device] if device.type == "cuda" else None)
    for parameter in model.parameters():
        parameter.data = parameter.data.contiguous()  # FSDP2 takes no others; activations stay channels_last
    mesh = init_device_mesh(device.type, (size,))
    for stage in model.children():
        for block in stage.children() if isinstance(stage, nn.Sequential) else ():
            fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return called


def set_gradient_sync(parallel_model: nn.Module, on: bool) -> None:
    """Whether the coming backward pass sums gradients over all processes, or leaves that to a later one."""
    if isinstance(parallel_model, DistributedDataParallel):
        parallel_model.require_backward_grad_sync = on
    for module in parallel_model.modules():
        if isinstance(module, FSDPModule):
            module.set_requires_gradient_sync(on, recurse=False)


def all_reduce(tensor: Tensor) -> Tensor:
    """The sum of every rank's `tensor`, on every rank."""
    if world().size > 1:
        tensor = tensor.clone()
        dist.all_reduce(tensor)
    return tensor


def all_gather(item: T) -> list[T]:
    """Every rank's `item`, by rank."""
    items: list[Any] = [item]
    if world().size > 1:
        items = [None] * world().size
        dist.all_gather_object(items, item)
    return items


def broadcast_buffers(model: nn.Module) -> None:
    """Gives every rank the buffers of rank 0, which are BatchNorm's statistics."""
    if world().size > 1:
        for buffer in model.buffers():
            dist.broadcast(buffer, 0)


def full_state_dict(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict on the CPU with its shards put together; every rank has to call."""
    return {
        name: (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach().to("cpu", copy=True)
        for name, tensor in state.items()
    }


@torch.no_grad()
def load_full_state_dict(into: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> None:
    """Copies a state dict of whole tensors into one of tensors or shards of the same names."""
    for name, target in into.items():
        source = state[name].to(target.device)
        if isinstance(target, DTensor):
            source = distribute_tensor(source, target.device_mesh, target.placements)
        target.copy_(source)


def full_optimizer_state(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """The optimizer's state dict on the CPU, by names of parameters; every rank has to call, and rank 0 gets it."""
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    return dict(get_optimizer_state_dict(model, optimizer, options=options))


def load_full_optimizer_state(model: nn.Module, optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Goes back to what `full_optimizer_state` gave; every rank calls with the same `state`."""
    set_optimizer_state_dict(model, optimizer, state, options=StateDictOptions(full_state_dict=True))
