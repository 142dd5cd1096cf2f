"""A training's folder: what is written there, and whether a training may go on from what is there."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ..console import PlainConsole
from ..data.batches import count_labels
from ..data.load import Data
from . import distributed
from .checkpoint import Checkpoint, CheckpointError, Checkpoints, as_bytes, write_atomically
from .logs import JsonLines
from .recipe import Recipe, RecipeError
from .recipe_file import as_yaml, recorded

MAX_NAMED = 3  # classes in a message


@dataclass(frozen=True)
class Run:
    """How a training runs, other than by its recipe.

    Args:
        output: folder for all files, made where missing: recipe.yaml, log.jsonl (one `Epoch` per line),
            last.safetensors and best.safetensors (of `best_epoch`; averaged weights where the recipe has them),
            checkpoints/, at the end curves.png.
        resume: continue from the newest checkpoint there, if there is one; else what is there is replaced.
        checkpoint_every: steps between checkpoints, beside those after each epoch.
        keep: number of checkpoints that stay.
        logs: further ones: csv writes log.csv, tensorboard and wandb their own folders.
        metadata: of the weights' files.
    """

    output: Path
    device: torch.device
    console: PlainConsole
    resume: bool = False
    checkpoint_every: int | None = None
    keep: int = 2
    logs: Sequence[str] = ()
    metadata: Mapping[str, str] = field(default_factory=dict)


class RunFolder:
    """The folder of `run`. Of several processes all read it, and the first one writes."""

    def __init__(self, run: Run, recipe: Recipe, data: Data):
        self.run, self.recipe, self.facts, self.held_out = run, recipe, facts(data), data.held_out
        self.checkpoints = Checkpoints(run.output / "checkpoints", run.keep)
        self.log = JsonLines(run.output / "log.jsonl")

    def find_checkpoint(self, shapes: Mapping[str, torch.Size]) -> Checkpoint | None:
        """The one to go on from, None to start anew; `shapes` are those of the network's weights, by name.

        Raises:
            RecipeError: recipe or data are not those of the training that is there.
            CheckpointError: no checkpoint that is there can be read, it is of another network, or other processes
                find another one.
        """
        found, refused = self.checkpoints.load() if self.run.resume else (None, [])
        for reason in refused if distributed.world().is_main else ():
            self.run.console.print_line(f"{reason}; going back to the one before it")
        steps = distributed.all_gather("none" if found is None else f"step {found.step}")
        if len(set(steps)) > 1:
            raise CheckpointError(
                f"{self.run.output} is not the same folder in every process: the last checkpoints there are "
                f"{', '.join(steps)}; expected a folder that all machines share"
            )
        if found is None:
            return None
        self._compare(found)
        if {name: tensor.shape for name, tensor in found.weights.items()} != shapes:
            raise CheckpointError(f"{found.path} is refused: it is of another network")
        return found

    def _compare(self, found: Checkpoint) -> None:
        """Raises RecipeError where the training of the checkpoint `found` cannot go on with this recipe and data."""
        begun, output = recorded(found.state["recipe"]), self.run.output
        if differences := begun.differences(self.recipe):
            first, *others = differences
            listed = ", ".join(f"{name} {old} -> {new}" for name, (old, new) in differences.items())
            raise RecipeError(
                first, f"is not that of the training in {output}: {listed}; expected the same, or another --output",
                others,
            )  # fmt: skip
        if changes := list(_changes(found.state["data"], self.facts)):
            raise RecipeError(
                self.recipe.source_field,
                f"is not what the training in {output} was begun with: {', '.join(changes)}; expected the same images, "
                f"or another --output, which may start from --weights {output / 'last.safetensors'}",
            )
        log = found.state["log"]
        done = len(log) + (found.step > (log[-1]["step"] if log else 0))
        if self.recipe.epochs < done:
            raise RecipeError(
                "epochs", f"is {self.recipe.epochs}, but the training in {output} is in epoch {done} or beyond; "
                f"expected at least {done}",
            )  # fmt: skip

    def open(self, checkpoint: Checkpoint | None) -> None:
        """Makes the folder, clears it or goes back to what it held at the checkpoint, and writes the recipe.

        Every process has to call, once it has read all that it needs.
        """
        if distributed.world().size > 1:
            dist.barrier()  # nobody writes before all have read
        if not distributed.world().is_main:
            return
        output = self.run.output
        try:
            output.mkdir(parents=True, exist_ok=True)
            if checkpoint is None:
                self.checkpoints.clear()
                for name in ("last.safetensors", "best.safetensors", "curves.png"):
                    (output / name).unlink(missing_ok=True)
            self.log.truncate(0 if checkpoint is None else checkpoint.state["log_bytes"])
            write_atomically(output / "recipe.yaml", as_yaml(self.recipe).encode())
            if self.held_out:
                names = "\n".join([*self.held_out, ""])
                write_atomically(output / "held_out.txt", names.encode("utf-8", "surrogateescape"))
        except OSError as error:
            raise CheckpointError(f"cannot write to {output}: {error.strerror}") from error

    def save(
        self, step: int, weights: Mapping[str, Tensor], tested: Mapping[str, Tensor], state: dict[str, Any], best: bool
    ) -> None:
        """Writes a checkpoint of `weights` and `state`, and those that are `tested` as the last and maybe the best."""
        metadata = dict(self.run.metadata)
        for name in ("best", "last") if best else ("last",):
            write_atomically(self.run.output / f"{name}.safetensors", as_bytes(tested, metadata))
        state = {"recipe": asdict(self.recipe), "data": self.facts, "log_bytes": self.log.size, **state}
        self.checkpoints.save(step, as_bytes(weights, metadata), state, as_yaml(self.recipe))


def facts(data: Data) -> dict[str, Any]:
    """What a checkpoint knows of the images: names and sizes of their classes, channels and size of an image."""
    counts = {
        split: count_labels(batches.labels, len(data.classes)).tolist()
        for split, batches in (("train", data.train), ("test", data.test))
    }
    return {"classes": list(data.classes), "channels": data.channels, "size": data.size, **counts}


def _changes(then: Mapping[str, Any], now: Mapping[str, Any]) -> Iterable[str]:
    """How the `facts` of now differ from those of then, in words."""
    before, after = then["classes"], now["classes"]
    gone, new = (
        [f"class {name!r}" for name in one if name not in other] for one, other in ((before, after), (after, before))
    )
    if gone:
        yield f"{_several(gone)} no longer there"
    if new:
        yield f"{_several(new)} new"
    if before != after and not gone and not new:
        yield "its classes are in another order"
    for name in ("channels", "size"):
        if then[name] != now[name]:
            yield f"images have {name} {now[name]}, not {then[name]}"
    if before == after:
        for split, images in (("train", "to train on"), ("test", "to test on")):
            counts = zip(after, then[split], now[split], strict=True)
            if changed := [f"{new} of {name!r} (not {old})" for name, old, new in counts if old != new]:
                yield f"{_several(changed)} {images}"


def _several(items: list[str]) -> str:
    more = len(items) - MAX_NAMED
    return ", ".join(items[:MAX_NAMED]) + (f" and {more} more" if more > 0 else "")
