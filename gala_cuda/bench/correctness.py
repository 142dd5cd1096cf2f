"""The check before anything is timed: every contestant agrees with float64, in its output and every gradient."""

import torch
from torch import Tensor

from ..errors import GalaError
from ..testing import norm_error, norm_tolerance
from .peers import Contestant

# The largest error of the contestants that are no backends, in the L2 norm, relative to float64's: they round each step
# to x's dtype (float32 convolutions to TF32 on some GPUs) and may have ties before a maximum.
UNFUSED_TOLERANCE = {torch.float64: 1e-12, torch.float32: 3e-3, torch.float16: 5e-2, torch.bfloat16: 2e-1}
IMAGES_AT_ONCE = 4  # in float64, which bounds the memory


class WrongResultError(GalaError, RuntimeError):
    """A contestant does not compute what it is named for."""


def check(contestants: list[Contestant], x: Tensor, grad: Tensor) -> dict[str, float]:
    """The largest relative error of each contestant over `out` and the gradients of x and of every parameter.

    Args:
        x: [N, C, H, W], requires grad.
        grad: [N, C, H, W], the incoming gradient.

    Raises:
        WrongResultError: an error is beyond its tolerance; the message names the contestant, the tensor and both
            figures.
    """
    exact: dict[type, dict[str, Tensor]] = {}
    worst = {}
    for contestant in contestants:
        kind = type(contestant.oracle)
        if kind not in exact:
            exact[kind] = _exact(contestant, x, grad)
        limit = norm_tolerance(x.dtype) if contestant.is_backend else UNFUSED_TOLERANCE[x.dtype]
        errors = {name: norm_error(got, exact[kind][name]) for name, got in _results(contestant, x, grad).items()}
        for name, error in errors.items():
            if not error <= limit:
                raise WrongResultError(
                    f"{contestant.name} is wrong, nothing was timed: {name} at shape {tuple(x.shape)}, {x.dtype}, "
                    f"is off float64 by {error:.1e} relative; expected at most {limit:.1e}"
                )
        worst[contestant.name] = max(errors.values())
    return worst


def _results(contestant: Contestant, x: Tensor, grad: Tensor) -> dict[str, Tensor]:
    parameters = dict(contestant.module.named_parameters())
    with torch.no_grad():
        inferred = contestant.call(x)
    out = contestant.call(x)
    grads = torch.autograd.grad(out, [x, *parameters.values()], grad)
    names = ("gradient of x", *(f"gradient of {name}" for name in parameters))
    return {"out without grad": inferred, "out": out.detach(), **dict(zip(names, grads, strict=True))}


def _exact(contestant: Contestant, x: Tensor, grad: Tensor) -> dict[str, Tensor]:
    """`_results` of the float64 block, a few images at a time: gradients of parameters are sums over images."""
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
