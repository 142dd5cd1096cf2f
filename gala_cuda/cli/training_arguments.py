"""The arguments of ``gala-cuda train``, ``eval`` and ``export``; a recipe's fields as flags."""

import argparse
from collections.abc import Collection
from dataclasses import fields
from pathlib import Path
from typing import Any

from ..training.recipe import PRESETS, Recipe
from .arguments import count, device, positive

_OF_WEIGHTS = ("data", "clickme", "model", "layers", "keep_output", "image_size")  # what these know of themselves


def add_train_arguments(sub: argparse.ArgumentParser) -> None:
    sub.set_defaults(does="train")
    add = sub.add_argument
    add("--recipe", metavar="NAME", help=f"{', '.join(PRESETS)}, or a YAML file; flags below replace its values")
    add("--output", type=Path, default=Path("runs/train"), help="folder to write to (default: %(default)s)")
    add("--resume", action="store_true", help="continue where the output folder stands, or start if it is empty")
    add("--device", type=device, help="cpu, cuda, cuda:1 (default: a GPU if there is one)")
    add("--checkpoint-every", type=count, metavar="STEPS", help="beside the checkpoint after each epoch")
    add("--keep", type=count, default=2, metavar="N", help="newest checkpoints that stay (default: %(default)s)")
    add("--tensorboard", action="store_true", help="also log for TensorBoard")
    add("--quiet", action="store_true", help="print nothing but errors")
    add_flags(sub.add_argument_group("recipe"))


def _add_weights_file(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("weights_file", type=Path, metavar="WEIGHTS", help="safetensors or torch.save file of this "
        "package, of torchvision or of timm; or the folder of a training")  # fmt: skip


def add_export_arguments(sub: argparse.ArgumentParser) -> None:
    sub.set_defaults(does="export")
    _add_weights_file(sub)
    sub.add_argument("--format", nargs="+", choices=("onnx", "pt2"), default=["onnx"], help="(default: onnx)")
    sub.add_argument("--output", type=Path, default=Path("runs/export/network"), metavar="FILE",
        help="to write to; the format's suffix is added (default: %(default)s)")  # fmt: skip
    add_flags(sub, ("model", "layers", "keep_output", "image_size"))


def add_eval_arguments(sub: argparse.ArgumentParser) -> None:
    sub.set_defaults(does="evaluation")
    _add_weights_file(sub)
    add = sub.add_argument
    add("--json", action="store_true", help="as JSON")
    add("--device", type=device, help="cpu, cuda, cuda:1 (default: a GPU if there is one)")
    add("--maps", action="store_true", help="compare attention maps, or input gradients of networks without attention, "
        "with the human maps of --clickme: the columns of the paper's table")  # fmt: skip
    add("--saliency", action="store_true", help="with --maps: compare input gradients in any case")
    add("--ceiling", type=positive, default=0.65753, metavar="X", help="correlation of people among each other, "
        "to which the maps' is set in proportion (default: %(default)s, as Fel et al. published)")  # fmt: skip
    names = ("data", "clickme", "model", "layers", "keep_output", "image_size", "batch_size", "precision", "workers")
    add_flags(sub, names)


def add_flags(parser: argparse._ActionsContainer, names: Collection[str] | None = None) -> None:
    """A flag for every field, or for those of ``names``, of a command that is given weights.

    One that is not given leaves no trace in the namespace.
    """
    for each in fields(Recipe):
        if names is not None and each.name not in names:
            continue
        flag, text = f"--{each.name.replace('_', '-')}", each.metadata["help"]
        if names is not None and each.name in _OF_WEIGHTS:
            text = f"{text.partition(' (default')[0]} (default: as the weights' training had it)"
        elif each.default not in (None, ()) and "default" not in text:
            text = f"{text} (default: {each.default})"
        options: dict[str, Any] = {"default": argparse.SUPPRESS, "help": text.replace("%", "%%")}
        if each.type is bool:
            options["action"] = argparse.BooleanOptionalAction
        elif each.metadata["choices"]:
            options["choices"] = each.metadata["choices"]
        elif str(each.type).startswith("tuple"):
            options |= {"nargs": "+", "metavar": "X" if "float" in str(each.type) else "NAME"}
        else:
            kinds = {"int": "N", "float": "X"}
            options["metavar"] = next((letter for kind, letter in kinds.items() if kind in str(each.type)), "NAME")
        parser.add_argument(flag, **options)


def given_flags(args: argparse.Namespace) -> dict[str, Any]:
    """The fields of a :class:`Recipe` that the command line gave."""
    return {each.name: getattr(args, each.name) for each in fields(Recipe) if hasattr(args, each.name)}
