"""The training loop, in one process or in one of several."""

import math
import time
from collections.abc import Iterator
from dataclasses import asdict
from itertools import islice

import torch
from torch import Tensor, nn

from ..data.batches import Batch
from ..data.load import Data
from ..errors import GalaError
from . import distributed
from .checkpoint import Checkpoint
from .evaluate import evaluate
from .meters import Forecast, Meter, Waiting, peak_flops, peak_memory
from .progress import Board, Epoch, bar, bar_text, best, draw_curves, duration, line, print_summary
from .recipe import Recipe, RecipeError
from .run import Folder, Run
from .step import Stepper

LOOK = 10  # steps between looks at the losses, each of which waits for the device


class DivergenceError(GalaError, RuntimeError):
    """The loss is no longer a number."""


def images_per_part(recipe: Recipe) -> int:
    """Images of one forward pass of one process.

    Raises:
        RecipeError: the batch size is no multiple of processes times parts.
    """
    size = distributed.world().size
    if recipe.batch_size % (size * recipe.accumulate):
        raise RecipeError(
            "batch_size",
            f"is {recipe.batch_size}; expected a multiple of {size} processes times accumulate {recipe.accumulate}",
            ["accumulate"],
        )
    return recipe.batch_size // size // recipe.accumulate


def fit(model: nn.Module, data: Data, recipe: Recipe, run: Run) -> list[Epoch]:
    """Trains ``model`` in place and returns the log. In several processes every one calls, inside ``joined``.

    ``data`` comes in batches of ``images_per_part``. The same recipe, threads and torch give the same weights on a
    CPU, however often the training is killed and resumed.

    Raises:
        DivergenceError: the loss is NaN or infinite; the message has step, learning rate and the last checkpoint.
        CheckpointError: a checkpoint cannot be written, or none of those there can be read.
        RecipeError: recipe or data are not those of the resumed training, or the recipe cannot be followed here.
    """
    exact = recipe.deterministic
    with torch.backends.cudnn.flags(enabled=True, deterministic=exact, benchmark=not exact):
        return Trainer(model, data, recipe, run).fit()


