"""Trains one network and measures it on scenes whose background says nothing about the class."""

import json
import math
import shutil
import time
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

from gala_cuda.clickme import MapScoreMeter
from gala_cuda.clickme.score import PAIRS, returns_maps
from gala_cuda.console import PlainConsole
from gala_cuda.data.batches import Batches
from gala_cuda.data.load import Data
from gala_cuda.networks.loading import read_weights, rebuild
from gala_cuda.training.checkpoint import write_atomically
from gala_cuda.training.evaluate import to_device
from gala_cuda.training.loop import fit
from gala_cuda.training.run import Run

from .scenes import CLASSES, SceneImages, draw
from .settings import TEST_SEED, TRAIN_SEEDS, VAL_SEED, Cell, Settings

AT_ONCE = 50  # images that are measured together
WATCHED = 100  # images that the log is about, after each epoch


def run(cell: Cell, settings: Settings, folder: Path, device: str) -> dict[str, Any]:
    """The cell's result: read from `folder` if it is there, else from training, which continues where it stopped.

    It takes one thread, so that a CPU always gives the same result and several cells can share it.
    """
    path = folder / cell.name / "result.json"
    if path.is_file():
        return json.loads(path.read_text())
    torch.set_num_threads(1)
    began = time.perf_counter()
    model = train(cell, settings, folder / cell.name, torch.device(device))
    result = {
        **asdict(cell),
        "val": measure(model, held_out(settings.val, settings.pixels, VAL_SEED), maps=False),
        "test": measure(model, held_out(settings.test, settings.pixels, TEST_SEED), maps=True),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "seconds": time.perf_counter() - began,
    }
    write_atomically(path, (json.dumps(result, indent=1) + "\n").encode())
    shutil.rmtree(path.parent / "checkpoints")
    return result


def train(cell: Cell, settings: Settings, folder: Path, device: torch.device) -> nn.Module:
    """The network after its last epoch; no epoch is chosen."""
    recipe, network = cell.recipe(settings), cell.network(settings)
    scenes = draw(settings.train, settings.pixels, settings.agreement, TRAIN_SEEDS + cell.seed)
    batches = Batches(SceneImages(scenes, flips=True), settings.batch_size, cell.seed, train=True)
    watched = Batches(held_out(min(WATCHED, settings.val), settings.pixels, VAL_SEED), AT_ONCE, train=False)
    torch.manual_seed(cell.seed)
    model = network.build()
    run = Run(folder, device, PlainConsole(quiet=True), resume=True, keep=1, metadata=network.metadata())
    fit(model, Data(batches, watched, CLASSES, 3, settings.pixels), recipe, run)
    return model


def trained(cell: Cell, folder: Path) -> nn.Module:
    """The network of a cell that has run, on the CPU, in evaluation mode."""
    weights, network = read_weights(folder / cell.name / "last.safetensors")
    assert network is not None  # training writes it
    return rebuild(network, weights).eval()


@lru_cache(maxsize=3)
def held_out(count: int, pixels: int, seed: int) -> SceneImages:
    """Scenes whose background has any hue."""
    return SceneImages(draw(count, pixels, 0.0, seed), flips=False)


@torch.no_grad()
def measure(model: nn.Module, images: SceneImages, maps: bool) -> dict[str, Any]:
    """The error, the share of answers that are wrong and the background's, and with `maps` their scores by kind.

    The maps of the scenes are exact: the ceiling of the scores is 1.
    """
    device = next(model.parameters()).device
    kinds = ("attention", "saliency") if returns_maps(model) else ("saliency",)
    every = math.ceil(len(images.labels) / PAIRS)
    records = {kind: MapScoreMeter(kind == "saliency", every) for kind in kinds if maps}
    answers = []
    model.eval()
    for batch in Batches(images, AT_ONCE, train=False).epoch():
        pixels, labels = to_device(*batch[:2], device)
        for record in records.values():
            record.add(record.compute_maps(model, pixels, labels)[1], *batch[2:])
        answers.append(model(pixels).argmax(1).cpu())
    answer = torch.cat(answers)
    wrong = answer != images.labels
    return {
        "error": wrong.double().mean().item(),
        "deceived": (wrong & (answer == images.scenes.cues)).double().mean().item(),
        **{kind: asdict(record.score(ceiling=1.0)) for kind, record in records.items()},
    }
