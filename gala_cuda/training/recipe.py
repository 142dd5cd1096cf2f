"""How to train a network: the recipe, and the ranges of its fields."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from ..clickme.loss import WEIGHTS
from ..data.choices import AUGMENTS, CHANNELS, DATASETS, DIGITS, INTERPOLATIONS, SYNTHETIC, Columns
from ..errors import SettingError
from ..layer import INITS

BALANCED = "balanced"  # weights of classes
LOSSES = ("cross_entropy", "bce")
SCHEDULES = ("cosine", "steps")
PRECISIONS = ("float32", "bfloat16", "float16")
COMPILE_MODES = ("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs")
PARALLEL = ("ddp", "fsdp")
LR_BATCH = 256  # the batch size that lr_256 is for
_MAY_CHANGE = (  # when a training is resumed
    "workers", "accumulate", "compile", "compile_mode", "grad_checkpointing", "epochs", "patience", "lr_256",
)  # fmt: skip


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

    data: str = _field(
        DIGITS,
        f"{DIGITS}, {SYNTHETIC}, a folder with train/CLASS/* and val/CLASS/*, a table FILE.csv, tar shards, "
        f"or {DATASETS}WHAT of Hugging Face",
    )
    val_share: float | None = _field(None, "share of each class to hold out, of a folder without val (default: none)")
    image_column: str | None = _field(None, "column of a table with the images (default: image, path, file, ...)")
    label_column: str | None = _field(None, "column with the labels (default: label, class, ...)")
    multi_label: bool = _field(False, "any number of labels for each image: a|b, or a column of 0 and 1 for each label")
    stream: bool = _field(False, "read a data set of datasets as a stream, of which nothing is kept")
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
    test_size: int | None = _field(None, "pixels of the images to test on (default: image_size)")
    channels: int | None = _field(
        None, "of pictures: 1 is grey, 3 RGB, 4 RGBA, the fourth as it is (default: as weights or library say, else 3)"
    )
    interpolation: str | None = _field(
        None, "how pictures are scaled (default: as weights or the network's library say)", INTERPOLATIONS
    )
    mean: tuple[float, ...] = _field(
        (), "what is subtracted from channels of values in [0, 1] (default: as weights or the network's library say)"
    )
    std: tuple[float, ...] = _field((), "what they are then divided by (default: as weights or the library say)")
    augment: str = _field("paper", "augmentation of pictures", AUGMENTS)
    erasing: float | None = _field(
        None, "probability that a picture loses a rectangle (default: 0.1 with modern and randaugment, else 0)"
    )
    repeats: int = _field(1, "times that a picture comes in a batch, each time augmented in another way")
    epochs: int = _field(20, "passes through the training images")
    patience: int | None = _field(None, "epochs without a better test after which training ends (default: never)")
    batch_size: int = _field(64, "images of one step, over all processes")
    accumulate: int = _field(1, "micro-batches that each process divides its images of a step into")
    loss: str | None = _field(
        None, "cross_entropy, or bce, binary of each class (default: bce with multi_label, else cross_entropy)", LOSSES
    )
    class_weights: tuple[str, ...] = _field(
        (), "balanced, a CSV file of class,weight, or a number for each class; of bce the weight of yes (default: none)"
    )
    optimizer: str = _field(
        "sgd", "sgd, with Nesterov momentum, adamw, rmsprop or another of torch's, or one of timm's: lamb, lion, ..."
    )
    lr: float | None = _field(None, "highest learning rate (default: lr_256 times batch_size / 256)")
    lr_256: float = _field(0.4, "highest learning rate for batches of 256")
    momentum: float = _field(0.9, "momentum of the optimizer, or its first beta")
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
    compile_mode: str | None = _field(None, "of torch.compile, with compile (default: default)", COMPILE_MODES)
    grad_checkpointing: bool = _field(False, "compute activations inside blocks again, which saves memory")
    sync_batchnorm: bool = _field(False, "BatchNorm over the images of all processes; GPU only")
    parallel: str = _field("ddp", "what each of several processes has: a replica, or a shard of the weights", PARALLEL)
    deterministic: bool = _field(True, "the same weights from the same recipe on a GPU too; slower there")
    seed: int = _field(0, "seed of weights, order and augmentation")
    workers: int = _field(2, "processes that read images, for each training process")

    def __post_init__(self) -> None:
        for each in fields(self):
            value = getattr(self, each.name)
            choices = each.metadata["choices"]
            if choices and value not in choices and not (value is None and each.default is None):
                raise RecipeError(each.name, f"is {value!r}; expected one of {', '.join(choices)}")
        for name in ("epochs", "batch_size", "accumulate", "width", "image_size", "test_size", "repeats", "patience"):
            self._expect(name, lambda value: isinstance(value, int) and value >= 1, "a whole number of at least 1")
        self._expect("workers", lambda value: isinstance(value, int) and value >= 0, "a whole number of at least 0")
        self._expect("channels", lambda value: value in CHANNELS, "1, 3 or 4")
        self._expect("mean", lambda values: all(0 <= value < math.inf for value in values), "numbers of at least 0")
        self._expect("std", lambda values: all(0 < value < math.inf for value in values), "numbers above 0")
        self._expect("erasing", lambda value: 0 <= value <= 1, "0 <= erasing <= 1")
        self._expect("val_share", lambda value: 0 < value < 1, "0 < val_share < 1")
        for name in ("lr", "lr_256", "clip"):
            self._expect(name, lambda value: 0 < value < math.inf, "more than 0")
        for name in ("momentum", "warm_up", "label_smoothing", "ema"):
            self._expect(name, lambda value: 0 <= value < 1, f"0 <= {name} < 1")
        for name in ("weight_decay", "mixup", "cutmix", "clickme_weight"):
            self._expect(name, lambda value: 0 <= value < math.inf, "at least 0")
        self._expect("layer_decay", lambda value: 0 < value <= 1, "0 < layer_decay <= 1")
        if self.multi_label:
            self._expect("loss", lambda value: value == "bce", "bce with multi_label")
            self._expect("clickme", lambda _: False, "no human maps with multi_label")
        self._expect("compile_mode", lambda _: self.compile, "it together with compile")
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
    def criterion(self) -> str:
        """The loss, one of `LOSSES`."""
        return self.loss or ("bce" if self.multi_label else "cross_entropy")

    @property
    def columns(self) -> Columns:
        """Where a table has images and labels."""
        return Columns(self.image_column, self.label_column, self.multi_label)

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