class Trainer:
    """The state of a training between two steps, and the way on from there."""

    def __init__(self, model: nn.Module, data: Data, recipe: Recipe, run: Run):
        self.data, self.recipe, self.run, self.world = data, recipe, run, distributed.world()
        shape = (data.channels, data.size, data.size)
        self.stepper = Stepper(model, recipe, run.device, len(data.classes), shape)
        self.steps_per_epoch = math.ceil(len(data.train) / recipe.accumulate)
        self.folder = Folder(run, recipe, data)
        self.step = 0  # that are done
        self.log: list[Epoch] = []
        self.meter = Meter(run.device)  # of the epoch that is not done
        self.recent: list[tuple[int, float, Tensor]] = []  # step, learning rate, loss: not looked at yet
        self.skipped: set[str] = set()  # images
        self.began = time.perf_counter()
        self.forecast = Forecast()

    def fit(self) -> list[Epoch]:
        checkpoint = self.folder.checkpoint(
            {name: value.shape for name, value in self.stepper.model.state_dict().items()}
        )
        self.folder.open(checkpoint)
        if checkpoint is not None:
            self._restore(checkpoint)
        shown = self.run.tensorboard and self.world.main
        self.board = Board(self.run.output / "tensorboard" if shown else None, self.step)
        try:
            while self.step < self.steps:
                self._finish_epoch(*self._epoch())
        finally:
            self.board.close()
        if self.world.main:
            draw_curves(self.log, self.run.output / "curves.png")
            print_summary(self.log, self.run.console)
        return self.log

    @property
    def steps(self) -> int:
        """Of the whole training."""
        return self.recipe.epochs * self.steps_per_epoch

    @property
    def progress(self) -> float:
        """The share of the training that is done."""
        return self.step / self.steps

    @property
    def _elapsed(self) -> float:
        return time.perf_counter() - self.began

    @property
    def _title(self) -> str:
        return f"epoch {len(self.log) + 1}/{self.recipe.epochs}"

    def _epoch(self) -> tuple[float, float]:
        """The rest of an epoch: (images/s, share of waiting)."""
        self.stepper.model.train()
        done = self.step - self._first_step
        waiting, began = Waiting(), time.perf_counter()
        already, seconds = self.meter.images, 0.0
        drawn = self.data.train.epoch(len(self.log), done * self.recipe.accumulate)
        with bar(self.run.console) as shown:
            task = shown.add_task(self._title, total=self.steps_per_epoch, completed=done, measured="")
            for parts in waiting.over(_chunks(drawn, self.recipe.accumulate)):
                lr = self.recipe.peak_lr * self.recipe.lr_share(self.progress)
                mean = self.stepper(parts, lr, self.step, self.meter)
                self.step += 1
                self.recent.append((self.step, lr, mean))
                self.forecast.first(self.step)
                last = self.step == self._first_step + self.steps_per_epoch
                saves = not last and self.step % (self.run.checkpoint_every or self.steps_per_epoch) == 0
                if last or saves or self.step % LOOK == 0:
                    loss, first, _, seen, *_ = self._look()
                    seconds = time.perf_counter() - began
                    text = bar_text((seen - already) / seconds, waiting.seconds / seconds, loss / seen, first / seen)
                    shown.update(task, completed=self.step - self._first_step, measured=text)
                    self._tell_duration()
                if saves:
                    self._save()
                if last:
                    break
        return (self.meter.images - already) / seconds, waiting.seconds / seconds

    def _tell_duration(self) -> None:
        seconds = self.forecast.seconds(self.step, self.steps)
        if seconds is not None and self.world.main:
            test = self.data.test.images / (3 * self.data.train.images)  # forward only, which is a third of the work
            self.run.say(
                f"{self.recipe.epochs} epochs of {self.steps_per_epoch} steps: about {duration(seconds * (1 + test))} "
                "to go on this machine"
            )

    @property
    def _first_step(self) -> int:
        return len(self.log) * self.steps_per_epoch

    def _look(self) -> list[float]:
        """The meter's sums so far; raises DivergenceError where one of the recent losses was no number."""
        losses = distributed.add_up(torch.stack([loss for _, _, loss in self.recent])) / self.world.size
        for (step, lr, _), loss in zip(self.recent, losses.tolist(), strict=True):
            if not math.isfinite(loss):
                raise self._diverged(f"the loss is {loss} in {self._title}", step, lr)
            self.board.step(step, loss=loss, lr=lr)
        self.recent.clear()
        return self.meter.all().tolist()

    def _diverged(self, what: str, step: int, lr: float) -> DivergenceError:
        kept = self.folder.checkpoints.paths()
        last = f"the last good checkpoint is {kept[-1]}" if kept else "there is no checkpoint yet"
        return DivergenceError(f"{what}, step {step}, at lr {lr:.3g}; {last}")

    def _finish_epoch(self, rate: float, waiting: float) -> None:
        loss, first, five, seen, map_loss, with_map = self.meter.all().tolist()
        distributed.share_buffers(self.stepper.model)
        with self.stepper.averaged():
            tested = evaluate(
                self.stepper.model, self.data.test, self.run.device, self.recipe.precision, self.stepper.record()
            )
        work = self.stepper.flops * rate
        peak = peak_flops(self.run.device, self.recipe.precision)
        self.log.append(Epoch(
            len(self.log) + 1, self.step, self.stepper.lr, loss / seen, first / seen, five / seen,
            tested.loss, tested.top1, tested.top5, rate, waiting, peak_memory(self.run.device),
            work, None if peak is None else work / (peak * self.world.size), self._name_skipped(), self._elapsed,
            map_loss / with_map if with_map else None, tested.map_similarity,
        ))  # fmt: skip
        self.meter = Meter(self.run.device)
        if self.world.main:
            self.run.console.print(line(self.log[-1], self.recipe.epochs), highlight=False)
            self.folder.add(self.log[-1])
            self.board.epoch(self.log[-1])
        self._save(best=best(self.log) is self.log[-1])

    def _name_skipped(self) -> int:
        """How many images could not be read so far, on any rank; the new ones are printed."""
        mine = self.data.train.skipped + self.data.test.skipped
        found = dict(pair for of_rank in distributed.from_all(mine) for pair in of_rank)
        for name in found.keys() - self.skipped if self.world.main else ():
            self.run.say(f"skipped {name}: {found[name]}")
        self.skipped |= found.keys()
        return len(self.skipped)

    def _restore(self, checkpoint: Checkpoint) -> None:
        state = checkpoint.state
        self.stepper.load(checkpoint.weights, state["averaged"], state)
        self.step, self.began = checkpoint.step, time.perf_counter() - state["elapsed"]
        self.log = [Epoch(**epoch) for epoch in state["log"]]
        if not self.world.main:
            return
        self.meter = Meter(self.run.device, state["meter"])
        self.run.say(f"resumed at step {self.step}, from {checkpoint.path}")
        before = Recipe(**state["recipe"])
        if before.epochs != self.recipe.epochs:
            was = before.peak_lr * before.lr_share(self.step / (before.epochs * self.steps_per_epoch))
            now = self.recipe.peak_lr * self.recipe.lr_share(self.progress)
            self.run.say(
                f"{self.recipe.epochs} epochs in place of {before.epochs}: the learning rate goes on as if it had been "
                f"so from the start, at {now:.3g} in place of {was:.3g}"
            )

    def _save(self, best: bool = False) -> None:
        """A checkpoint, last.safetensors, and best.safetensors if it is the best; every rank has to call."""
        weights, final = self.stepper.weights()
        for name, tensor in weights.items():
            if not tensor.isfinite().all():
                raise self._diverged(f"{name} is not finite", self.step, self.stepper.lr)
        state = {
            "elapsed": self._elapsed,
            "log": [asdict(epoch) for epoch in self.log],
            "meter": self.meter.all().cpu(),
            "averaged": None if final is weights else final,
            **self.stepper.state(),
        }
        if self.world.main:
            self.folder.save(self.step, weights, final, state, best)


def _chunks(parts: Iterator[Batch], size: int) -> Iterator[list[Batch]]:
    while chunk := list(islice(parts, size)):
        yield chunk
