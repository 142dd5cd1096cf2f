"""The gate before the clock: every contestant agrees with float64, forward and every gradient."""

import torch
from torch import Tensor

from ..errors import GalaError
from .peers import Contestant

# The largest error in the L2 norm, relative to float64's norm: of a backend, whose sums are float32, and of the others,
# which round each step to x's dtype (float32 convolutions to TF32 on some GPUs) and have ties before a maximum.
LIMITS = {
    torch.float64: (1e-12, 1e-12),
    torch.float32: (1e-5, 3e-3),
    torch.float16: (1e-3, 5e-2),
    torch.bfloat16: (5e-3, 2e-1),
}
TIE = 1e-5  # of the largest value of the hidden layer
IMAGES_AT_ONCE = 4  # in float64: bounds the oracle's memory


class WrongResultError(GalaError, RuntimeError):
    """A contestant does not compute what it is named for."""


def check(contestants: list[Contestant], x: Tensor, grad: Tensor) -> dict[str, float]:
    """The largest relative error of each contestant over ``out`` and the gradients of x and of every parameter.

    Args:
        x: [N, C, H, W], requires grad.
        grad: [N, C, H, W], the incoming gradient.

    Raises:
        WrongResultError: an error is beyond ``LIMITS``; the message names the contestant, the tensor and both figures.
    """
    exact: dict[type, dict[str, Tensor]] = {}
    worst = {}
    for contestant in contestants:
        kind = type(contestant.oracle)
        if kind not in exact:
            exact[kind] = _exact(contestant, x, grad)
        limit = LIMITS[x.dtype][0 if contestant.is_backend else 1]
        errors = {name: _error(got, exact[kind][name]) for name, got in _results(contestant, x, grad).items()}
        for name, error in errors.items():
            if not error <= limit:
                raise WrongResultError(
                    f"{contestant.name} is wrong, nothing was timed: {name} at shape {tuple(x.shape)}, {x.dtype}, "
                    f"is off float64 by {error:.1e} relative; expected at most {limit:.0e}"
                )
        worst[contestant.name] = max(errors.values())
    return worst


@torch.no_grad()
def avoid_ties(x: Tensor, v_shrink: Tensor) -> None:
    """Overwrites pixels of x [N, C, H, W] where a unit of the hidden layer ``v_shrink`` [R, C] is almost 0.

    There rounding decides which side of its ReLU a unit is on, and one gradient or another is right. Such a pixel gets
    the values of one of its image that is clear of it, where there is one.
    """
    for image in x:
        hidden = torch.einsum("rc,chw->rhw", v_shrink.double(), image.double())
        tied = (hidden.abs() < TIE * hidden.abs().amax()).any(0)
        clear = (~tied).nonzero()
        if len(clear):
            row, column = clear[0]
            image[:, tied] = image[:, row, column, None].clone()


def _results(contestant: Contestant, x: Tensor, grad: Tensor) -> dict[str, Tensor]:
    parameters = dict(contestant.module.named_parameters())
    with torch.no_grad():
        inferred = contestant.call(x)
    out = contestant.call(x)
    grads = torch.autograd.grad(out, [x, *parameters.values()], grad)
    names = ("gradient of x", *(f"gradient of {name}" for name in parameters))
    return {"out without grad": inferred, "out": out.detach(), **dict(zip(names, grads, strict=True))}


def _exact(contestant: Contestant, x: Tensor, grad: Tensor) -> dict[str, Tensor]:
    """``_results`` of the oracle, a few images at a time: gradients of parameters are sums over images."""
    whole: dict[str, Tensor] = {}
    parts: dict[str, list[Tensor]] = {"out without grad": [], "out": [], "gradient of x": []}
    oracle = Contestant(contestant.name, contestant.oracle, contestant.oracle, contestant.oracle)
    for images, directions in zip(x.detach().split(IMAGES_AT_ONCE), grad.split(IMAGES_AT_ONCE), strict=True):
        for name, part in _results(oracle, images.double().requires_grad_(), directions.double()).items():
            if name in parts:
                parts[name].append(part)
            else:
                whole[name] = whole[name] + part if name in whole else part
    return {**{name: torch.cat(pieces) for name, pieces in parts.items()}, **whole}


def _error(got: Tensor, want: Tensor) -> float:
    difference, norm = torch.linalg.vector_norm(got.double() - want).item(), torch.linalg.vector_norm(want).item()
    return difference / norm if norm else difference
