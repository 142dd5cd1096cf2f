"""What ``gala-cuda train``, ``eval`` and ``export`` do with their arguments."""

import argparse
import json
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import torch
from rich.console import Console

from ..clickme.score import PAIRS, MapRecord, MapScore, returns_maps
from ..console import PlainConsole
from ..data.choices import DIGITS
from ..data.errors import TooManyUnreadableError, UnreachableError
from ..data.load import Data, load
from ..data.pictures import Preprocessing
from ..networks import network as networks
from ..networks.classes import places
from ..networks.network import Network, NetworkError, WeightsError
from ..training import distributed
from ..training.checkpoint import CheckpointError, Checkpoints
from ..training.evaluate import evaluate, print_evaluation, print_score
from ..training.export import FORMATS, ExportError
from ..training.loop import DivergenceError, fit, images_per_part
from ..training.recipe import Recipe, RecipeError, resolve, stated
from ..training.run import Run
from ..training.start import network_of
from ..training.trial import check_training
from .interrupt import command_line
from .opening import open_network, trained_on
from .training_arguments import given_flags

FAILURES = (CheckpointError, DivergenceError, ExportError, TooManyUnreadableError, UnreachableError)


class DataError(RecipeError):
    """The images of a recipe cannot be had."""

    def __str__(self) -> str:
        return self.problem


@contextmanager
def arguments_named(args: argparse.Namespace | None = None, source: str | None = None) -> Iterator[None]:
    """Refusals as argparse's, by what the user gave: a flag of ``args``, else a field of the recipe ``source``."""
    try:
        yield
    except (RecipeError, NetworkError) as error:
        raise argparse.ArgumentError(None, f"argument {_blamed(error.names, args, source)}: {error}") from error
    except WeightsError as error:
        blamed = "weights" if args is None else f"argument {_blamed(('weights',), args, source)}"
        raise argparse.ArgumentError(None, f"{blamed}: {error}") from error


