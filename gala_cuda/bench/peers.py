"""The contestants: the paper's formula eager and compiled, the fused backends, and other attention blocks."""

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import backends
from ..layer import GALA

BASELINES = ("eager", "compile", "max-autotune")
OTHERS = ("se", "cbam")
NAMES = (*BASELINES, *backends.NAMES, *OTHERS)


class Formula(GALA):
    """The paper's formula as one writes it down, all of it in x's dtype: the baseline, eager and compiled."""

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        w = self.weights
        g = F.linear(F.linear(x.mean((2, 3)), w.w_shrink).relu(), w.w_expand)[:, :, None, None]
        s = F.conv2d(F.conv2d(x, w.v_shrink[:, :, None, None]).relu(), w.v_collapse[None, :, None, None])
        a, m = w.a[:, None, None], w.m[:, None, None]
        return x * torch.tanh(a * (g + s) + m * (g * s))


@dataclass(frozen=True)
class Contestant:
    """One way to compute an attention block."""

    name: str
    module: nn.Module  # holds the parameters
    call: Callable[[Tensor], Tensor]  # x [N, C, H, W] -> out: the module, perhaps compiled
    oracle: nn.Module  # the same block in float64, with the same parameters

    @property
    def is_baseline(self) -> bool:
        return self.name in BASELINES

    @property
    def is_backend(self) -> bool:
        return self.name in backends.NAMES


def default_names(x: Tensor) -> tuple[list[str], dict[str, str]]:
    """(eager, compile and each fused backend that runs on x, the reasons of those left out)."""
    reasons = {name: backends.why_not(name, x) for name in backends.NAMES if name != "reference"}
    if x.device.type == "cpu" and reasons["triton"] is None:
        reasons["triton"] = "Triton's interpreter is for tests"
    usable = [name for name, reason in reasons.items() if reason is None]
    return ["eager", "compile", *usable], {name: reason for name, reason in reasons.items() if reason is not None}


def contestant(
    name: str, channels: int, reduction: int, dtype: torch.dtype, device: torch.device, compiler: str = "inductor"
) -> Contestant:
    """The contestant `name` for `channels`. All GALA blocks have the same parameters, those of torch's seed 0.

    Baselines hold them in `dtype`; the backends keep float32 beside 16-bit x, as in mixed-precision training.
    `compiler` is torch.compile's backend; max-autotune is a mode of inductor alone.
    """
    with torch.random.fork_rng():
        torch.manual_seed(0)
        if name in OTHERS:
            module = _timm_block(name, channels).to(device, dtype).eval()  # CBAM holds a BatchNorm
            return Contestant(name, module, module, copy.deepcopy(module).double())
        source = Formula(channels, reduction, init="paper").to(device, dtype)
    oracle = GALA(channels, reduction, init="paper", backend="reference", device=device, dtype=torch.float64)
    oracle.load_state_dict(source.state_dict())
    if name not in BASELINES:
        wide = torch.promote_types(dtype, torch.float32)
        module = GALA(channels, reduction, init="paper", backend=name, device=device, dtype=wide)
        module.load_state_dict(source.state_dict())
        return Contestant(name, module, module, oracle)
    call: Callable[[Tensor], Tensor] = source
    if name == "compile":
        call = torch.compile(source, dynamic=False, backend=compiler)
    elif name == "max-autotune":
        call = _new_step_each_call(torch.compile(source, dynamic=False, mode=name))
    return Contestant(name, source, call, oracle)


def _new_step_each_call(compiled: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """max-autotune replays CUDA graphs, which reuse the memory of the last call's output only in a new step."""

    def call(x: Tensor) -> Tensor:
        torch.compiler.cudagraph_mark_step_begin()
        return compiled(x)

    return call


def _timm_block(name: str, channels: int) -> nn.Module:
    from timm.layers import SEModule
    from timm.layers.cbam import CbamModule

    return SEModule(channels) if name == "se" else CbamModule(channels)
