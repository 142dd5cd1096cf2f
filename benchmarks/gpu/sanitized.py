"""Small problems for compute-sanitizer: ``python -m benchmarks.gpu.sanitized BACKEND [DEVICE]``.

Forward and backward with all options and odd sizes, in both layouts and two dtypes.
"""

import sys

import torch

from gala_cuda import GALA

from .settings import running

SHAPES = ((3, 40, 5, 7), (2, 128, 7, 7))


def main(backend: str, device: str = "cuda") -> None:
    for dtype in (torch.bfloat16, torch.float32):
        for layout in (torch.channels_last, torch.contiguous_format):
            for shape in SHAPES:
                layer = GALA(shape[1], bias=True, backend=backend, device=device)
                x, residual = (
                    torch.randn(shape, device=device).to(dtype, memory_format=layout).requires_grad_() for _ in range(2)
                )
                out, amap = layer(x, residual=residual, return_map=True)
                torch.autograd.backward([out, amap], [torch.ones_like(out), torch.ones_like(amap)])
    if device == "cuda":
        torch.cuda.synchronize()


if __name__ == "__main__":
    with running(sys.argv[1]) as name:
        main(name, *sys.argv[2:])
