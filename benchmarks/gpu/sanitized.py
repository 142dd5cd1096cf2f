"""Runs small problems for compute-sanitizer to watch: `python -m benchmarks.gpu.sanitized CONTESTANT [DEVICE]`.

They run forward and backward with all options and odd sizes, in both layouts and two dtypes, if they have the form.
"""

import sys

import torch

from gala_cuda import GALA

from .forms import Kind, running, why_not
from .settings import REDUCTION
from .uses import Use

KINDS = tuple(
    Kind(shape, shape[1] // REDUCTION, dtype, layout)
    for dtype in (torch.bfloat16, torch.float32)
    for layout in ("channels_last", "nchw")
    for shape in ((3, 40, 5, 7), (2, 128, 7, 7))
)


def uses(contestant: str) -> tuple[Use, ...]:
    if contestant != "triton":
        return ()
    return tuple(Use(kind, torch.float32, bias=True, residual=True, map=True) for kind in KINDS)


def main(contestant: str, device: str = "cuda") -> int:
    """Runs the problems and returns how many there were."""
    done = 0
    with running(contestant) as backend:
        for kind in KINDS:
            if why_not(contestant, kind, torch.device(device)) is None:
                _both(kind, backend, device)
                done += 1
    if device == "cuda":
        torch.cuda.synchronize()
    return done


def _both(kind: Kind, backend: str, device: str) -> None:
    layer = GALA(kind.shape[1], init="paper", bias=True, backend=backend, device=device)
    memory_format = torch.channels_last if kind.layout == "channels_last" else torch.contiguous_format
    x, residual = (
        torch.randn(kind.shape, device=device).to(kind.dtype, memory_format=memory_format).requires_grad_()
        for _ in range(2)
    )
    out, attn_map = layer(x, residual=residual, return_map=True)
    torch.autograd.backward([out, attn_map], [torch.ones_like(out), torch.ones_like(attn_map)])


if __name__ == "__main__":
    print(f"{main(*sys.argv[1:])} problems")
