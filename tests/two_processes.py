"""What test_distributed.py has torchrun start: trainings as replicas and as shards. Argument: the output folder."""

import os
import signal
import sys
from pathlib import Path

import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from gala_cuda import GALA
from gala_cuda.console import PlainConsole
from gala_cuda.data.load import load
from gala_cuda.training.distributed import process_group, was_restarted, world
from gala_cuda.training.loop import fit
from gala_cuda.training.recipe import Recipe
from gala_cuda.training.run import Run

CPU = torch.device("cpu")
RECIPES = {
    "replicas": Recipe(epochs=2, accumulate=2, clip=1.0, ema=0.9),
    "shards": Recipe(epochs=2, parallel="fsdp", optimizer="adamw", lr=3e-3, ema=0.9, clip=1.0),
    "recomputed": Recipe(epochs=2, parallel="fsdp", grad_checkpointing=True),
}


class Block(nn.Module):
    """A residual block without BatchNorm, whose statistics would be those of a process's own images."""

    def __init__(self, channels):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.GroupNorm(2, channels)
        self.attention = GALA(channels)

    def forward(self, x):
        return self.attention(self.norm(self.conv(x)), residual=x)


def network():
    torch.manual_seed(0)
    stem, head = nn.Conv2d(1, 8, 3, stride=2), nn.Linear(72, 10)
    return nn.Sequential(stem, nn.Sequential(Block(8), Block(8)), nn.Flatten(), head)


def train(name, output, **options):
    recipe, here = RECIPES[name], world()
    data = load("digits", recipe.micro_batch_size(here.size), seed=0, size=8, rank=here.rank, world=here.size)
    return fit(network(), data, recipe, Run(output / name, CPU, PlainConsole(quiet=True), **options))


def kill_after(steps, others=()):
    """This process, after the `others`, by SIGKILL."""
    done = []

    def count(*_):
        done.append(1)
        if len(done) == steps:
            for number in (*others, os.getpid()):
                os.kill(number, signal.SIGKILL)

    register_optimizer_step_post_hook(count)


if __name__ == "__main__":
    output, dies = Path(sys.argv[1]), sys.argv[2:] == ["dies"]
    if dies and os.environ["LOCAL_RANK"] == "1" and not was_restarted():
        kill_after(32)
    torch.set_num_threads(1)
    with process_group(CPU):
        for each in ["replicas"] if dies else RECIPES:
            train(each, output, checkpoint_every=15, keep=9, resume=was_restarted())
