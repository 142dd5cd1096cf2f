"""The command ``gala-cuda``: doctor, bench, tune, train, eval, export, inspect, clickme, index, demo."""

import argparse
import importlib
import io
import json
import logging
import os
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from types import ModuleType

import torch

from ..backends import triton
from ..backends.interface import DTYPES
from ..diagnostics import doctor
from ..text import printable
from ..version import __version__
from . import clickme_arguments as clickme
from . import inspection_arguments as inspection
from . import training_arguments as training
from .arguments import Parser, count, device, positive, shape
from .interrupt import Stop, stoppable


class CommandError(Exception):
    """A command cannot go on; the message says why."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; the exit code.

    It is 0, or 1 for a command that failed, 2 for bad arguments, 130 after Ctrl-C, 143 after SIGTERM.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # whatever names of files hold; standard error has it
    logging.getLogger("torch.utils.cpp_extension").addFilter(_is_news)
    args = argparse.Namespace()
    with stoppable() as stop:
        try:
            _parser().parse_args(argv, args)
            return args.command(args)
        except (Exception, KeyboardInterrupt) as error:
            # Whatever a signal's coming made fail: a compiler or another process of the training has it too.
            if stop.number is None:
                return _refused(error, args)
    return _stopped(stop, args)


def _is_news(record: logging.LogRecord) -> bool:
    """Not torch.compile's finding that there is a CUDA toolkit and no GPU, which doctor tells where it matters."""
    return not record.getMessage().startswith("No CUDA runtime is found")


def _refused(error: BaseException, args: argparse.Namespace) -> int:
    """Tells of an error that is an answer to the user; raises any other."""
    if isinstance(error, CommandError):
        print(f"gala-cuda: {printable(str(error))}", file=sys.stderr)
        return 1
    if isinstance(error, argparse.ArgumentError):
        return args.parser.error(printable(str(error)))
    raise error


def _stopped(stop: Stop, args: argparse.Namespace) -> int:
    """Tells, once where there are several processes, what a signal ended; the exit code."""
    if int(os.environ.get("RANK", 0)) == 0:
        trains = getattr(args, "does", None) == "train"
        advice = _load("cli.training_commands", "train").how_to_go_on(args.output) if trains else ""
        print(f"gala-cuda: {stop}{printable(advice)}", file=sys.stderr)
    return stop.code


def _doctor(args: argparse.Namespace) -> int:
    report = doctor()
    print(json.dumps(report.as_dict(), indent=1) if args.json else report)
    return 0


def _bench(args: argparse.Namespace) -> int:
    benchmark, report = _load("bench", "bench"), _load("bench.report", "bench")
    chosen = {
        "batches": args.batch and tuple(args.batch),
        "shapes": args.shape and tuple(args.shape),
        "contestants": args.contestants and tuple(args.contestants),
        "dtype": args.dtype and getattr(torch, args.dtype),
        **{name: getattr(args, name) for name in ("layout", "reduction", "seconds", "threads")},
        "device": args.device and str(args.device),
    }
    settings = benchmark.Settings(**{name: value for name, value in chosen.items() if value is not None})
    console = _console()
    try:
        result = benchmark.run(settings, lambda step: console.print(step, style="dim", highlight=False))
    except benchmark.BenchmarkError as error:
        raise argparse.ArgumentError(None, str(error)) from error
    except benchmark.WrongResultError as error:
        raise CommandError(str(error)) from error
    report.print_tables(result, console)
    for path in report.write(result, args.output):
        console.print(f"written: {path.resolve()}", highlight=False, soft_wrap=True)
    return 0


def _tune(args: argparse.Namespace) -> int:
    tune = _load("bench.tune", "bench")
    chosen = {
        "batches": args.batch and tuple(args.batch),
        "shapes": args.shape and tuple(args.shape),
        "dtypes": args.dtype and tuple(getattr(torch, name) for name in args.dtype),
        "layouts": args.layout and tuple(args.layout),
        "seconds": args.seconds,
        "device": args.device and str(args.device),
    }
    settings = tune.Settings(**{name: value for name, value in chosen.items() if value is not None})
    output, console = (args.output or tune.default_output()).resolve(), _console()
    with console.status("") as status:

        def say(text: str, lasting: bool) -> None:
            if lasting:
                console.print(text, highlight=False)
            else:
                status.update(text)

        try:
            found = tune.tune(settings, output, say)
        except (tune.BenchmarkError, tune.table.TableError) as error:
            raise CommandError(str(error)) from error
    tune.print_results(found, console)
    console.print(f"written: {output}; to use it: export GALA_TRITON_TABLE={output}", highlight=False, soft_wrap=True)
    return 0


def _action(module: str, args: argparse.Namespace) -> int:
    """The function ``args.does`` of a module of commands; the exit code is what it returns, 0 for None."""
    commands = _load(module, "train")
    try:
        return getattr(commands, args.does)(args, _console()) or 0
    except commands.FAILURES as error:
        raise CommandError(str(error)) from error
    except ModuleNotFoundError as error:
        raise CommandError(f"{error.name} is not installed; pip install {error.name}") from error


_clickme, _inspection, _training = (
    partial(_action, f"cli.{name}_commands") for name in ("clickme", "inspection", "training")
)


