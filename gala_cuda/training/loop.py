"""The training loop, in one process or in one of several."""

import json
import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from rich.console import Console
from torch import Tensor, nn

from . import distributed
from .checkpoint import CheckpointError, Checkpoints, as_bytes, write_atomically
from .data import Data
from .evaluate import evaluate
from .meters import Meter, Waiting, peak_flops, peak_memory
from .progress import Board, Epoch, bar, draw_curves, line, print_summary
from .recipe import BadRecipe, Recipe, as_yaml
from .sampling import Batch
from .step import Stepper

LOOK = 10  # steps between looks at the losses, each of which waits for the device


class Diverged(RuntimeError):
    """The loss is no longer a number."""


@dataclass(frozen=True)
class Run:
    """How a training runs, other than by its recipe.

    Args:
        output: folder for all files, made where missing: recipe.yaml, log.jsonl (an :class:`Epoch` each line),
            last.safetensors and best.safetensors (by test accuracy; averaged weights where the recipe has them),
            checkpoints/, at the end curves.png.
        resume: continue from the newest checkpoint there, if there is one; else what is there is replaced.
        checkpoint_every: steps between checkpoints, beside those after each epoch.
        keep: checkpoints that stay.
        tensorboard: also write tensorboard/.
        metadata: of the weights' files.
    """

    output: Path
    device: torch.device
    console: Console
    resume: bool = False
    checkpoint_every: int | None = None
    keep: int = 2
    tensorboard: bool = False
    metadata: Mapping[str, str] = field(default_factory=dict)


def images_per_part(recipe: Recipe) -> int:
    """Images of one forward pass of one process.

    Raises:
        BadRecipe: the batch size is no multiple of processes times parts.
    """
    size = distributed.world().size
    if recipe.batch_size % (size * recipe.accumulate):
        raise BadRecipe(
            "batch_size",
            f"is {recipe.batch_size}; expected a multiple of {size} processes times accumulate {recipe.accumulate}",
        )
    return recipe.batch_size // size // recipe.accumulate


def fit(model: nn.Module, data: Data, recipe: Recipe, run: Run) -> list[Epoch]:
    """Trains ``model`` in place and returns the log. In several processes every one calls, inside ``joined``.

    ``data`` comes in batches of :func:`images_per_part`. The same recipe, threads and torch give the same weights on a
    CPU, however often the training is killed and resumed, unless the recipe has a time limit.

    Raises:
        Diverged: the loss is NaN or infinite; the message has step, learning rate and the last checkpoint.
        CheckpointError: a checkpoint cannot be written, or none of those there can be read.
        BadRecipe: it is not the recipe of the training that is resumed, or cannot be followed here.
    """
    exact = recipe.deterministic
    with torch.backends.cudnn.flags(enabled=True, deterministic=exact, benchmark=not exact):
        return Trainer(model, data, recipe, run).fit()


