"""How to train a network: the recipe, its presets, and the YAML file that is kept beside every checkpoint."""

import json
import math
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from ..clickme.loss import WEIGHTS
from ..data.choices import AUGMENTS, DIGITS, SYNTHETIC, explicit_source
from ..errors import SettingError
from ..layer import INITS
from ..version import __version__

OPTIMIZERS = ("sgd", "adamw")
SCHEDULES = ("cosine", "steps")
PRECISIONS = ("float32", "bfloat16", "float16")
PARALLEL = ("ddp", "fsdp")
LR_BATCH = 256  # the batch size that lr_256 is for
_PACKAGES = ("torch", "torchvision", "timm", "numpy", "safetensors")
_MAY_CHANGE = ("workers", "accumulate", "compile", "epochs", "lr_256")  # when a training is resumed
_KINDS = {"tuple": "a list", "bool": "true or false", "int": "a whole number", "float": "a number", "str": "text"}
_FORMER = (("time_limit", None),)  # fields of older recipes, each with the only value that can still be followed
_UNSAID = {"init": "paper"}  # fields that older recipes have not, with the only value that there was
_FACTS = ("peak_lr", "versions", "git")  # what a written recipe has beside its fields


class RecipeError(SettingError):
    """A field of a recipe is unknown or out of range; `names` says which, and which others it does not go with."""

    def __init__(self, name: str, problem: str, others: Sequence[str] = ()):
        super().__init__((name, *others), f"{name} {problem}")


def _field(default: Any, text: str, choices: tuple[str, ...] | None = None) -> Any:
    return field(default=default, metadata={"help": text, "choices": choices})


