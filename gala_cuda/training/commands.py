"""What ``gala-cuda train``, ``eval`` and ``export`` do with their arguments."""

import argparse
import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path

import torch
from rich.console import Console
from torch import nn

from ..clickme.similarity import PAIRS, MapRecord, MapScore, returns_maps
from . import distributed, networks
from .checkpoint import CheckpointError, Checkpoints
from .data import Data, load
from .evaluate import evaluate, print_evaluation, print_score
from .export import FORMATS, ExportFailed
from .loop import Diverged, Run, fit, images_per_part
from .networks import BadNetwork, BadWeights, Network
from .recipe import BadRecipe, Recipe, given_flags, resolve
from .sampling import TooManyUnreadable, Unreachable

FAILURES = (CheckpointError, Diverged, ExportFailed, TooManyUnreadable, Unreachable)
_IN_FOLDERS = ("best.safetensors", "weights.safetensors")  # of a training; of a checkpoint


@contextmanager
def arguments_named() -> Iterator[None]:
    """Refusals as argparse's, by the flag that is to blame."""
    try:
        yield
    except (BadRecipe, BadNetwork) as error:
        raise argparse.ArgumentError(None, f"argument --{error.name.replace('_', '-')}: {error}") from error
    except BadWeights as error:
        raise argparse.ArgumentError(None, f"weights: {error}") from error


def train(args: argparse.Namespace, console: Console) -> None:
    """Raises argparse.ArgumentError for arguments that cannot be followed, and ``FAILURES``."""
    device = device_of(args)
    with arguments_named(), distributed.joined(device) as world:
        resume = args.resume or distributed.restarted()
        before = args.output / "recipe.yaml"
        source = str(before) if resume and args.recipe is None and before.exists() else args.recipe
        recipe = resolve(source, given_flags(args))
        if not resume and Checkpoints(args.output / "checkpoints").paths():
            raise argparse.ArgumentError(
                None, f"argument --output: {args.output} holds a training; expected another folder, or --resume"
            )
        data = _load(recipe, images_per_part(recipe), recipe.image_size, device)
        network = Network.of(recipe, data.classes, data.channels, data.size)
        recipe = replace(recipe, image_size=network.size, width=network.width)
        torch.manual_seed(recipe.seed)
        model = networks.start(network, recipe.weights)
        shown = console if world.main and not args.quiet else Console(quiet=True)
        run = Run(
            args.output, device, shown, resume, args.checkpoint_every, args.keep, args.tensorboard, network.metadata()
        )
        fit(model, data, recipe, run)
        shown.print(f"weights and log are in {args.output.resolve()}", markup=False, highlight=False, soft_wrap=True)


def evaluation(args: argparse.Namespace, console: Console) -> None:
    """Raises as :func:`train` does."""
    device = device_of(args)
    with arguments_named(), distributed.joined(device) as world:
        recipe = resolve(None, given_flags(args))
        _check_maps(args, recipe, world)
        model, network = open_network(args, recipe)
        data = _load(recipe, recipe.batch_size, recipe.image_size or network.size, device)
        if len(data.classes) != len(network.classes):
            raise argparse.ArgumentError(
                None, f"argument {_source_flag(recipe)}: {recipe.source} has {len(data.classes)} classes, "
                f"{args.weights_file} has {len(network.classes)}")  # fmt: skip
        model = model.to(device).to(memory_format=torch.channels_last)
        every = math.ceil(data.test.images / PAIRS)
        record = MapRecord(args.saliency or not returns_maps(model), every) if args.maps else None
        result = evaluate(model, data.test, device, recipe.precision, record)
        if not world.main:
            return
        score = None if record is None else _score(record, args)
        if args.json:
            maps = {} if score is None else {"maps": asdict(score)}
            print(json.dumps({**asdict(result), "confusion": result.confusion.tolist(), **maps}))
            return
        print_evaluation(result, data.classes, console)
        if score is not None:
            print_score(result, score, console)


def _check_maps(args: argparse.Namespace, recipe: Recipe, world: distributed.World) -> None:
    if args.saliency and not args.maps:
        raise argparse.ArgumentError(None, "argument --saliency: is what --maps compares; expected --maps too")
    if args.maps and recipe.clickme is None:
        raise argparse.ArgumentError(None, "argument --maps: compares with human maps; expected --clickme DIR")
    if args.maps and world.size > 1:
        raise argparse.ArgumentError(None, f"argument --maps: there are {world.size} processes; expected 1")
    if args.ceiling > 1:
        raise argparse.ArgumentError(None, f"argument --ceiling: is {args.ceiling}; expected a correlation, at most 1")


def _score(record: MapRecord, args: argparse.Namespace) -> MapScore:
    try:
        return record.score(args.ceiling)
    except ValueError as error:
        raise argparse.ArgumentError(None, f"argument --maps: {error}") from error


def export(args: argparse.Namespace, console: Console) -> None:
    """Raises as :func:`train` does."""
    with arguments_named():
        model, network = open_network(args, resolve(None, given_flags(args)))
    base = args.output.with_suffix("") if args.output.suffix[1:] in FORMATS else args.output
    for kind in args.format:
        path = base.with_name(f"{base.name}.{kind}")
        path.parent.mkdir(parents=True, exist_ok=True)
        deviation = FORMATS[kind](model, network.channels, network.size, path)
        console.print(
            f"{path.resolve()}: logits as the network's to {deviation:.1e}; images [batch, {network.channels}, "
            f"{network.size}, {network.size}]", markup=False, highlight=False, soft_wrap=True)  # fmt: skip


def open_network(args: argparse.Namespace, recipe: Recipe) -> tuple[nn.Module, Network]:
    path: Path = args.weights_file
    if path.is_dir():
        found = [path / name for name in _IN_FOLDERS if (path / name).is_file()]
        if not found:
            raise BadWeights(f"{path} holds none of {', '.join(_IN_FOLDERS)}")
        path = found[0]
    weights, network = networks.read_weights(path)
    if network is None:
        network = networks.described_by(path, weights, getattr(args, "model", None), recipe)
    if recipe.image_size:
        network = replace(network, size=recipe.image_size)
    return networks.rebuilt(network, weights), network


def _load(recipe: Recipe, batch_size: int, size: int | None, device: torch.device) -> Data:
    world = distributed.world()
    blurred = recipe.clickme_loss == "harmonization"  # gala_tpu's loss blurs them itself, after the crop
    maps = None if recipe.clickme is None else "harmonization" if blurred else "paper"
    try:
        return load(
            recipe.source, batch_size, recipe.seed, size, recipe.workers, rank=world.rank, world=world.size,
            augment=recipe.augment, maps=maps, pin_memory=device.type == "cuda",
        )  # fmt: skip
    except (FileNotFoundError, ValueError) as error:
        raise argparse.ArgumentError(None, f"argument {_source_flag(recipe)}: {error}") from error


def _source_flag(recipe: Recipe) -> str:
    return "--data" if recipe.clickme is None else "--clickme"


def device_of(args: argparse.Namespace) -> torch.device:
    """The given one, else a GPU where there is one; without a number, the GPU of this process's local rank."""
    device = args.device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device("cuda", distributed.local_rank()) if device.type == "cuda" and device.index is None else device