class Trainer:
    """The state of a training between two steps, and the way on from there."""

    def __init__(self, model: nn.Module, data: Data, recipe: Recipe, run: Run):
        self.data, self.recipe, self.run, self.world = data, recipe, run, distributed.world()
        if recipe.time_limit is not None and self.world.size > 1:
            raise BadRecipe("time_limit", f"is {recipe.time_limit}; expected None with {self.world.size} processes")
        shape = (data.channels, data.size, data.size)
        self.stepper = Stepper(model, recipe, run.device, len(data.classes), shape)
        self.steps_per_epoch = math.ceil(len(data.train) / recipe.accumulate)
        self.checkpoints = Checkpoints(run.output / "checkpoints", run.keep)
        self.log_path = run.output / "log.jsonl"
        self.step = 0  # that are done
        self.log: list[Epoch] = []
        self.meter = Meter(run.device)  # of the epoch that is not done
        self.recent: list[tuple[int, float, Tensor]] = []  # step, learning rate, loss: not looked at yet
        self.skipped: set[str] = set()  # images
        self.began = time.perf_counter()

    def fit(self) -> list[Epoch]:
        self._open()
        shown = self.run.tensorboard and self.world.main
        self.board = Board(self.run.output / "tensorboard" if shown else None, self.step)
        try:
            while self.progress < 1:
                self._finish_epoch(*self._epoch())
        finally:
            self.board.close()
        if self.world.main:
            draw_curves(self.log, self.run.output / "curves.png")
            print_summary(self.log, self.run.console)
        return self.log

    @property
    def progress(self) -> float:
        """The share of the training that is done, by steps or by time, whichever is more."""
        limit = self.recipe.time_limit
        by_time = 0.0 if limit is None or not self.step else self._elapsed / limit
        return max(self.step / (self.recipe.epochs * self.steps_per_epoch), by_time)

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
            task = shown.add_task(
                self._title, total=self.steps_per_epoch, completed=done, rate=0, waiting=0, loss=0, top1=0, top5=0
            )
            for parts in waiting.over(_chunks(drawn, self.recipe.accumulate)):
                lr = self.recipe.peak_lr * self.recipe.lr_share(self.progress)
                mean = self.stepper(parts, lr, self.step, self.meter)
                self.step += 1
                self.recent.append((self.step, lr, mean))
                last = self.step == self._first_step + self.steps_per_epoch or self.progress >= 1
                saves = not last and self.step % (self.run.checkpoint_every or self.steps_per_epoch) == 0
                if last or saves or self.step % LOOK == 0:
                    loss, first, five, seen, *_ = self._look()
                    seconds = time.perf_counter() - began
                    shown.update(
                        task, completed=self.step - self._first_step, rate=(seen - already) / seconds,
                        waiting=waiting.seconds / seconds, loss=loss / seen, top1=first / seen, top5=five / seen,
                    )  # fmt: skip
                if saves:
                    self._save()
                if last:
                    break
        return (self.meter.images - already) / seconds, waiting.seconds / seconds

    @property
    def _first_step(self) -> int:
        return len(self.log) * self.steps_per_epoch

    def _look(self) -> list[float]:
        """The meter's sums so far; raises Diverged where one of the recent losses was no number."""
        losses = distributed.add_up(torch.stack([loss for _, _, loss in self.recent])) / self.world.size
        for (step, lr, _), loss in zip(self.recent, losses.tolist(), strict=True):
            if not math.isfinite(loss):
                raise self._diverged(f"the loss is {loss} in {self._title}", step, lr)
            self.board.step(step, loss=loss, lr=lr)
        self.recent.clear()
        return self.meter.all().tolist()

    def _diverged(self, what: str, step: int, lr: float) -> Diverged:
        kept = self.checkpoints.paths()
        last = f"the last good checkpoint is {kept[-1]}" if kept else "there is no checkpoint yet"
        return Diverged(f"{what}, step {step}, at lr {lr:.3g}; {last}")

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
            title = f"epoch {len(self.log)}/{self.recipe.epochs}"
            self.run.console.print(line(self.log[-1], title), highlight=False)
            try:
                with self.log_path.open("a") as lines:
                    print(json.dumps(asdict(self.log[-1])), file=lines)
            except OSError as error:
                raise CheckpointError(f"cannot write {self.log_path}: {error.strerror}") from error
            self.board.epoch(self.log[-1])
        best = max(self.log, key=lambda epoch: epoch.test_accuracy)
        self._save(best=best is self.log[-1])

    def _name_skipped(self) -> int:
        """How many images could not be read so far, on any rank; the new ones are printed."""
        mine = self.data.train.skipped + self.data.test.skipped
        found = dict(pair for of_rank in distributed.from_all(mine) for pair in of_rank)
        for name in found.keys() - self.skipped if self.world.main else ():
            self.run.console.print(f"skipped {name}: {found[name]}", markup=False, highlight=False, soft_wrap=True)
        self.skipped |= found.keys()
        return len(self.skipped)

    def _open(self) -> None:
        """Continues from a checkpoint, or clears the folder."""
        output, main = self.run.output, self.world.main
        checkpoint, refused = self.checkpoints.load() if self.run.resume else (None, [])
        for reason in refused if main else ():
            self.run.console.print(
                f"{reason}; going back to the one before it", markup=False, highlight=False, soft_wrap=True
            )
        position = 0
        if checkpoint is not None:
            saved = Recipe(**checkpoint.state["recipe"])
            if differences := saved.differences(self.recipe):
                raise BadRecipe("recipe", f"is not that of the training in {output}: {', '.join(differences)}")
            own = self.stepper.model.state_dict()
            if {name: tensor.shape for name, tensor in own.items()} != {
                name: tensor.shape for name, tensor in checkpoint.weights.items()
            }:
                raise CheckpointError(f"{checkpoint.path} is refused: it is of another network")
            self._restore(checkpoint.weights, checkpoint.state)
            position = checkpoint.state["log_bytes"]
        if self.world.size > 1:
            dist.barrier()  # nobody writes before all have read
        if not main:
            return
        try:
            output.mkdir(parents=True, exist_ok=True)
            if checkpoint is None:
                self.checkpoints.clear()
                for name in ("last.safetensors", "best.safetensors", "curves.png"):
                    (output / name).unlink(missing_ok=True)
            with self.log_path.open("a") as lines:
                lines.truncate(position)
            write_atomically(output / "recipe.yaml", as_yaml(self.recipe).encode())
        except OSError as error:
            raise CheckpointError(f"cannot write to {output}: {error.strerror}") from error
        if checkpoint is not None:
            self.run.console.print(
                f"resumed at step {self.step}, from {checkpoint.path}", markup=False, highlight=False, soft_wrap=True
            )

    def _save(self, best: bool = False) -> None:
        """A checkpoint, last.safetensors, and best.safetensors if it is the best; every rank has to call."""
        weights, final = self.stepper.weights()
        for name, tensor in weights.items():
            if not tensor.isfinite().all():
                raise self._diverged(f"{name} is not finite", self.step, self.stepper.lr)
        state = {
            "recipe": asdict(self.recipe),
            "step": self.step,
            "elapsed": self._elapsed,
            "log": [asdict(epoch) for epoch in self.log],
            "log_bytes": self.log_path.stat().st_size if self.world.main else 0,
            "meter": self.meter.all().cpu(),
            "averaged": None if final is weights else final,
            **self.stepper.state(),
        }
        if self.world.main:
            metadata = dict(self.run.metadata)
            for name in ("best", "last") if best else ("last",):
                write_atomically(self.run.output / f"{name}.safetensors", as_bytes(final, metadata))
            self.checkpoints.save(self.step, as_bytes(weights, metadata), state, as_yaml(self.recipe))

    def _restore(self, weights: dict[str, Tensor], state: dict[str, Any]) -> None:
        self.stepper.load(weights, state["averaged"], state)
        self.step, self.began = state["step"], time.perf_counter() - state["elapsed"]
        self.log = [Epoch(**epoch) for epoch in state["log"]]
        if self.world.main:
            self.meter = Meter(self.run.device, state["meter"])


def _chunks(parts: Iterator[Batch], size: int) -> Iterator[list[Batch]]:
    while chunk := list(islice(parts, size)):
        yield chunk
