"""Trains one network, and measures it on the images that settings are chosen by and on those of the test."""

import json
import math
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from gala_cuda.clickme import MapScoreMeter
from gala_cuda.clickme.score import PAIRS
from gala_cuda.console import PlainConsole
from gala_cuda.data.batches import Batches
from gala_cuda.data.datasets import ImageDataset
from gala_cuda.data.load import Data
from gala_cuda.models.resnet import ResNet
from gala_cuda.models.with_maps import gala_layers
from gala_cuda.networks.loading import read_weights
from gala_cuda.training.checkpoint import write_atomically
from gala_cuda.training.evaluate import to_device
from gala_cuda.training.loop import fit
from gala_cuda.training.recipe import Recipe
from gala_cuda.training.run import Run

from .images import First, Images, load
from .networks import build
from .scenes import SceneImages
from .settings import CHOICE_SEEDS, Cell, Settings

AT_ONCE = 50  # images that are measured together
WATCHED = 100  # images that the log is about, after each epoch


def run(cell: Cell, settings: Settings, folder: Path, device: str) -> dict[str, Any]:
    """The cell's result: read from `folder` if it is there, else from training, which continues where it stopped.

    It takes one thread, so that a CPU always gives the same result and several cells can share it. What settings are
    chosen by is never tested.
    """
    path = folder / cell.name / "result.json"
    if path.is_file():
        return json.loads(path.read_text())
    torch.set_num_threads(1)
    began = time.perf_counter()
    images = load(settings.data[cell.data], settings, cell.seed)
    model = train(cell, settings, images, folder / cell.name, torch.device(device))
    result = {**asdict(cell), "val": measure(model, images.val, maps=False)}
    if cell.seed < CHOICE_SEEDS:
        result["test"] = measure(model, images.test, maps=True)
    result["parameters"] = sum(parameter.numel() for parameter in model.parameters())
    result["seconds"] = time.perf_counter() - began
    write_atomically(path, (json.dumps(result, indent=1) + "\n").encode())
    shutil.rmtree(path.parent / "checkpoints")
    return result


def train(
    cell: Cell,
    settings: Settings,
    images: Images,
    folder: Path,
    device: torch.device,
    watch: Callable[[nn.Module], object] = lambda model: None,
) -> nn.Module:
    """The network after its last epoch; no epoch is chosen. `watch` gets it before the first."""
    recipe, (channels, _, size) = make_recipe(cell, settings), images.train.shape
    batches = Batches(images.train, settings.batch_size, cell.seed, train=True)
    model = make_network(cell, settings, images)
    watch(model)
    run = Run(folder, device, PlainConsole(quiet=True), resume=True, keep=1)
    watched = Batches(First(images.val, WATCHED), AT_ONCE, train=False)
    fit(model, Data(batches, watched, images.classes, channels, size), recipe, run)
    return model


def make_network(cell: Cell, settings: Settings, images: Images) -> ResNet:
    """The cell's network as it starts."""
    torch.manual_seed(cell.seed)
    channels = images.train.shape[0]
    return build(cell.network, settings.depth, len(images.classes), channels, settings.width, settings.layers)


def trained(cell: Cell, settings: Settings, folder: Path) -> nn.Module:
    """The network of a cell that has run, on the CPU, in evaluation mode."""
    model = make_network(cell, settings, load(settings.data[cell.data], settings, cell.seed))
    weights, _ = read_weights(folder / cell.name / "last.safetensors")
    model.load_state_dict(weights)
    return model.eval()


def make_recipe(cell: Cell, settings: Settings) -> Recipe:
    data = settings.data[cell.data]
    return Recipe(
        data=cell.data, model=cell.network, layers=settings.layers, width=settings.width, image_size=settings.pixels,
        epochs=data.epochs, batch_size=settings.batch_size, lr=cell.lr, weight_decay=settings.weight_decay,
        decay_attention=cell.decay, precision=settings.precision, clickme_weight=cell.level, seed=cell.seed, workers=0,
    )  # fmt: skip


@torch.no_grad()
def measure(model: nn.Module, images: ImageDataset, maps: bool) -> dict[str, Any]:
    """Error and cross-entropy; of scenes also the share of answers that are the background's, and with `maps` scores.

    The maps of the scenes are exact: the ceiling of the scores is 1.
    """
    device = next(model.parameters()).device
    scenes = images.scenes if isinstance(images, SceneImages) else None
    kinds = () if scenes is None or not maps else ("attention", "saliency") if gala_layers(model) else ("saliency",)
    every = math.ceil(len(images.labels) / PAIRS)
    records = {kind: MapScoreMeter(kind == "saliency", every) for kind in kinds}
    answers = []
    model.eval()
    for batch in Batches(images, AT_ONCE, train=False).epoch():
        pixels, labels = to_device(*batch[:2], device)
        for record in records.values():
            record.add(record.compute_maps(model, pixels, labels)[1], *batch[2:])
        answers.append(model(pixels).float().cpu())
    logits, labels = torch.cat(answers), images.labels
    wrong = logits.argmax(1) != labels
    found: dict[str, Any] = {"error": wrong.double().mean().item(), "loss": F.cross_entropy(logits, labels).item()}
    if scenes is not None:
        found["deceived"] = (wrong & (logits.argmax(1) == scenes.cues)).double().mean().item()
    return found | {kind: asdict(record.score(ceiling=1.0)) for kind, record in records.items()}