def _blamed(names: Sequence[str], args: argparse.Namespace | None, source: str | None) -> str:
    """The first of the fields ``names`` that a flag gave, else that the recipe ``source`` states, else the first."""
    for name in names:
        if hasattr(args, name):
            return _flag(name)
    if source is None or args is None:
        return _flag(names[0])
    flag = "--recipe" if args.recipe else "--resume"
    if names[0] in ("recipe", "preset"):
        return flag
    found = stated(source)
    return next((f"{flag}: {source}, {name}" for name in names if name in found), _flag(names[0]))


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def train(args: argparse.Namespace, console: Console) -> None:
    """Raises argparse.ArgumentError for arguments that cannot be followed, and ``FAILURES``."""
    device = device_of(args)
    resume, before = args.resume or distributed.restarted(), args.output / "recipe.yaml"
    source = str(before) if resume and args.recipe is None and before.exists() else args.recipe
    with arguments_named(args, source), distributed.joined(device) as world:
        recipe = resolve(source, given_flags(args))
        if recipe.keep_output and not recipe.weights:
            raise RecipeError("keep_output", "is True, but weights is None; expected --weights FILE", ["weights"])
        if not resume and Checkpoints(args.output / "checkpoints").paths():
            raise argparse.ArgumentError(
                None, f"argument --output: {args.output} holds a training; expected another folder, or --resume"
            )
        size, how = _prepared(recipe)
        shown = Console(quiet=True) if args.quiet or not world.main else console
        say = _say(shown, world)
        data = _load(recipe, images_per_part(recipe), size, device, how, say)
        say(
            f"data: {recipe.source}: {data.train.total:,} images of {len(data.classes):,} classes to train on, "
            f"{data.test.total:,} held out"
        )
        network = network_of(recipe, data.classes, data.channels, data.size, how)
        recipe = replace(recipe, image_size=network.size, width=network.width)
        torch.manual_seed(recipe.seed)
        model = networks.start(network, recipe.weights)
        check_training(model, network, recipe, data.train.images // len(data.train) // world.size)
        run = Run(
            args.output, device, shown, resume, args.checkpoint_every, args.keep, args.tensorboard, network.metadata()
        )
        fit(model, data, recipe, run)
        shown.print(f"weights and log are in {args.output.resolve()}", markup=False, highlight=False, soft_wrap=True)


def how_to_go_on(output: Path) -> str:
    """After a training to ``output`` was stopped: where its last checkpoint is, and the command that continues."""
    kept = Checkpoints(output / "checkpoints").paths()
    if not kept:
        return "; there is no checkpoint yet: the same command starts anew"
    return f"; the last checkpoint is {kept[-1]}; to continue: {command_line('--resume')}"


def evaluation(args: argparse.Namespace, console: Console) -> None:
    """Raises as :func:`train` does."""
    device = device_of(args)
    with arguments_named(), distributed.joined(device) as world:
        given, beside = given_flags(args), Path()
        if given.keys().isdisjoint(("data", "clickme")):
            own, beside = trained_on(args.weights_file)
            given |= own
        recipe = resolve(None, given)
        say = _say(PlainConsole(stderr=True) if args.json else console, world)
        _check_maps(args, recipe, world)
        model, network = open_network(args, recipe, say)
        if "data" not in given and recipe.clickme is None:
            raise RecipeError("data", f"is not given, and there is no {beside} to say what the weights were trained on")
        if beside.name:
            say(f"tested on {recipe.source}, as {beside} says")
        elif recipe.clickme is None and recipe.data != given["data"]:
            say(f"tested on {recipe.data}")
        data = _load(recipe, recipe.batch_size, network.size, device, network.how, say)
        numbers = _matched(recipe, data, network, say)
        model = model.to(device).to(memory_format=torch.channels_last)
        every = math.ceil(data.test.images / PAIRS)
        record = MapRecord(args.saliency or not returns_maps(model), every) if args.maps else None
        result = evaluate(model, data.test, device, recipe.precision, record, numbers)
        if not world.main:
            return
        score = None if record is None else _score(record, args)
        if args.json:
            maps = {} if score is None else {"maps": asdict(score)}
            print(json.dumps({**asdict(result), "confusion": result.confusion.tolist(), **maps}))
            return
        in_order = numbers == list(range(len(network.classes)))
        print_evaluation(result, data.classes if in_order else network.classes, console)
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
        model, network = open_network(args, resolve(None, given_flags(args)), partial(console.print, soft_wrap=True))
    base = args.output.with_suffix("") if args.output.suffix[1:] in FORMATS else args.output
    for kind in args.format:
        path = base.with_name(f"{base.name}.{kind}")
        path.parent.mkdir(parents=True, exist_ok=True)
        deviation = FORMATS[kind](model, network.channels, network.size, path)
        console.print(
            f"{path.resolve()}: logits as the network's to {deviation:.1e}; images [batch, {network.channels}, "
            f"{network.size}, {network.size}]", markup=False, highlight=False, soft_wrap=True)  # fmt: skip


def _say(console: Console, world: distributed.World) -> Callable[[str], None]:
    """Prints a line, on one of several processes."""
    shown = console if world.main else Console(quiet=True)
    return partial(shown.print, highlight=False, soft_wrap=True)


def _prepared(recipe: Recipe) -> tuple[int | None, Preprocessing]:
    """Size and preparation of the pictures to train on: the recipe's, then those of the network's library."""
    file = None if recipe.weights is None else Path(recipe.weights).name
    size, how = networks.prepared(recipe.model, recipe.image_size, file)
    return (recipe.image_size if recipe.source == DIGITS else size), how


def _matched(recipe: Recipe, data: Data, network: Network, say: Callable[[str], None]) -> list[int]:
    """The network's number of each class of the data. Raises argparse.ArgumentError."""
    where = f"argument {_source_flag(recipe)}: {recipe.source}"
    if data.channels != network.channels:
        raise argparse.ArgumentError(
            None, f"{where} has images of {data.channels} channels; expected {network.channels}, as the network takes"
        )
    try:
        numbers, note = places(data.classes, network.classes)
    except ValueError as error:
        raise argparse.ArgumentError(None, f"{where} {error}") from error
    if note is not None:
        say(note)
    return numbers


def _load(
    recipe: Recipe, batch_size: int, size: int | None, device: torch.device, how: Preprocessing,
    say: Callable[[str], None],
) -> Data:  # fmt: skip
    world = distributed.world()
    blurred = recipe.clickme_loss == "harmonization"  # gala_tpu's loss blurs them itself, after the crop
    maps = None if recipe.clickme is None else "harmonization" if blurred else "paper"
    try:
        data = load(
            recipe.source, batch_size, recipe.seed, size, recipe.workers, rank=world.rank, world=world.size,
            augment=recipe.augment, how=how, maps=maps, pin_memory=device.type == "cuda",
        )  # fmt: skip
    except (FileNotFoundError, ValueError) as error:
        raise DataError("data" if recipe.clickme is None else "clickme", str(error)) from error
    for note in data.notes:
        say(note)
    return data


def _source_flag(recipe: Recipe) -> str:
    return "--data" if recipe.clickme is None else "--clickme"


def device_of(args: argparse.Namespace) -> torch.device:
    """The given one, else a GPU where there is one; without a number, the GPU of this process's local rank."""
    device = args.device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device("cuda", distributed.local_rank()) if device.type == "cuda" and device.index is None else device
