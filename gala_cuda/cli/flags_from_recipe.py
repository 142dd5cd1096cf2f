"""A recipe's fields as flags of a command, and the flag that is to blame where a setting is refused."""

import argparse
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from typing import Any

from ..errors import SettingError
from ..training.recipe import Recipe
from ..training.recipe_file import stated

# What weights know of themselves.
_OF_WEIGHTS = (
    "data", "val_share", "seed", "image_column", "label_column", "multi_label", "stream", "loss", "clickme", "model",
    "layers", "keep_output", "image_size", "mean", "std", "interpolation",
)  # fmt: skip


def add_recipe_flags(parser: argparse._ActionsContainer, names: Collection[str] | None = None) -> None:
    """Adds a flag for every field of a recipe, or for those of `names` where the command is given weights.

    The namespace has no attribute for a flag that is not given.
    """
    for each in fields(Recipe):
        if names is not None and each.name not in names:
            continue
        text = each.metadata["help"]
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
        parser.add_argument(_flag(each.name), **options)


def given_flags(args: argparse.Namespace) -> dict[str, Any]:
    """The fields of a `Recipe` that the command line gave."""
    return {each.name: getattr(args, each.name) for each in fields(Recipe) if hasattr(args, each.name)}


@contextmanager
def blaming_arguments(args: argparse.Namespace, source: str | None = None) -> Iterator[None]:
    """Turns the refusal of a setting into that of an argument: a flag that was given, or the recipe `source`.

    Raises:
        argparse.ArgumentError: in place of SettingError.
    """
    try:
        yield
    except SettingError as error:
        raise argparse.ArgumentError(None, f"argument {_blamed(error.names, args, source)}: {error}") from error


def _blamed(names: Sequence[str], args: argparse.Namespace, source: str | None) -> str:
    """The first of the fields `names` that a flag gave, else that the recipe `source` states, else the first."""
    for name in names:
        if hasattr(args, name):
            return _flag(name)
    if names[0] == "weights" and hasattr(args, "weights_file"):
        return "WEIGHTS"
    if source is None:
        return _flag(names[0])
    flag = "--recipe" if args.recipe else "--resume"
    if names[0] in ("recipe", "preset"):
        return flag
    found = stated(source)
    return next((f"{flag}: {source}, {name}" for name in names if name in found), _flag(names[0]))


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"
