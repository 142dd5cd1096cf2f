"""The settings of the study at each size, and the trainings that it consists of."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from .networks import NETWORKS, decays_attention, gala

VAL_SEED, TEST_SEED, TRAIN_SEEDS = 1, 2, 1000  # of scenes; those to train on are TRAIN_SEEDS plus the training's
CHOICE_SEEDS = 100  # settings are chosen by trainings of seeds from here on; those that are tested have others
FEWEST = ("ResNet", "SE-ResNet", *map(gala, ("paper", "near half", "sigmoid, near half")))
LIMITED = ("ResNet", "SE-ResNet", *map(gala, ("paper", "sigmoid, near half")))
FEWER = (*FEWEST, gala("near half, norm 1"))


@dataclass(frozen=True)
class DataSet:
    """What is trained on: `train` images of a `source` of `images.load`, for so many epochs.

    `chosen_on` names the data set whose chosen settings are used, "" this one, where they are chosen by the mean of so
    many `trials`; `networks` are those that are trained.
    """

    source: str
    train: int
    epochs: int
    chosen_on: str = ""
    networks: tuple[str, ...] = NETWORKS
    trials: int = 1


@dataclass(frozen=True)
class Settings:
    """All of them were fixed before a test set was looked at.

    Sizes of the scenes and their `agreement` were chosen on validation scenes, so that a plain ResNet is deceived often
    and not always.

    Args:
        data: the data sets by their names; the first is that of scenes with human maps.
        depth, width, layers: of the networks, GALA in `layers`.
        pixels: side of an image.
        agreement: share of the training scenes whose background has the hue of their class; the others, and all to
            choose by and to test on, have any.
        val, test: scenes.
        lrs: learning rates to choose from.
        seeds: of the trainings that are tested: images to train on, weights and order.
        untested: networks that are not tested, because their trials showed that they do not train.
        taught: starts of GALA that are taught with human maps, and at which λ; the paper's is 6.
    """

    data: dict[str, DataSet]
    depth: int = 18
    width: int = 16
    layers: tuple[str, ...] = ("layer2", "layer3")
    pixels: int = 64
    agreement: float = 0.7
    val: int = 500
    test: int = 1000
    batch_size: int = 32
    lrs: tuple[float, ...] = (0.03, 0.1, 0.3)
    weight_decay: float = 5e-4
    precision: str = "float32"
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    untested: tuple[str, ...] = (gala("paper, norm 0"),)
    taught: dict[str, tuple[float, ...]] = field(default_factory=lambda: {"sigmoid, near half": (0.1, 6.0)})


SIZES = {
    "default": Settings(
        data={
            "scenes": DataSet("scenes", 1200, 20, trials=2),  # results scatter most
            "solar cells": DataSet("solar cells", 1574, 12),
            "photographs": DataSet("photographs", 700, 16, networks=FEWER),
            "digits": DataSet("digits", 500, 20, networks=FEWER),
            "plain scenes": DataSet("plain scenes", 1200, 20, "scenes", FEWEST),
            "solar cells, 30 %": DataSet("solar cells", 472, 24, "solar cells", LIMITED),
            "solar cells, 10 %": DataSet("solar cells", 157, 48, "solar cells", LIMITED),
        },
    ),
    "long": Settings(  # until none is left at chance
        data={"scenes": DataSet("scenes", 1200, 50, networks=LIMITED)},
        seeds=(0, 1, 2), taught={"sigmoid, near half": (0.1,)},
    ),
    "smoke": Settings(
        data={
            "scenes": DataSet("scenes", 48, 1, networks=FEWER),
            "plain scenes": DataSet("plain scenes", 48, 1, "scenes", FEWER),
        },
        pixels=32, val=24, test=24, lrs=(0.03, 0.1), seeds=(0, 1), taught={"sigmoid, near half": (6.0,)},
        layers=("layer2.0",), width=4,
    ),
    "large": Settings(
        data={
            "scenes": DataSet("scenes", 4000, 40),
            "plain scenes": DataSet("plain scenes", 4000, 40, "scenes", FEWER),
            "solar cells": DataSet("solar cells", 1574, 40),
        },
        depth=50, width=64, layers=("layer3",), pixels=224, val=1000, test=2000, batch_size=64, precision="bfloat16",
        taught={"paper": (6.0,), "sigmoid, near half": (0.1, 1.0, 6.0, 20.0)},
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Cell:
    """One training: a network on a data set, and what differs between trainings.

    `decay`: whether the weights of attention layers decay; `level`: λ.
    """

    data: str
    network: str
    lr: float
    decay: bool
    level: float
    seed: int

    @property
    def name(self) -> str:
        """Of its folder."""
        data, network = (re.sub("[^a-z0-9]+", "-", text.lower()).strip("-") for text in (self.data, self.network))
        decay = "decayed" if self.decay else "undecayed"
        return f"{data}/{network}-lr{self.lr:g}-{decay}-map{self.level:g}-{self.seed}"


Choice = tuple[float, bool]  # learning rate, and whether the weights of attention decay


def rate_trials(settings: Settings) -> Iterator[Cell]:
    """The trainings by which each network's learning rate is chosen."""
    for name, data in settings.data.items():
        for network in () if data.chosen_on else data.networks:
            yield from (Cell(name, network, lr, True, 0.0, seed) for seed in _trial_seeds(data) for lr in settings.lrs)


def decay_trials(settings: Settings, rates: dict[tuple[str, str], Choice]) -> Iterator[Cell]:
    """Those by which is chosen, at its learning rate, whether its attention decays."""
    for (name, network), (lr, _) in rates.items():
        if decays_attention(network):
            for seed in _trial_seeds(settings.data[name]):
                yield Cell(name, network, lr, False, 0.0, seed)


def _trial_seeds(data: DataSet) -> range:
    return range(CHOICE_SEEDS, CHOICE_SEEDS + data.trials)


def finals(settings: Settings, choices: dict[tuple[str, str], Choice]) -> Iterator[Cell]:
    """Those that are tested, seed by seed, so that an interruption leaves whole seeds."""
    maps = next(iter(settings.data))
    for name, data in settings.data.items():
        for seed in settings.seeds:
            for network in data.networks:
                if network not in settings.untested:
                    yield Cell(name, network, *choices[data.chosen_on or name, network], 0.0, seed)
    for seed in settings.seeds:
        for start, levels in settings.taught.items():
            for level in levels:
                yield Cell(maps, gala(start), *choices[maps, gala(start)], level, seed)
