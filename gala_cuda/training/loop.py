"""The training loop: one process, one device, float32."""

import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn

from .data import Data
from .recipe import Recipe
from .sampling import Batches


class Diverged(RuntimeError):
    """The loss is no longer a number."""


@dataclass(frozen=True)
class Epoch:
    """One line of the log. Accuracies are shares of 1, rates images per second of training, seconds since the start."""

    epoch: int
    loss: float
    train_accuracy: float
    test_accuracy: float
    images_per_second: float
    seconds: float


def fit(
    model: nn.Module, data: Data, recipe: Recipe, device: torch.device, output: Path, console: Console
) -> list[Epoch]:
    """Trains ``model`` in place and returns the log.

    After each epoch ``output`` (made where missing) gets weights.pt, a state dict, and a line of log.jsonl, an
    :class:`Epoch`; the recipe stands in recipe.json. The same seed, threads and torch give the same weights on a CPU,
    unless the time limit was reached.

    Raises:
        Diverged: the loss is NaN or infinite; the message says where and at which learning rate.
    """
    output.mkdir(parents=True, exist_ok=True)
    (output / "recipe.json").write_text(json.dumps(asdict(recipe), indent=1) + "\n")
    model.to(device).to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(_groups(model, recipe), lr=recipe.lr, momentum=recipe.momentum, nesterov=True)
    steps, start = recipe.epochs * len(data.train), time.perf_counter()

    def progress(step: int) -> float:
        elapsed = 0.0 if recipe.time_limit is None else (time.perf_counter() - start) / recipe.time_limit
        return max(step / steps, elapsed)

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: recipe.lr_share(progress(step)))
    log: list[Epoch] = []
    with (
        torch.backends.cudnn.flags(enabled=True, deterministic=True, benchmark=False),
        (output / "log.jsonl").open("w") as lines,
    ):
        while not log or progress(len(log) * len(data.train)) < 1:
            title = f"epoch {len(log) + 1}/{recipe.epochs}"
            began = time.perf_counter()
            loss, train_accuracy, images = _epoch(
                model, data.train, len(log), optimizer, schedule, progress, title, console
            )
            rate = images / (time.perf_counter() - began)
            tested = accuracy(model, data.test, device)
            log.append(Epoch(len(log) + 1, loss, train_accuracy, tested, rate, time.perf_counter() - start))
            console.print(_line(log[-1], title), highlight=False)
            print(json.dumps(asdict(log[-1])), file=lines, flush=True)
            torch.save(model.state_dict(), output / "weights.pt")
    return log


@torch.no_grad()
def accuracy(model: nn.Module, batches: Batches, device: torch.device) -> float:
    """The share of images whose class gets the largest logit, in evaluation mode; the mode is restored."""
    training = model.training
    model.eval()
    right = total = 0
    for images, labels in _on(batches.epoch(), device):
        right += int((model(images).argmax(1) == labels).sum())
        total += len(labels)
    model.train(training)
    return right / total


def _epoch(model, batches, epoch, optimizer, schedule, progress, title, console) -> tuple[float, float, int]:
    """(mean loss, accuracy, images seen); stops early at the recipe's time limit."""
    device = next(model.parameters()).device
    model.train()
    total_loss, right, seen, began = 0.0, 0, 0, time.perf_counter()
    with _bar(console) as bar:
        task = bar.add_task(title, total=len(batches), rate=0.0, loss=0.0, accuracy=0.0)
        for images, labels in _on(batches.epoch(epoch), device):
            logits = model(images)
            loss = F.cross_entropy(logits, labels)
            if not torch.isfinite(loss):
                lr = schedule.get_last_lr()[0]
                raise Diverged(
                    f"the loss is {loss.item()} in {title}, step {bar.tasks[0].completed + 1:.0f}, at lr {lr:.3g}"
                )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total_loss += loss.item() * len(labels)
            right += int((logits.argmax(1) == labels).sum())
            seen += len(labels)
            rate = seen / (time.perf_counter() - began)
            bar.update(task, advance=1, rate=rate, loss=total_loss / seen, accuracy=100 * right / seen)
            if progress(schedule.last_epoch) >= 1:
                break
    return total_loss / seen, right / seen, seen


def _on(batches: Iterator[tuple[Tensor, Tensor]], device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    for images, labels in batches:
        yield images.to(device, memory_format=torch.channels_last), labels.to(device)


def _groups(model: nn.Module, recipe: Recipe) -> list[dict]:
    matrices = [p for p in model.parameters() if p.dim() > 1]
    vectors = [p for p in model.parameters() if p.dim() <= 1]
    return [{"params": matrices, "weight_decay": recipe.weight_decay}, {"params": vectors, "weight_decay": 0.0}]


def _bar(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(
            "{task.fields[rate]:6.0f} image/s  loss {task.fields[loss]:.4f}  accuracy {task.fields[accuracy]:5.1f} %"
        ),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )


def _line(epoch: Epoch, title: str) -> str:
    return (
        f"{title:<12} loss {epoch.loss:.4f}  train {epoch.train_accuracy:6.1%}  test {epoch.test_accuracy:6.1%}  "
        f"{epoch.images_per_second:6.0f} image/s  {epoch.seconds:5.0f} s"
    )