@dataclass(frozen=True)
class Recipe:
    """Everything that the weights depend on, apart from the images themselves and the machine.

    Lengths of the schedule are fractions of the training, so that they fit any number of epochs.

    Raises:
        RecipeError: a value is out of range.
    """

    data: str = _field(DIGITS, f"{DIGITS}, {SYNTHETIC}, a folder with train/CLASS/* and val/CLASS/*, or tar shards")
    val_share: float | None = _field(None, "share of each class to hold out, of a folder without val (default: none)")
    clickme: str | None = _field(None, "folder of images with human maps, in place of data (default: none)")
    clickme_loss: str = _field("paper", "what maps are compared by; harmonization is for any network", tuple(WEIGHTS))
    clickme_weight: float | None = _field(
        None, "λ of that loss, 0 is off (default: 6 for paper, 1e-5 for gala_tpu, 1 for harmonization)"
    )
    model: str = _field("gala_resnet18", "network: one of this package, timm/NAME or torchvision/NAME")
    layers: tuple[str, ...] = _field((), "stages or blocks with GALA (default: layer3)")
    width: int | None = _field(None, "channels of the first stage (default: 16 for digits, else 64)")
    weights: str | None = _field(
        None, "weights to start from: a file of this package, torchvision or timm, or hf-hub:OWNER/NAME"
    )
    init: str = _field("half", "how attention starts: half, sigmoid near 1/2, or paper, tanh about 0", tuple(INITS))
    keep_output: bool = _field(False, "start with GALA layers that leave the outputs of --weights as they are")
    image_size: int | None = _field(
        None, "pixels (default: as weights or the network's library say, else 32 for digits, 224 for others)"
    )
    augment: str = _field("paper", "augmentation of pictures", AUGMENTS)
    epochs: int = _field(20, "passes through the training images")
    batch_size: int = _field(64, "images of one step, over all processes")
    accumulate: int = _field(1, "micro-batches that each process divides its images of a step into")
    optimizer: str = _field(
        "sgd", "sgd, with Nesterov momentum, adamw, or one of timm's by name: lamb, lion, muon, ..."
    )
    lr: float | None = _field(None, "highest learning rate (default: lr_256 times batch_size / 256)")
    lr_256: float = _field(0.4, "highest learning rate for batches of 256")
    momentum: float = _field(0.9, "momentum of sgd; the first beta of adamw")
    layer_decay: float = _field(1.0, "factor of the learning rate from each layer to the one before it")
    freeze: tuple[str, ...] = _field((), "modules whose weights and statistics stay as they are, such as conv1 layer1")
    schedule: str = _field("cosine", "decay along a cosine to zero, or to a tenth at each decay_at", SCHEDULES)
    decay_at: tuple[float, ...] = _field((1 / 3, 2 / 3, 8 / 9), "fractions of the training at which steps decays")
    warm_up: float = _field(0.1, "fraction of the training in which the learning rate rises")
    weight_decay: float = _field(5e-4, "weight decay; the flags below say of what")
    decay_vectors: bool = _field(False, "weight decay also for biases and for scales and shifts of normalisations")
    decay_attention: bool = _field(True, "weight decay also for attention layers")
    clip: float | None = _field(None, "largest L2 norm of the gradient (default: any)")
    label_smoothing: float = _field(0.0, "fraction of every target that is spread over all classes")
    mixup: float = _field(0.0, "alpha of mixup's beta distribution; 0 is off")
    cutmix: float = _field(0.0, "alpha of cutmix's beta distribution; 0 is off; with mixup, one of both by chance")
    ema: float | None = _field(None, "decay per step of the averaged weights, which are then tested (default: none)")
    precision: str = _field("float32", "dtype of activations, by autocast; float16 scales the loss", PRECISIONS)
    channels_last: bool = _field(True, "images and weights as NHWC in memory")
    compile: bool = _field(False, "compile the network by torch.compile")
    sync_batchnorm: bool = _field(False, "BatchNorm over the images of all processes; GPU only")
    parallel: str = _field("ddp", "what each of several processes has: a replica, or a shard of the weights", PARALLEL)
    deterministic: bool = _field(True, "the same weights from the same recipe on a GPU too; slower there")
    seed: int = _field(0, "seed of weights, order and augmentation")
    workers: int = _field(2, "processes that read images, for each training process")

    def __post_init__(self) -> None:
        for each in fields(self):
            value = getattr(self, each.name)
            choices = each.metadata["choices"]
            if choices and value not in choices:
                raise RecipeError(each.name, f"is {value!r}; expected one of {', '.join(choices)}")
        for name in ("epochs", "batch_size", "accumulate", "width", "image_size"):
            self._expect(name, lambda value: isinstance(value, int) and value >= 1, "a whole number of at least 1")
        self._expect("workers", lambda value: isinstance(value, int) and value >= 0, "a whole number of at least 0")
        self._expect("val_share", lambda value: 0 < value < 1, "0 < val_share < 1")
        for name in ("lr", "lr_256", "clip"):
            self._expect(name, lambda value: 0 < value < math.inf, "more than 0")
        for name in ("momentum", "warm_up", "label_smoothing", "ema"):
            self._expect(name, lambda value: 0 <= value < 1, f"0 <= {name} < 1")
        for name in ("weight_decay", "mixup", "cutmix", "clickme_weight"):
            self._expect(name, lambda value: 0 <= value < math.inf, "at least 0")
        self._expect("layer_decay", lambda value: 0 < value <= 1, "0 < layer_decay <= 1")
        self._expect("decay_at", lambda values: all(0 < value < 1 for value in values), "fractions between 0 and 1")

    def _expect(self, name: str, holds, expected: str) -> None:
        value = getattr(self, name)
        if value is not None and not holds(value):
            raise RecipeError(name, f"is {value}; expected {expected}")

    @property
    def peak_lr(self) -> float:
        """The learning rate after the warm-up."""
        return self.lr_256 * self.batch_size / LR_BATCH if self.lr is None else self.lr

    @property
    def source(self) -> str:
        """Where the images come from."""
        return self.clickme or self.data

    @property
    def source_field(self) -> str:
        """The field that says so."""
        return "data" if self.clickme is None else "clickme"

    @property
    def map_weight(self) -> float:
        """λ, the factor of the loss of images with human maps."""
        return WEIGHTS[self.clickme_loss] if self.clickme_weight is None else self.clickme_weight

    def micro_batch_size(self, processes: int = 1) -> int:
        """Images of one forward pass of one of so many processes.

        Raises:
            RecipeError: the batch size is no multiple of processes times micro-batches.
        """
        if self.batch_size % (processes * self.accumulate):
            expected = f"a multiple of {processes} processes times accumulate {self.accumulate}"
            raise RecipeError("batch_size", f"is {self.batch_size}; expected {expected}", ["accumulate"])
        return self.batch_size // processes // self.accumulate

    def differences(self, other: "Recipe") -> dict[str, tuple[Any, Any]]:
        """The fields that a resumed training may not change, where `other` has another value: {name: (here, there)}."""
        mine, theirs = (asdict(recipe) | {"lr": recipe.peak_lr} for recipe in (self, other))
        return {
            name: (mine[name], theirs[name]) for name in mine if mine[name] != theirs[name] and name not in _MAY_CHANGE
        }


PRESETS: dict[str, dict[str, Any]] = {
    # Linsley et al., section 3, after Hu et al.: what the paper gives
    "paper": {
        "model": "gala_resnet50", "init": "paper", "epochs": 90, "batch_size": 1024, "lr_256": 0.1, "warm_up": 5 / 90,
        "schedule": "steps", "weight_decay": 1e-4, "decay_vectors": True, "deterministic": False,
        "workers": 8,
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