def _index(args: argparse.Namespace) -> int:
    shards = _load("data.shards", "train")
    try:
        path = shards.write_index(args.folder)
    except (OSError, ValueError) as error:
        raise argparse.ArgumentError(None, f"argument FOLDER: {error}") from error
    print(f"written: {path.resolve()}")
    return 0


def _demo(args: argparse.Namespace) -> int:
    demo = _load("cli.demo", "train")
    try:
        demo.run(args.output, _console())
    except (demo.DemoError, *demo.FAILURES, demo.bench.WrongResultError) as error:
        raise CommandError(str(error)) from error
    return 0


def _load(module: str, extra: str) -> ModuleType:
    """A module of the package that needs what ``pip install 'gala-cuda[extra]'`` adds."""
    try:
        return importlib.import_module(f"gala_cuda.{module}")
    except ModuleNotFoundError as error:
        raise CommandError(f"{error.name} is not installed; pip install 'gala-cuda[{extra}]'") from error


def _console():
    from ..console import console

    return console()


def _parser() -> Parser:
    parser = Parser("gala-cuda", description="Global-and-local attention for PyTorch.")
    parser.add_argument("--version", action="version", version=f"gala-cuda {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    def command(name, function, text) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text)
        sub.set_defaults(command=function, parser=sub)
        return sub

    sub = command("doctor", _doctor, "Versions, build, devices, and which backend runs where.")
    sub.add_argument("--json", action="store_true", help="as JSON")
    _add_bench_arguments(command("bench", _bench, "Time GALA's backends against eager PyTorch and torch.compile."))
    _add_tune_arguments(command("tune", _tune, "Measure on a GPU which tiles the Triton kernels are fastest with."))
    training.add_train_arguments(command("train", _training, "Train a network on digits or on pictures of your own."))
    training.add_eval_arguments(command("eval", _training, "Test weights: accuracy, confusion, image/s."))
    text = "Write weights as ONNX and torch.export files, and compare those with PyTorch."
    training.add_export_arguments(command("export", _training, text))
    sub = command("inspect", _inspection, "Show what a network attends to: PNG sheets, an HTML page.")
    sub.set_defaults(does="inspect")
    inspection.add_arguments(sub)
    clickme.add_arguments(command("clickme", _clickme, "Check ClickMe's files, or convert them to another format."))
    sub = command("index", _index, "Write the index of tar shards: a quicker start, and what training over HTTP needs.")
    sub.add_argument("folder", type=Path, metavar="FOLDER", help="with train*.tar and val*.tar, or train/*.tar and "
        "val/*.tar; index.json is written there")  # fmt: skip
    sub = command("demo", _demo, "Doctor, a training on real digits, attention maps and a short benchmark, in minutes.")
    sub.add_argument("--output", type=Path, default=Path("runs/demo"), help="folder to write to (default: %(default)s)")
    return parser


def _add_bench_arguments(sub: argparse.ArgumentParser) -> None:
    add = sub.add_argument
    dtypes = [str(dtype).removeprefix("torch.") for dtype in DTYPES]
    add("--batch", type=count, nargs="+", metavar="N", help="batch sizes (default: 1 8 32)")
    add("--shape", type=shape, nargs="+", metavar="CxHxW", help="feature maps (default: those of ResNet-50's stages)")
    add("--dtype", choices=dtypes, help="of x (default: float32)")
    add("--layout", choices=("channels_last", "nchw"), help="of x in memory (default: channels_last)")
    add("--reduction", type=count, metavar="R", help="channels over hidden units (default: 4)")
    add("--contestants", nargs="+", metavar="NAME", help="eager, compile, max-autotune, a backend's name, se, cbam "
        "(default: eager, compile and every fused backend that runs)")  # fmt: skip
    add("--seconds", type=positive, metavar="S", help="of timing for each shape and pass (default: 10)")
    add("--threads", type=count, metavar="T", help="of the CPU (default: torch's choice)")
    add("--device", type=device, help="cpu, cuda, cuda:1 (default: cpu)")
    add(
        "--output",
        type=Path,
        default=Path("runs/bench"),
        help="folder of bench.json and bench.png (default: %(default)s)",
    )


def _add_tune_arguments(sub: argparse.ArgumentParser) -> None:
    add = sub.add_argument
    dtypes = [str(dtype).removeprefix("torch.") for dtype in triton.DTYPES]
    add("--batch", type=count, nargs="+", metavar="N", help="batch sizes (default: 32 256)")
    add("--shape", type=shape, nargs="+", metavar="CxHxW", help="feature maps (default: those of ResNet-50's stages)")
    add("--dtype", choices=dtypes, nargs="+", help="of x (default: bfloat16 float32)")
    add("--layout", choices=("channels_last", "nchw"), nargs="+", help="of x in memory (default: channels_last)")
    add("--seconds", type=positive, metavar="S", help="of timing for each comparison (default: 0.5)")
    add("--device", type=device, help="cuda, cuda:1 (default: cuda)")
    add("--output", type=Path, metavar="FILE", help="table to write (default: gala_cuda/triton-table.json in "
        "$XDG_CACHE_HOME or ~/.cache)")  # fmt: skip
