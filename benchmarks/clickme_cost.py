"""Measures what supervision by human maps costs: a training step of the paper's network with and without the map loss.

`python -m benchmarks.clickme_cost` times steps of the trainer in turn, forward, backward and optimizer, on the same
images with and without their maps, and prints the medians; then the bytes kept for the backward pass, and the most that
a step has allocated at once. The map loss is first compared with its formula in float64.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from itertools import accumulate

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from gala_cuda.bench.timing import in_turn, pin_allocator, saved_bytes
from gala_cuda.clickme import GalaMapLoss
from gala_cuda.data.batches import Batch
from gala_cuda.data.clickme_sample import ClickMeSample
from gala_cuda.models import gala_resnet50
from gala_cuda.training.meters import Meter
from gala_cuda.training.recipe import Recipe
from gala_cuda.training.step import Stepper

from .arguments import training_parser

CLASSES = 1000
WAYS = ("without", "with")


def problem(options: argparse.Namespace) -> tuple[Stepper, dict[str, Batch]]:
    """A trainer of the paper's network, and a batch without and with maps."""
    torch.manual_seed(0)
    device = torch.device(options.device)
    side, count = options.image_size, options.batch_size
    recipe = Recipe(clickme_loss=options.loss, precision=options.precision, batch_size=count)
    stepper = Stepper(gala_resnet50(CLASSES), recipe, device, CLASSES, (3, side, side))
    images, labels = torch.randn(count, 3, side, side), torch.randint(CLASSES, (count,))
    maps = torch.rand(count, 1, side, side), torch.ones(count, dtype=torch.bool)
    return stepper, {"without": (images, labels), "with": ClickMeSample(images, labels, *maps)}


def check(model: torch.nn.Module, sample: ClickMeSample, device: torch.device) -> None:
    """Compares the paper's loss of the maps with its formula."""
    with torch.no_grad():
        _, maps = model(sample.image.to(device), return_maps=True)
    maps = [attn_map.cpu() for attn_map in maps.values()]
    found = GalaMapLoss()(maps, sample.heatmap, sample.has_map).item()
    expected = 0.0
    for attn_map in maps:
        human = torch.nn.functional.interpolate(
            sample.heatmap.double(), attn_map.shape[1:], mode="bicubic", antialias=True
        )
        ours, theirs = (m.flatten(1) / m.flatten(1).norm(dim=1, keepdim=True) for m in (attn_map.double(), human))
        expected += 6 * (ours - theirs).norm(dim=1).mean().item()
    if abs(found - expected) > 1e-5 * expected:
        sys.exit(f"clickme_cost: the map loss is {found}, by its formula {expected}: nothing is timed")


def kept(stepper: Stepper, batch: Batch, device: torch.device) -> int:
    """Bytes kept for backward by forward and losses."""
    images, labels, *maps = (tensor.to(device) for tensor in batch)

    def loss(images: Tensor) -> Tensor:
        if not maps:
            return torch.nn.functional.cross_entropy(stepper.model(images), labels)
        images, options = stepper.supervision.prepare(images)
        logits, distances = stepper.supervision.losses(stepper.model(images, **options), images, labels, *maps)
        return torch.nn.functional.cross_entropy(logits, labels) + distances.mean()

    return saved_bytes(loss, images, stepper.model.parameters())


def peak(step: Callable[[], object], device: torch.device) -> int:
    """The most bytes of tensors that a step has at once, beside those that are there before."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        step()
        return torch.cuda.max_memory_allocated(device) - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step()
    events = profiler.profiler.kineto_results.events()
    changes = sorted((event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]")
    return max(accumulate(size for _, size in changes))


def timed(steps: Mapping[str, Callable[[], object]], rounds: int, device: torch.device) -> dict[str, list[float]]:
    """Seconds of each way in each round; on a CPU only the time that this process computed."""
    gpu = device.type == "cuda"
    clock, synchronize = (time.perf_counter, torch.cuda.synchronize) if gpu else (time.process_time, lambda: None)
    seconds: dict[str, list[float]] = {way: [] for way in steps}
    for way in in_turn(list(steps), rounds + 1):
        synchronize()
        began = clock()
        steps[way]()
        synchronize()
        seconds[way].append(clock() - began)
    return {way: samples[1:] for way, samples in seconds.items()}  # the first warms up


def parse() -> argparse.Namespace:
    parser = training_parser(__doc__, image_size=224, batch_size=4)
    parser.add_argument("--loss", default="paper", choices=("paper", "gala_tpu", "harmonization"))
    parser.add_argument("--rounds", type=int, default=30, help="of timing; one more warms up")
    return parser.parse_args()


def main() -> None:
    options = parse()
    device = torch.device(options.device)
    stepper, batches = problem(options)
    meter = Meter(device)
    steps = {way: lambda way=way: stepper([batches[way]], lr=1e-3, step=0, meter=meter) for way in WAYS}
    pin_allocator()
    sample = batches["with"]
    assert isinstance(sample, ClickMeSample)
    check(stepper.model, sample, device)
    times = timed(steps, options.rounds, device)
    figures = {
        "step, ms": {way: 1e3 * statistics.median(times[way]) for way in WAYS},
        "kept for backward, MiB": {way: kept(stepper, batches[way], device) / 2**20 for way in WAYS},
        "peak of a step, MiB": {way: peak(steps[way], device) / 2**20 for way in WAYS},
    }
    title = f"{options.loss}, {options.batch_size} images of {options.image_size} px, {options.precision}"
    table = Table("", "without maps", "with", "more", title=f"{title}; {options.rounds} rounds")
    for name, values in figures.items():
        more = values["with"] / values["without"] - 1
        table.add_row(name, *(f"{values[way]:.2f}" for way in WAYS), f"{more:+.2%}")
    ratios = [after / before for before, after in zip(*(times[way] for way in WAYS), strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4)
    Console().print(
        table, f"with over without, round by round: median {middle:.3f}, quartiles {low:.3f} to {high:.3f}; "
        f"torch {torch.__version__}, {torch.get_num_threads()} threads", highlight=False, soft_wrap=True,
    )  # fmt: skip


if __name__ == "__main__":
    main()
