"""Part "networks": times training steps of whole networks, in images per second, and measures their peak memory.

One step is forward and backward under bfloat16 autocast and an SGD update, on images and labels that are already on the
device. All networks take the same batch, the largest of the settings that fits, and are timed in turn.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from gala_cuda import GALA, models
from gala_cuda.bench.timing import Timing, alternate

from .attempts import TIMED_OUT
from .forms import FORMS, Kind, running
from .records import MeasurementError, Step
from .settings import REDUCTION, Context
from .uses import Use

SECONDS = 20  # timings' share of the settings' seconds, for each handful of networks
LIMIT = 120.0  # seconds for a network's first steps
HANDFUL = 4
PLAIN, TIMM = "resnet{}", "timm seresnet{}"
Networks = dict[str, Callable[[], nn.Module]]
Calls = dict[str, Callable[[], None]]


def steps(context: Context) -> list[Step]:
    """First the plain network against GALA on the backends themselves, then all networks."""
    uses = (Use(_kind(context, context.sizes.network_batches[0]), torch.float32, bias=True, residual=True),)
    return [
        Step("training, plain and GALA", partial(_measure, context, True), 45, uses),
        Step("training", partial(_measure, context, False), 90, uses),
    ]


def _kind(context: Context, batch: int) -> Kind:
    """The kind of problem that GALA has in layer3, where it stands."""
    sizes = context.sizes
    channels = sizes.width * (16 if sizes.depth >= 50 else 4)
    side = max(1, sizes.image // 16)
    return Kind((batch, channels, side, side), max(1, channels // REDUCTION), torch.bfloat16, "channels_last")


def _measure(context: Context, essential: bool) -> dict[str, Any]:
    """Measures at the largest batch that all networks have memory for, or at the smallest without those that do not."""
    *larger, smallest = context.sizes.network_batches
    with torch.backends.cudnn.flags(enabled=True, benchmark=True):
        for batch in larger:
            found = _train(context, batch, essential, complete=True)
            if found is not None:
                return found
        found = _train(context, smallest, essential, complete=False)
    assert found is not None
    return found


def _train(context: Context, batch: int, essential: bool, complete: bool) -> dict[str, Any] | None:
    """The result for one batch size; None if all networks are to fit (`complete`) and one does not."""
    context.start_afresh()
    torch.manual_seed(context.seed)
    size, trials = context.sizes.image, context.trials
    images = torch.randn(batch, 3, size, size, device=context.device).to(memory_format=torch.channels_last)
    labels = torch.randint(context.sizes.classes, (batch,), device=context.device)
    networks, left_out = _networks(context, batch, essential)
    calls: Calls = {}
    peaks = {}
    for name, build in networks.items():
        if name in trials.excluded:
            left_out[name] = trials.excluded[name]
            continue
        with trials.attempt(name, LIMIT) as attempt:
            step, peaks[name] = _prepared(build, images, labels, context)
            calls[name] = trials.watched(name, step)
        if attempt.reason is None:
            continue
        if complete and attempt.reason.startswith(torch.OutOfMemoryError.__name__):
            return None
        left_out[name] = attempt.reason
    timings = _timings(context, calls, left_out)
    return _found(context, batch, timings, peaks, left_out)


def _timings(context: Context, calls: Calls, left_out: dict[str, str]) -> dict[str, Timing]:
    """Times all networks in turn; one that fails is dropped and the others are timed again."""
    while calls:
        with context.trials.attempt() as attempt:
            return alternate(calls, SECONDS * context.sizes.seconds * len(calls) / HANDFUL, context.device)
        assert attempt.name is not None
        assert attempt.reason is not None
        calls = {name: call for name, call in calls.items() if name != attempt.name}
        left_out[attempt.name] = attempt.reason
    raise MeasurementError(
        "no network trains: " + "; ".join(f"{name}: {reason}" for name, reason in left_out.items()), {}
    )


def _found(
    context: Context, batch: int, timings: dict[str, Timing], peaks: dict[str, int | None], left_out: dict[str, str]
) -> dict[str, Any]:
    rates = {name: batch / timing.median for name, timing in timings.items()}
    plain, squeezed = rates.get(PLAIN.format(context.sizes.depth)), rates.get(TIMM.format(context.sizes.depth))
    found = {
        "batch": batch,
        "image": context.sizes.image,
        "images_per_second": rates,
        "spread": {name: timing.spread for name, timing in timings.items()},
        "peak_bytes": {name: peaks[name] for name in rates},
        "over_plain": {name: rate / plain for name, rate in rates.items() if plain},
        "over_timm_se": {name: rate / squeezed for name, rate in rates.items() if squeezed},
        "left_out": left_out,
    }
    gala = {f"GALA {name}" for name in context.usable(_kind(context, batch))[0]}
    broken = [f"{name}: {why}" for name, why in left_out.items() if name in gala and not why.startswith(TIMED_OUT)]
    if broken:
        raise MeasurementError("; ".join(broken), found)
    return found


def _networks(context: Context, batch: int, essential: bool) -> tuple[Networks, dict[str, str]]:
    """(what builds each network, why others are left out), by name. GALA stands in layer3, as in the paper."""
    sizes = context.sizes

    def build(kind: str, **options) -> nn.Module:
        return getattr(models, f"{kind}{sizes.depth}")(sizes.classes, width=sizes.width, **options)

    def gala(contestant: str) -> nn.Module:
        with running(contestant) as backend:
            return _in_form(build("gala_resnet", backend=backend), contestant)

    def timm_se() -> nn.Module:
        import timm  # brings torchvision; where either is missing or broken, it alone is left out

        channels = [sizes.width * 2**i for i in range(4)]
        return timm.create_model(f"seresnet{sizes.depth}", num_classes=sizes.classes, channels=channels)

    usable, left_out = context.usable(_kind(context, batch))
    left_out = {f"GALA {name}": reason for name, reason in left_out.items()}
    found: Networks = {
        PLAIN.format(sizes.depth): partial(build, "resnet"),
        "GALA eager": partial(build, "gala_resnet", backend="reference"),
        **{f"GALA {name}": partial(gala, name) for name in usable if name not in FORMS},
    }
    if essential:
        return found, {name: reason for name, reason in left_out.items() if name.removeprefix("GALA ") not in FORMS}
    others: Networks = {
        f"se_resnet{sizes.depth}": partial(build, "se_resnet"),
        TIMM.format(sizes.depth): timm_se,
        "GALA compiled": lambda: _compiled(build("gala_resnet", backend="reference"), sizes.compiler),
        **{f"GALA {name}": partial(gala, name) for name in usable if name in FORMS},
    }
    return found | others, left_out


def _in_form(network: nn.Module, contestant: str) -> nn.Module:
    """The same network with every attention block in the contestant's form."""
    for module in network.modules():
        if isinstance(module, GALA) and contestant in FORMS:
            module.forward = _under(contestant, module.forward)  # type: ignore[method-assign]
    return network


def _under(contestant: str, call: Callable) -> Callable:
    def under(*arguments, **options):
        with running(contestant):
            return call(*arguments, **options)

    return under


def _compiled(network: nn.Module, compiler: str) -> nn.Module:
    """The same network with every attention block compiled; the rest runs as in the other networks."""
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
    network = build().to(device).to(memory_format=torch.channels_last).train()
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
