"""The demonstration: doctor, a GALA-ResNet trained on real digits, its attention maps, a short benchmark."""

import time
from pathlib import Path

import torch
from torch import nn

from . import bench
from .bench import report
from .console import PlainConsole
from .data.load import Data, load
from .diagnostics import doctor
from .errors import GalaError
from .inspection.sheet import overlay
from .models import gala_resnet18
from .models.attention_maps import attention_maps, input_gradient
from .training.loop import fit
from .training.recipe import Recipe
from .training.run import Run

LAYERS = ("layer2", "layer3")  # 16x16 and 8x8 for images of 32x32
RECIPE = Recipe(epochs=10, lr=0.1)
BENCH = bench.Settings(batches=(8,), shapes=((1024, 14, 14), (512, 28, 28)), seconds=4)
NEEDED = 0.95  # of the test images
SAMPLES = 6  # images in the picture


class DemoError(GalaError, RuntimeError):
    """The demonstration did not show what it promises."""


def run(output: Path, console: PlainConsole) -> None:
    """Everything in one to two minutes on two idle cores, however long on others; the files go to `output`.

    Raises:
        DemoError: GALA_BACKEND names a backend that cannot run here, or the test accuracy is below `NEEDED`.
    """
    found = doctor()
    console.rule("doctor")
    console.print(str(found))
    cpu = found.devices[0]
    if cpu.problem:
        raise DemoError(cpu.problem)
    console.rule(f"training a GALA-ResNet-18 on handwritten digits; GALA runs on: {cpu.automatic}")
    start, threads = time.perf_counter(), torch.get_num_threads()
    model, data = build(seed=0)
    torch.set_num_threads(1)  # on a busy machine two spend their time waiting for each other
    try:
        log = fit(model, data, RECIPE, Run(output, torch.device("cpu"), console))
    finally:
        torch.set_num_threads(threads)
    reached = log[-1].tested
    console.print(
        f"test accuracy {reached:.1%} on {data.test.images} images never trained on, "
        f"{time.perf_counter() - start:.0f} s"
    )
    picture = draw(model, data, output)
    console.rule("benchmark")
    result = bench.run(BENCH, lambda text: console.print(text, style="dim"))
    report.print_tables(result, console)
    written = [output / "last.safetensors", output / "log.jsonl", picture, *report.write(result, output)]
    console.rule("done")
    for path, what in zip(written, ("weights", "log of the training", "attention maps", "times", "chart"), strict=True):
        console.print_line(f"{what:<20} {path.resolve()}")
    if reached < NEEDED:
        raise DemoError(f"the test accuracy is {reached:.1%}; expected at least {NEEDED:.0%}")


def build(seed: int) -> tuple[nn.Module, Data]:
    """A narrow GALA-ResNet-18 for images of 32x32 pixels, and the digits."""
    data = load("builtin:digits", batch_size=64, seed=seed)
    torch.manual_seed(seed)
    model = gala_resnet18(len(data.classes), LAYERS, in_channels=data.channels, stem="small", width=16)
    return model, data


def draw(model: nn.Module, data: Data, output: Path) -> Path:
    """Writes attention.png: the first test image of each of `SAMPLES` classes under every attention map."""
    images, labels, *_ = next(data.test.epoch())
    chosen = [int((labels == label).nonzero()[0]) for label in labels.unique()[:SAMPLES]]
    images, labels = images[chosen], labels[chosen]
    logits, maps = attention_maps(model, images)
    maps["input gradient"] = input_gradient(model, images, labels)
    titles = [
        f"{data.classes[label]}, read as {data.classes[read]}"
        for label, read in zip(labels.tolist(), logits.argmax(1).tolist(), strict=True)
    ]
    heading = "Where GALA attends, block by block: dark least, bright most, each picture by itself"
    path = output / "attention.png"
    overlay(images, maps, titles, heading).savefig(path, dpi=150)
    return path
