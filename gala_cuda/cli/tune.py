"""`gala-cuda tune`: measures on a GPU which tiles the Triton kernels are fastest with."""

import argparse
from pathlib import Path

import torch

from ..backends.dtypes import GPU_DTYPES
from ..diagnostics import dtype_name
from .arguments import count, device, positive, shape
from .extras import extra

HELP = "Measure on a GPU which tiles the Triton kernels are fastest with."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    dtypes = [dtype_name(dtype) for dtype in GPU_DTYPES]
    add("--batch", type=count, nargs="+", metavar="N", help="batch sizes (default: 32 256)")
    add("--shape", type=shape, nargs="+", metavar="CxHxW", help="feature maps (default: those of ResNet-50's stages)")
    add("--dtype", choices=dtypes, nargs="+", help="dtype of x (default: bfloat16 float32)")
    add("--layout", choices=("channels_last", "nchw"), nargs="+", help="layout of x in memory (default: channels_last)")
    add("--seconds", type=positive, metavar="S", help="seconds of timing for each comparison (default: 0.5)")
    add("--device", type=device, help="cuda, cuda:1 (default: cuda)")
    add("--output", type=Path, metavar="FILE", help="table to write (default: gala_cuda/triton-table.json in "
        "$XDG_CACHE_HOME or ~/.cache)")  # fmt: skip


def run(args: argparse.Namespace) -> int:
    with extra("bench"):
        from ..bench import tune
        from ..console import PlainConsole
    chosen = {
        "batches": args.batch and tuple(args.batch),
        "shapes": args.shape and tuple(args.shape),
        "dtypes": args.dtype and tuple(getattr(torch, name) for name in args.dtype),
        "layouts": args.layout and tuple(args.layout),
        "seconds": args.seconds,
        "device": args.device and str(args.device),
    }
    settings = tune.Settings(**{name: value for name, value in chosen.items() if value is not None})
    output, console = (args.output or tune.default_output()).resolve(), PlainConsole()
    with console.status("") as status:

        def say(text: str, lasting: bool) -> None:
            if lasting:
                console.print(text)
            else:
                status.update(text)

        found = tune.tune(settings, output, say)
    tune.print_results(found, console)
    console.print_line(f"written: {output}; to use it: export GALA_TRITON_TABLE={output}")
    return 0
