"""Why the start matters: what each does to signals and gradients at first, and how attention moves in training.

`python -m experiments.why` draws start.png (how much a block's dense path weighs beside its shortcut, and the gradients
that reach its first convolution, at the start) and movement.png (attention by epoch of training), from the scenes of
`python -m experiments`, whose chosen settings it reads from results.json.
"""

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor, nn

from gala_cuda.data.batches import Batches
from gala_cuda.layer import GALA
from gala_cuda.models.with_maps import gala_layers

from .cells import AT_ONCE, make_network, train
from .images import load
from .networks import gala
from .settings import SIZES, Cell, Settings

SHOWN = tuple(map(gala, ("paper", "half", "near half", "sigmoid, near half")))
SEEDS = range(3)
MOVEMENTS = {
    "mean": "mean of A",
    "negative": "share of A below 0",
    "places": "deviation of A over places",
    "channels": "deviation of A over channels",
}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser("python -m experiments.why", description=__doc__.partition("\n")[0])
    parser.add_argument("results", type=Path, help="folder with results.json, where the pictures go too")
    folder = parser.parse_args(arguments).results
    results = json.loads((folder / "results.json").read_text())
    settings = SIZES[results["size"]]
    data = next(iter(settings.data))
    chosen = [Cell(**each, level=0.0, seed=0) for each in results["choices"] if each["data"] == data]
    cells = [cell for cell in chosen if cell.network in SHOWN]
    torch.set_num_threads(1)
    draw_start([Cell(data, "ResNet", 0.1, True, 0.0, 0), *cells], settings, folder / "start.png")
    draw_movement(cells, settings, folder / "movement.png")
    return 0


def measure_start(cell: Cell, settings: Settings) -> dict[str, list[float]]:
    """By block, in the mean over seeds: how much the dense path weighs beside the shortcut, and relative gradients.

    "weight": the root mean square of the dense path's end over that of the shortcut. "gradient": the L2 norm of the
    gradient of the first convolution over that of its weights.
    """
    rows = [_measure_start(replace(cell, seed=seed), settings) for seed in SEEDS]
    return {name: [statistics.mean(of_block) for of_block in zip(*(row[name] for row in rows), strict=True)]
            for name in rows[0]}  # fmt: skip


def _measure_start(cell: Cell, settings: Settings) -> dict[str, list[float]]:
    images = load(settings.data[cell.data], settings, cell.seed)
    model, weights = make_network(cell, settings, images), list[float]()
    blocks: list[Any] = [block for _, block in model.blocks()]
    for block in blocks:
        block.register_forward_hook(lambda block, args, out: weights.append(_path_weight(block, args[0])))
    pixels, labels, *_ = next(Batches(images.train, 2 * AT_ONCE, cell.seed, train=True).epoch())
    F.cross_entropy(model.train()(pixels), labels).backward()
    convs = [block.conv1.weight for block in blocks]
    return {"weight": weights, "gradient": [(conv.grad.norm() / conv.norm()).item() for conv in convs]}


@torch.no_grad()
def _path_weight(block: Any, x: Tensor) -> float:
    """Of a BasicBlock, in the mode that it is in."""
    path = block.bn2(block.conv2(F.relu(block.bn1(block.conv1(x)))))
    if isinstance(block.attention, GALA):
        path = path * block.attention.attention(path)
    shortcut = x if block.downsample is None else block.downsample(x)
    return (path.square().mean().sqrt() / shortcut.square().mean().sqrt()).item()


def draw_start(cells: list[Cell], settings: Settings, path: Path) -> None:
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    titles = {
        "weight": "dense path, in units of the shortcut",
        "gradient": "gradient of a block's first convolution",
    }
    panels = dict(zip(titles, figure.subplots(1, 2), strict=True))
    for number, cell in enumerate(cells):
        for name, values in measure_start(cell, settings).items():
            panels[name].plot(values, "o-", color=_colour(number), markersize=3, label=cell.network)
    for name, axes in panels.items():
        axes.set_title(titles[name], fontsize=9)
        axes.set_xticks(range(8), [f"{stage}.{number}" for stage in (1, 2, 3, 4) for number in (0, 1)])
        axes.set_xlabel("block: layer", fontsize=9)
        axes.set_ylim(bottom=0)
        axes.spines[["top", "right"]].set_visible(False)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside right center", frameon=False, fontsize=7)
    figure.savefig(path, dpi=150)


def _colour(number: int) -> str:
    return "#777777" if number == 0 else f"C{number - 1}"


class Watch:
    """Watches the attention of a network on the images of each test: by epoch and layer, {what: value}."""

    def __init__(self, model: nn.Module):
        self.seen: dict[str, list[dict[str, float]]] = {}
        for name, layer in gala_layers(model):
            self.seen[name] = []
            layer.register_forward_pre_hook(lambda layer, args, name=name: self._look(name, layer, args[0]))

    @torch.no_grad()
    def _look(self, name: str, layer: GALA, x: Tensor) -> None:
        if layer.training:
            return
        a = layer.attention(x)
        self.seen[name].append({
            "mean": a.mean().item(), "negative": (a < 0).double().mean().item(),
            "places": a.flatten(2).std(2).mean().item(), "channels": a.mean((0, 2, 3)).std().item(),
        })  # fmt: skip

    def epochs(self, epochs: int) -> Iterator[dict[str, float]]:
        """The mean over layers and batches, epoch by epoch."""
        looks = [look for of_layer in self.seen.values() for look in of_layer]
        each = len(looks) // epochs // len(self.seen)
        for epoch in range(epochs):
            own = [look for of_layer in self.seen.values() for look in of_layer[epoch * each : (epoch + 1) * each]]
            yield {name: statistics.mean(look[name] for look in own) for name in MOVEMENTS}


def draw_movement(cells: list[Cell], settings: Settings, path: Path) -> None:
    """The attention of each start by epoch, at the settings that were chosen for it."""
    figure = Figure(figsize=(12, 3), layout="constrained")
    panels = dict(zip(MOVEMENTS, figure.subplots(1, len(MOVEMENTS)), strict=True))
    for number, cell in enumerate(cells, start=1):
        for name, values in _movement(cell, settings).items():
            panels[name].plot(range(1, len(values) + 1), values, color=_colour(number), label=cell.network)
    for name, axes in panels.items():
        axes.set_title(MOVEMENTS[name], fontsize=9)
        axes.set_xlabel("epoch", fontsize=8)
        axes.spines[["top", "right"]].set_visible(False)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside right center", frameon=False, fontsize=7)
    figure.savefig(path, dpi=150)


def _movement(cell: Cell, settings: Settings) -> dict[str, list[float]]:
    images, watches = load(settings.data[cell.data], settings, cell.seed), list[Watch]()
    with tempfile.TemporaryDirectory() as folder:
        train(cell, settings, images, Path(folder), torch.device("cpu"), lambda model: watches.append(Watch(model)))
    seen = list(watches[0].epochs(settings.data[cell.data].epochs))
    return {name: [epoch[name] for epoch in seen] for name in MOVEMENTS}


if __name__ == "__main__":
    sys.exit(main())
