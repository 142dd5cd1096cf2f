"""`gala-cuda bench`: times GALA's backends against eager PyTorch and torch.compile."""

import argparse
from pathlib import Path

import torch

from ..backends.dtypes import DTYPES
from ..diagnostics import dtype_name
from .arguments import count, device, positive, shape
from .extras import extra

HELP = "Time GALA's backends against eager PyTorch and torch.compile."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    dtypes = [dtype_name(dtype) for dtype in DTYPES]
    add("--batch", type=count, nargs="+", metavar="N", help="batch sizes (default: 1 8 32)")
    add("--shape", type=shape, nargs="+", metavar="CxHxW", help="feature maps (default: those of ResNet-50's stages)")
    add("--dtype", choices=dtypes, help="dtype of x (default: float32)")
    add("--layout", choices=("channels_last", "nchw"), help="layout of x in memory (default: channels_last)")
    add("--reduction", type=count, metavar="R", help="channels C over hidden units R (default: 4)")
    add("--contestants", nargs="+", metavar="NAME", help="eager, compile, max-autotune, a backend's name, se, cbam "
        "(default: eager, compile and every fused backend that runs)")  # fmt: skip
    add("--seconds", type=positive, metavar="S", help="seconds of timing for each shape and pass (default: 10)")
    add("--threads", type=count, metavar="T", help="threads of the CPU (default: torch's choice)")
    add("--device", type=device, help="cpu, cuda, cuda:1 (default: cpu)")
    add("--output", type=Path, default=Path("runs/bench"), help="folder of bench.json and bench.png "
        "(default: %(default)s)")  # fmt: skip


def run(args: argparse.Namespace) -> int:
    with extra("bench"):
        from .. import bench
        from ..bench import report
        from ..console import PlainConsole
    chosen = {
        "batches": args.batch and tuple(args.batch),
        "shapes": args.shape and tuple(args.shape),
        "contestants": args.contestants and tuple(args.contestants),
        "dtype": args.dtype and getattr(torch, args.dtype),
        "layout": args.layout,
        "reduction": args.reduction,
        "seconds": args.seconds,
        "threads": args.threads,
        "device": args.device and str(args.device),
    }
    settings = bench.Settings(**{name: value for name, value in chosen.items() if value is not None})
    console = PlainConsole()
    try:
        result = bench.run(settings, lambda text: console.print(text, style="dim"))
    except bench.BenchmarkError as error:
        raise argparse.ArgumentError(None, str(error)) from error
    report.print_tables(result, console)
    for path in report.write(result, args.output):
        console.print_line(f"written: {path.resolve()}")
    return 0
