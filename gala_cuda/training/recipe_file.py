"""Recipes by name and in files: the presets, and the YAML file that is kept beside every checkpoint."""

import json
import subprocess
from collections.abc import Mapping
from dataclasses import asdict, fields
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from ..data.choices import explicit_source
from ..version import __version__
from .recipe import Recipe, RecipeError

_PACKAGES = ("torch", "torchvision", "timm", "numpy", "safetensors")
_KINDS = {"tuple": "a list", "bool": "true or false", "int": "a whole number", "float": "a number", "str": "text"}
_FORMER = (("time_limit", None),)  # fields of older recipes, each with the only value that can still be followed
_UNSAID = {"init": "paper"}  # fields that older recipes have not, with the only value that there was
_FACTS = ("peak_lr", "versions", "git")  # what a written recipe has beside its fields

PRESETS: dict[str, dict[str, Any]] = {
    # Linsley et al., section 3, after Hu et al.: what the paper gives
    "paper": {
        "model": "gala_resnet50", "init": "paper", "epochs": 90, "batch_size": 1024, "lr_256": 0.1, "warm_up": 5 / 90,
        "schedule": "steps", "weight_decay": 1e-4, "decay_vectors": True, "deterministic": False,
        "workers": 8,
    },
    # the same network and loss as in the authors' released code
    "gala_tpu": {
        "model": "gala_preact_resnet50", "init": "paper", "clickme_loss": "gala_tpu", "decay_attention": False,
        "epochs": 90, "batch_size": 1024, "lr_256": 0.1, "warm_up": 5 / 90, "schedule": "steps", "weight_decay": 1e-4,
        "deterministic": False, "workers": 8,
    },
    # long, strongly regularised, averaged
    "modern": {
        "model": "gala_resnet50", "epochs": 300, "batch_size": 1024, "lr_256": 0.125, "warm_up": 5 / 300,
        "weight_decay": 2e-5, "augment": "modern", "label_smoothing": 0.1, "mixup": 0.2, "cutmix": 1.0, "ema": 0.9998,
        "precision": "bfloat16", "deterministic": False, "workers": 8,
    },
    # from pretrained weights, with few images
    "finetune": {
        "model": "gala_resnet50", "keep_output": True, "epochs": 30, "batch_size": 64, "lr_256": 0.02,
        "weight_decay": 1e-4, "label_smoothing": 0.1, "ema": 0.998,
    },
}  # fmt: skip


def resolve(source: str | None, given: Mapping[str, Any]) -> Recipe:
    """The recipe of `source`, a preset's name or a YAML file, with the values of `given` in place of its own.

    A file's fields are those of `Recipe`, at its top level; `preset` names the preset that the others come
    from. What `as_yaml` wrote can be read again.

    Raises:
        RecipeError: the source is no preset and no readable YAML file, or a field is unknown or out of range.
    """
    values = {} if source is None else stated(source)
    if "lr_256" in given:
        if "lr" in given:
            raise RecipeError(
                "lr_256", "is given together with lr, beside which it has no effect; expected one of them"
            )
        values["lr"] = None
    types = {each.name: each.type for each in fields(Recipe)}
    values.update(given)
    for name, value in values.items():
        if name not in types:
            raise RecipeError("recipe", f"has a field {name!r}; expected some of {', '.join(types)}")
        values[name] = _typed(name, value, types[name])
    if "data" in values:
        values["data"] = explicit_source(values["data"])
    return Recipe(**values)


def stated(source: str) -> dict[str, Any]:
    """The fields that a recipe, a preset's name or a YAML file, sets; raises as `resolve` does."""
    return dict(PRESETS[source]) if source in PRESETS else _from_file(Path(source))


def _from_file(path: Path) -> dict[str, Any]:
    import yaml

    expected = f"expected one of {', '.join(PRESETS)}, or a YAML file"
    try:
        values = yaml.safe_load(path.read_text())
    except OSError as error:
        raise RecipeError("recipe", f"is {str(path)!r}; {expected} ({error.strerror})") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        reason = str(error).splitlines()[0] + (f", line {mark.line + 1}" if mark else "")
        raise RecipeError("recipe", f"{path} is no YAML: {reason}") from error
    if not isinstance(values, dict):
        raise RecipeError("recipe", f"{path} holds a {type(values).__name__}; expected fields and values")
    if "versions" in values:  # written by a training
        values = _UNSAID | values
    values = {name: value for name, value in values.items() if name not in _FACTS and (name, value) not in _FORMER}
    preset = values.pop("preset", None)
    if preset is not None and preset not in list(PRESETS):
        raise RecipeError("preset", f"is {preset!r}; expected one of {', '.join(PRESETS)}")
    return {**PRESETS.get(preset, {}), **values}


def _typed(name: str, value: Any, kind: Any) -> Any:
    """`value`, from a file or a flag, as the field's type; YAML reads 5e-4 as text, and has lists for tuples."""
    if value is None and "None" in str(kind):
        return None
    try:
        if kind in (tuple[str, ...], tuple[float, ...]) and isinstance(value, (list, tuple)):
            of = str if kind == tuple[str, ...] else float
            return tuple(of(entry) for entry in value)
        for exact in (bool, int, float, str):
            if kind in (exact, exact | None) and not isinstance(value, (list, dict)):
                wrong = isinstance(value, bool) != (exact is bool) or (exact is int and int(value) != float(value))
                if not wrong:
                    return exact(value)
    except (OverflowError, TypeError, ValueError):
        pass
    expected = next(words for word, words in _KINDS.items() if word in str(kind))
    raise RecipeError(name, f"is {value!r}; expected {expected}")


def recorded(values: Mapping[str, Any]) -> Recipe:
    """The recipe of a training by its fields, which a checkpoint keeps."""
    return Recipe(**(_UNSAID | dict(values)))


def as_yaml(recipe: Recipe) -> str:
    """The recipe, and below its fields the learning rate that follows from them, versions, and the git commit."""
    import yaml

    values = json.loads(json.dumps(asdict(recipe)))
    found = {"peak_lr": recipe.peak_lr, "versions": _versions(), "git": git_state()}
    return yaml.safe_dump(values | found, sort_keys=False)


def _versions() -> dict[str, str]:
    found = {"gala_cuda": __version__}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def git_state() -> str | None:
    """Commit of this package's checkout, "-dirty" after it where files differ; None outside a checkout."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None
