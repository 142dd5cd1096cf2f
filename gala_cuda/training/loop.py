"""The training loop, in one process or in one of several."""

import math
import time
from contextlib import ExitStack
from dataclasses import asdict
from itertools import islice
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..data.load import Data
from ..errors import GalaError
from . import distributed
from .checkpoint import Checkpoint
from .criterion import build_criterion
from .curves import draw_curves
from .epoch import Epoch, best_epoch, epochs_since_best
from .evaluate import evaluate
from .logs import Log, open_logs
from .meters import Forecast, Means, Meter, Waiting, peak_flops, peak_memory
from .progress import bar_text, duration, epoch_bar, epoch_line, print_summary
from .recipe import Recipe
from .recipe_file import recorded
from .run import Run, RunFolder
from .schedule import learning_rate
from .step import Stepper

LOG_INTERVAL = 10  # steps between looks at the losses, each of which waits for the device


class DivergenceError(GalaError, RuntimeError):
    """The loss or a weight is no longer a finite number."""


class Speed(NamedTuple):
    """How fast an epoch was trained."""

    images_per_second: float  # over all processes
    data_wait: float  # the fraction of the time that this process waited for images


def fit(model: nn.Module, data: Data, recipe: Recipe, run: Run) -> list[Epoch]:
    """Trains `model` in place and returns the log. In several processes every one calls, inside `process_group`.

    `data` comes in micro-batches of `recipe.micro_batch_size`. The same recipe, threads and torch give the same weights
    on a CPU, however often the training is killed and resumed.

    Raises:
        DivergenceError: the loss is NaN or infinite; the message has step, learning rate and the last checkpoint.
        CheckpointError: a checkpoint cannot be written, or none of those there can be read.
        RecipeError: recipe or data are not those of the resumed training, or the recipe cannot be followed here.
    """
    exact = recipe.deterministic
    with torch.backends.cudnn.flags(enabled=True, deterministic=exact, benchmark=not exact):
        trainer = Trainer(model, data, recipe, run)
        with ExitStack() as stack:
            for log in trainer.logs:
                stack.callback(log.close)
            while trainer.step < trainer.total_steps and not trainer.ends_early:
                speed = trainer.train_epoch()
                trainer.finish_epoch(speed)
    if trainer.world.is_main:
        if trainer.ends_early:
            count, best = epochs_since_best(trainer.log), best_epoch(trainer.log).epoch
            run.console.print_line(f"no better test for {count} epochs after epoch {best}: ended early")
        draw_curves(trainer.log, run.output / "curves.png")
        print_summary(trainer.log, run.console)
    return trainer.log


