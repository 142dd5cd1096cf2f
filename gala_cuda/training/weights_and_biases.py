"""The log of a training for Weights & Biases."""

import os
from pathlib import Path
from typing import Any
from uuid import uuid4

from ..errors import GalaError
from .epoch import Epoch

PROJECT = "gala-cuda"  # unless WANDB_PROJECT names another
_ID = "wandb-id.txt"


class LogError(GalaError, RuntimeError):
    """A log cannot be started; the message says why."""


class WeightsAndBiases:
    """Logs to a run named as `folder`, with `recipe` as its configuration, by the variables WANDB_* of the environment.

    A training that goes on after `step` goes on in the same run, whose id is kept in the folder. With
    WANDB_MODE=offline all stays in the folder, for `wandb sync`. The horizontal axis is the number of steps.

    Raises:
        ModuleNotFoundError: wandb is not installed.
        LogError: wandb refuses, such as without a key.
    """

    def __init__(self, folder: Path, step: int, recipe: dict[str, Any]):
        import wandb

        note = folder / _ID
        if not step or not note.exists():
            note.write_text(uuid4().hex[:8])
        try:
            self._run = wandb.init(
                dir=folder, id=note.read_text(), resume="allow", name=folder.resolve().name, config=recipe,
                project=os.environ.get("WANDB_PROJECT", PROJECT), settings=wandb.Settings(console="off", silent=True),
            )  # fmt: skip
        except wandb.errors.Error as error:
            raise LogError(f"wandb cannot be started: {error}") from error
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def add_step(self, step: int, **values: float) -> None:
        self._run.log({"step": step, **{f"step/{name}": value for name, value in values.items()}})

    def add_epoch(self, epoch: Epoch) -> None:
        figures = {f"epoch/{name}": value for name, value in epoch.figures().items()}
        self._run.log({"step": epoch.step, "epoch": epoch.epoch, **figures})

    def close(self) -> None:
        self._run.finish()
