"""`gala-cuda eval`: tests weights on held-out images."""

import argparse
import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..clickme.score import CEILING, PAIRS, MapScore, MapScoreMeter
from ..data.choices import VIEWS
from ..errors import SettingError
from ..models.with_maps import gala_layers
from ..training.recipe import Recipe
from ..training.recipe_file import resolve
from .arguments import add_weights_file, device, device_of, positive
from .extras import extra
from .flags_from_recipe import add_recipe_flags, blaming_arguments, given_flags

if TYPE_CHECKING:
    from ..training.evaluate import Evaluation

HELP = "Test weights: accuracy, confusion, image/s."
FIELDS = (
    "data", "val_share", "seed", "image_column", "label_column", "multi_label", "stream", "loss", "clickme", "model",
    "layers", "keep_output", "image_size", "mean", "std", "interpolation", "batch_size", "precision", "workers",
)  # fmt: skip


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_weights_file(parser)
    add = parser.add_argument
    add("--json", action="store_true", help="as JSON")
    add("--device", type=device, help="cpu, cuda, cuda:1 (default: a GPU if there is one)")
    add("--tta", choices=VIEWS, help="test-time augmentation: average over the image and its mirror image, five crops "
        "of the scaled picture, or these and their mirror images")  # fmt: skip
    add("--maps", action="store_true", help="compare attention maps, or input gradients of networks without attention, "
        "with the human maps of --clickme: the columns of the paper's table")  # fmt: skip
    add("--saliency", action="store_true", help="with --maps: compare input gradients in any case")
    add("--ceiling", type=positive, default=CEILING, metavar="X", help="correlation of people among each other, "
        "to which the maps' is set in proportion (default: %(default)s, as Fel et al. published)")  # fmt: skip
    add_recipe_flags(parser, FIELDS)


def run(args: argparse.Namespace) -> int:
    with extra("train"):
        from ..console import PlainConsole
        from ..training import distributed
        from ..training.evaluate import evaluate, print_evaluation, print_score
        from ..training.start import class_numbers, load_images
        from ..training.trained_network import open_network, trained_on
    device, given, beside = device_of(args), given_flags(args), Path()
    with blaming_arguments(args), distributed.process_group(device) as world:
        if given.keys().isdisjoint(("data", "clickme")):
            own, beside = trained_on(args.weights_file)
            given |= own
        recipe = resolve(None, given)
        say = PlainConsole(stderr=args.json, quiet=not world.is_main).print_line
        _check_maps(args, recipe, world.size)
        model, network = open_network(args.weights_file, recipe, given, say)
        if "data" not in given and recipe.clickme is None:
            raise SettingError(
                ("data",), f"data is not given, and there is no {beside} to say what the weights were trained on"
            )
        if beside.name:
            say(f"tested on {recipe.source}, as {beside} says")
        elif recipe.clickme is None and recipe.data != given["data"]:
            say(f"tested on {recipe.data}")
        data = load_images(recipe, recipe.batch_size, network.size, network.preprocessing, device, say, args.tta)
        numbers = class_numbers(recipe, data, network, say)
        model = model.to(device).to(memory_format=torch.channels_last)
        every = math.ceil(data.test.images / PAIRS)
        map_meter = MapScoreMeter(args.saliency or not gala_layers(model), every) if args.maps else None
        result = evaluate(model, data.test, device, recipe.precision, map_meter, numbers, recipe.criterion)
        score = None if map_meter is None else _score(map_meter, args)
        if not world.is_main:
            return 0
        if args.json:
            maps = {} if score is None else {"maps": asdict(score)}
            print(json.dumps({**_as_json(result), **maps}))
            return 0
        in_order = numbers == list(range(len(network.classes)))
        print_evaluation(result, data.classes if in_order else network.classes, console := PlainConsole())
        if score is not None:
            print_score(result, score, console)
    return 0


def _as_json(result: "Evaluation") -> dict[str, Any]:
    """The figures; null of those that there are none of."""
    confusion, precision = result.confusion, result.average_precision
    return {
        **asdict(result), "map": result.mean_average_precision,
        "confusion": None if confusion is None else confusion.tolist(),
        "average_precision":
            None if precision is None else [None if math.isnan(value) else value for value in precision.tolist()],
    }  # fmt: skip


def _check_maps(args: argparse.Namespace, recipe: Recipe, processes: int) -> None:
    """Refuses what does not go with --maps."""
    if args.saliency and not args.maps:
        raise argparse.ArgumentError(None, "argument --saliency: is what --maps compares; expected --maps too")
    if args.maps and recipe.clickme is None:
        raise argparse.ArgumentError(None, "argument --maps: compares with human maps; expected --clickme DIR")
    if args.maps and processes > 1:
        raise argparse.ArgumentError(None, f"argument --maps: there are {processes} processes; expected 1")
    if args.ceiling > 1:
        raise argparse.ArgumentError(None, f"argument --ceiling: is {args.ceiling}; expected a correlation, at most 1")


def _score(map_meter: MapScoreMeter, args: argparse.Namespace) -> MapScore:
    try:
        return map_meter.score(args.ceiling)
    except ValueError as error:
        raise argparse.ArgumentError(None, f"argument --maps: {error}") from error