class Trainer:
    """A training between two steps: at its start, or where the checkpoint stands that it is resumed from.

    Attributes:
        step: number of steps that are done.
        total_steps: of the whole training.
        log: the epochs that are done.
        meter: of the epoch that is under way.
    """

    def __init__(self, model: nn.Module, data: Data, recipe: Recipe, run: Run):
        self.data, self.recipe, self.run, self.world = data, recipe, run, distributed.world()
        shape = (data.channels, data.size, data.size)
        criterion = build_criterion(recipe, data, run.device)
        self.stepper = Stepper(model, recipe, run.device, len(data.classes), shape, criterion)
        self.steps_per_epoch = math.ceil(len(data.train) / recipe.accumulate)
        self.total_steps = recipe.epochs * self.steps_per_epoch
        self.step, self.log, self.meter = 0, list[Epoch](), self._new_meter()
        self.began, self.forecast = time.perf_counter(), Forecast()
        self._unseen: list[tuple[int, float, Tensor]] = []  # step, learning rate and loss, not looked at yet
        self._skipped: set[str] = set()  # names of images
        self.folder = RunFolder(run, recipe, data)
        weights = self.stepper.model.state_dict()
        checkpoint = self.folder.find_checkpoint({name: value.shape for name, value in weights.items()})
        self.folder.open(checkpoint)
        if checkpoint is not None:
            self._resume(checkpoint)
        self.logs: list[Log] = []
        if self.world.is_main:
            self.logs = [self.folder.log, *open_logs(run.logs, run.output, self.step, asdict(recipe))]

    def train_epoch(self) -> Speed:
        """Trains to the end of the epoch that is under way."""
        accumulate, first = self.recipe.accumulate, len(self.log) * self.steps_per_epoch
        end, save_every = first + self.steps_per_epoch, self.run.checkpoint_every or self.steps_per_epoch
        already, began, waiting = self.meter.images, time.perf_counter(), Waiting()
        speed = Speed(0.0, 0.0)
        self.stepper.train()
        batches = waiting.over(self.data.train.epoch(len(self.log), (self.step - first) * accumulate))
        with epoch_bar(self.run.console) as bar:
            task = bar.add_task(self._title, total=self.steps_per_epoch, completed=self.step - first, measured="")
            while self.step < end and (micro_batches := list(islice(batches, accumulate))):
                lr = learning_rate(self.recipe, self.step / self.total_steps)
                loss = self.stepper(micro_batches, lr, self.step, self.meter)
                self.step += 1
                self._unseen.append((self.step, lr, loss))
                self.forecast.begin(self.step)
                saves = self.step % save_every == 0 and self.step < end
                if saves or self.step % LOG_INTERVAL == 0 or self.step == end:
                    means = self._look_at_losses()
                    seconds = time.perf_counter() - began
                    speed = Speed((means.images - already) / seconds, waiting.seconds / seconds)
                    text = bar_text(*speed, means.loss, means.top1)
                    bar.update(task, completed=self.step - first, measured=text)
                    self._tell_duration()
                if saves:
                    self._save()
        return speed

    def finish_epoch(self, speed: Speed) -> None:
        """Tests the network, and adds the epoch to the log and to the checkpoints."""
        device, means = self.run.device, self.meter.means()
        distributed.broadcast_buffers(self.stepper.model)
        with self.stepper.averaged():
            tested = evaluate(
                self.stepper.model, self.data.test, device, self.recipe.precision, self.stepper.map_meter(),
                loss=self.recipe.criterion,
            )  # fmt: skip
        work = self.stepper.flops * speed.images_per_second
        peak = peak_flops(device, self.recipe.precision)
        epoch = Epoch(
            epoch=len(self.log) + 1,
            step=self.step,
            lr=self.stepper.lr,
            loss=means.loss,
            train_accuracy=means.top1,
            train_top5=means.top5,
            test_loss=tested.loss,
            test_accuracy=tested.top1,
            test_top5=tested.top5,
            images_per_second=speed.images_per_second,
            data_wait=speed.data_wait,
            peak_memory=peak_memory(device),
            flops_per_second=work,
            mfu=None if peak is None else work / (peak * self.world.size),
            skipped=self._count_skipped(),
            seconds=time.perf_counter() - self.began,
            map_loss=means.map_loss,
            map_similarity=tested.map_similarity,
            test_map=tested.mean_average_precision,
        )
        self.log.append(epoch)
        self.meter = self._new_meter()
        if self.world.is_main:
            self.run.console.print(epoch_line(epoch, self.recipe.epochs))
            for log in self.logs:
                log.add_epoch(epoch)
        self._save(best=best_epoch(self.log) is epoch)

    def _new_meter(self, sums: Tensor | None = None) -> Meter:
        return Meter(self.run.device, sums, self.recipe.multi_label)

    @property
    def ends_early(self) -> bool:
        """Whether as many epochs as the recipe has patience for came after the best one."""
        return self.recipe.patience is not None and epochs_since_best(self.log) >= self.recipe.patience

    @property
    def _title(self) -> str:
        return f"epoch {len(self.log) + 1}/{self.recipe.epochs}"

    def _look_at_losses(self) -> Means:
        """The means of the epoch so far. Raises DivergenceError where a loss since the last look was no number."""
        losses = distributed.all_reduce(torch.stack([loss for _, _, loss in self._unseen])) / self.world.size
        for (step, lr, _), loss in zip(self._unseen, losses.tolist(), strict=True):
            if not math.isfinite(loss):
                raise self._divergence(f"the loss is {loss} in {self._title}", step, lr)
            for log in self.logs:
                log.add_step(step, loss=loss, lr=lr)
        self._unseen.clear()
        return self.meter.means()

    def _divergence(self, problem: str, step: int, lr: float) -> DivergenceError:
        kept = self.folder.checkpoints.paths()
        last = f"the last good checkpoint is {kept[-1]}" if kept else "there is no checkpoint yet"
        return DivergenceError(f"{problem}, step {step}, at lr {lr:.3g}; {last}")

    def _tell_duration(self) -> None:
        """Prints once how long the rest takes."""
        seconds = self.forecast.seconds(self.step, self.total_steps)
        if seconds is not None and self.world.is_main:
            test = self.data.test.images / (3 * self.data.train.images)  # forward only, which is a third of the work
            self.run.console.print_line(
                f"{self.recipe.epochs} epochs of {self.steps_per_epoch} steps: about {duration(seconds * (1 + test))} "
                "to go on this machine"
            )

    def _count_skipped(self) -> int:
        """How many images could not be read so far, on any rank; the new ones are printed."""
        mine = self.data.train.skipped + self.data.test.skipped
        reasons = dict(pair for of_rank in distributed.all_gather(mine) for pair in of_rank)
        for name in reasons.keys() - self._skipped if self.world.is_main else ():
            self.run.console.print_line(f"skipped {name}: {reasons[name]}")
        self._skipped |= reasons.keys()
        return len(self._skipped)

    def _save(self, best: bool = False) -> None:
        """A checkpoint, last.safetensors, and best.safetensors if it is the best; every rank has to call."""
        weights, tested = self.stepper.weights()
        for name, tensor in weights.items():
            if not tensor.isfinite().all():
                raise self._divergence(f"{name} is not finite", self.step, self.stepper.lr)
        state = {
            "elapsed": time.perf_counter() - self.began,
            "log": [asdict(epoch) for epoch in self.log],
            "meter": self.meter.sums().cpu(),
            "averaged": None if tested is weights else tested,
            **self.stepper.state(),
        }
        if self.world.is_main:
            self.folder.save(self.step, weights, tested, state, best)

    def _resume(self, checkpoint: Checkpoint) -> None:
        """Goes back to a checkpoint, which `_save` made."""
        state = checkpoint.state
        self.stepper.load(checkpoint.weights, state["averaged"], state)
        self.step, self.began = checkpoint.step, time.perf_counter() - state["elapsed"]
        self.log = [Epoch(**epoch) for epoch in state["log"]]
        if not self.world.is_main:
            return
        self.meter = self._new_meter(state["meter"])  # the sums of all ranks, which are added up again
        self.run.console.print_line(f"resumed at step {self.step}, from {checkpoint.path}")
        before = recorded(state["recipe"])
        if before.epochs != self.recipe.epochs:
            was = learning_rate(before, self.step / (before.epochs * self.steps_per_epoch))
            now = learning_rate(self.recipe, self.step / self.total_steps)
            self.run.console.print_line(
                f"{self.recipe.epochs} epochs in place of {before.epochs}: the learning rate goes on as if it had been "
                f"so from the start, at {now:.3g} in place of {was:.3g}"
            )
