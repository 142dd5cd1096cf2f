"""Part "networks": training steps of whole networks, in image/s, and their peak memory.

One step is forward and backward under bfloat16 autocast and an SGD update, on images and labels that are on the device
already, channels_last. All networks take the same batch, the largest of the settings that fits, and are timed in turn.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import timm
import torch
import torch.nn.functional as F
from torch import nn
from torch._dynamo.exc import TorchDynamoException

from gala_cuda import GALA, models
from gala_cuda.benchmark.timing import alternate

from .records import Failed, Step
from .settings import Context

SECONDS = 40  # timings' share of the settings' seconds
PLAIN, TIMM = "resnet{}", "timm seresnet{}"


def steps(context: Context) -> list[Step]:
    return [Step("training", partial(_measure, context), 75)]


def _measure(context: Context) -> dict[str, Any]:
    for batch in context.sizes.network_batches:
        with torch.backends.cudnn.flags(enabled=True, benchmark=True):
            found = _train(context, batch)
        if found is not None:
            return found
    raise Failed(f"no batch of {context.sizes.network_batches} fits into memory", {})


def _train(context: Context, batch: int) -> dict[str, Any] | None:
    """The result for one batch size, or None where it does not fit."""
    context.start_afresh()
    torch.manual_seed(context.seed)
    size = context.sizes.image
    images = torch.randn(batch, 3, size, size, device=context.device).to(memory_format=torch.channels_last)
    labels = torch.randint(context.sizes.classes, (batch,), device=context.device)
    calls: dict[str, Callable[[], None]] = {}
    peaks, left_out = {}, {}
    for name, build in _networks(context).items():
        try:
            calls[name], peaks[name] = _prepared(build, images, labels, context)
        except torch.OutOfMemoryError:
            return None
        except TorchDynamoException as error:
            left_out[name] = f"{type(error).__name__}: {str(error).splitlines()[0]}"
    timings = alternate(calls, SECONDS * context.sizes.seconds, context.device)
    rates = {name: batch / timing.median for name, timing in timings.items()}
    plain, squeezed = rates[PLAIN.format(context.sizes.depth)], rates[TIMM.format(context.sizes.depth)]
    return {
        "batch": batch,
        "image": size,
        "images_per_second": rates,
        "spread": {name: timing.spread for name, timing in timings.items()},
        "peak_bytes": peaks,
        "over_plain": {name: rate / plain for name, rate in rates.items()},
        "over_timm_se": {name: rate / squeezed for name, rate in rates.items()},
        "left_out": left_out,
    }


def _networks(context: Context) -> dict[str, Callable[[], nn.Module]]:
    """By name, what builds them. GALA stands in layer3, as in the paper."""
    sizes = context.sizes

    def build(kind: str, **options) -> nn.Module:
        return getattr(models, f"{kind}{sizes.depth}")(sizes.classes, width=sizes.width, **options)

    def timm_se() -> nn.Module:
        channels = [sizes.width * 2**i for i in range(4)]
        return timm.create_model(f"seresnet{sizes.depth}", num_classes=sizes.classes, channels=channels)

    return {
        PLAIN.format(sizes.depth): partial(build, "resnet"),
        f"se_resnet{sizes.depth}": partial(build, "se_resnet"),
        TIMM.format(sizes.depth): timm_se,
        "GALA eager": partial(build, "gala_resnet", backend="reference"),
        "GALA compiled": lambda: _compiled(build("gala_resnet", backend="reference"), sizes.compiler),
        **{f"GALA {name}": partial(build, "gala_resnet", backend=name) for name in context.usable(torch.bfloat16)},
    }


def _compiled(network: nn.Module, compiler: str) -> nn.Module:
    """The same with every attention block compiled; the rest runs as in the other networks."""
    for module in network.modules():
        if isinstance(module, GALA):
            module.compile(dynamic=False, backend=compiler)
    return network


def _prepared(
    build: Callable[[], nn.Module], images, labels, context: Context
) -> tuple[Callable[[], None], int | None]:
    """(one training step of the network, after a few; the bytes it needs beyond images and labels)."""
    device = context.device
    before = torch.cuda.memory_allocated(device) if context.is_cuda else 0
    network = build().to(device, memory_format=torch.channels_last).train()
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-3, momentum=0.9)

    def step() -> None:
        optimizer.zero_grad()
        with torch.autocast(device.type, torch.bfloat16):
            loss = F.cross_entropy(network(images), labels)
        loss.backward()
        optimizer.step()

    step()
    if not context.is_cuda:
        return step, None
    torch.cuda.reset_peak_memory_stats(device)
    step()
    torch.cuda.synchronize(device)
    return step, torch.cuda.max_memory_allocated(device) - before
