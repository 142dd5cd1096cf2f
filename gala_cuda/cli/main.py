"""The command `gala-cuda`: parses its arguments, runs one of its commands, and tells of errors."""

import argparse
import io
import logging
import os
import sys
from collections.abc import Sequence
from types import ModuleType

from ..errors import GalaError
from ..text import printable
from ..version import __version__
from . import bench, clickme, demo, doctor, evaluate, export, index, inspect, predict, train, tune
from .arguments import Parser
from .interrupt import Stop, stoppable

# Each has HELP, a sentence, add_arguments(parser) and run(args), which returns the exit code.
COMMANDS: dict[str, ModuleType] = {
    "doctor": doctor, "bench": bench, "tune": tune, "train": train, "eval": evaluate, "predict": predict,
    "export": export, "inspect": inspect, "clickme": clickme, "index": index, "demo": demo,
}  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; the exit code.

    It is 0, or 1 for a command that failed, 2 for bad arguments, 130 after Ctrl-C, 143 after SIGTERM.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # whatever names of files hold; standard error has it
    logging.getLogger("torch.utils.cpp_extension").addFilter(_is_news)
    args = argparse.Namespace(advice=None)
    with stoppable() as stop:
        try:
            build_parser().parse_args(argv, args)
            return args.run(args)
        except (Exception, KeyboardInterrupt) as error:
            # After a signal any error counts as its consequence: it also ends compilers and other processes.
            if stop.number is None:
                return _refused(error, args)
    return _stopped(stop, args)


def build_parser() -> Parser:
    parser = Parser("gala-cuda", description="Global-and-local attention for PyTorch.")
    parser.add_argument("--version", action="version", version=f"gala-cuda {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for name, command in COMMANDS.items():
        sub = commands.add_parser(name, help=command.HELP, description=command.HELP)
        sub.set_defaults(parser=sub, run=command.run)
        command.add_arguments(sub)
    return parser


def _is_news(record: logging.LogRecord) -> bool:
    """Not torch.compile's finding that there is a CUDA toolkit and no GPU, which doctor tells where it matters."""
    return not record.getMessage().startswith("No CUDA runtime is found")


def _refused(error: BaseException, args: argparse.Namespace) -> int:
    """Prints the message of an error that is meant for the user; raises any other."""
    if isinstance(error, argparse.ArgumentError):
        return args.parser.error(printable(str(error)))
    if isinstance(error, ModuleNotFoundError) and error.name and not error.name.startswith(__package__.split(".")[0]):
        error = GalaError(f"{error.name} is not installed; pip install {error.name}")
    if not isinstance(error, GalaError):
        raise error
    print(f"gala-cuda: {printable(str(error))}", file=sys.stderr)
    return 1


def _stopped(stop: Stop, args: argparse.Namespace) -> int:
    """Prints that a signal ended the command, in one of several processes; the exit code."""
    if int(os.environ.get("RANK", 0)) == 0:
        advice = "" if args.advice is None else args.advice(args)
        print(f"gala-cuda: {stop}{printable(advice)}", file=sys.stderr)
    return stop.code
