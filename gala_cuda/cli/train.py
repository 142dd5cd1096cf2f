"""`gala-cuda train`: trains a network by a recipe."""

import argparse
from importlib import import_module
from pathlib import Path

from ..training.recipe_file import PRESETS, resolve
from .arguments import count, device, device_of
from .extras import extra
from .flags_from_recipe import add_recipe_flags, blaming_arguments, given_flags
from .interrupt import command_line

LOGS = ("csv", "tensorboard", "wandb")
HELP = "Train a network on digits or on pictures of your own."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(advice=how_to_resume)
    add = parser.add_argument
    add("--recipe", metavar="NAME", help=f"{', '.join(PRESETS)}, or a YAML file; flags below replace its values")
    add("--output", type=Path, default=Path("runs/train"), help="folder to write to (default: %(default)s)")
    add("--resume", action="store_true", help="continue where the output folder stands, or start if it is empty")
    add("--device", type=device, help="cpu, cuda, cuda:1 (default: a GPU if there is one)")
    add("--checkpoint-every", type=count, metavar="STEPS", help="steps between checkpoints, beside those after epochs")
    add("--keep", type=count, default=2, metavar="N", help="newest checkpoints to keep (default: %(default)s)")
    add("--log", nargs="+", choices=LOGS, default=[], help="also log to log.csv, for TensorBoard, to Weights & Biases")
    add("--quiet", action="store_true", help="print nothing but errors")
    add_recipe_flags(parser.add_argument_group("recipe"))


def run(args: argparse.Namespace) -> int:
    with extra("train"):
        from ..console import PlainConsole
        from ..training import distributed
        from ..training.checkpoint import Checkpoints
        from ..training.loop import fit
        from ..training.run import Run
        from ..training.start import start
    for name in args.log:
        with extra(name):
            import_module(name)  # before anything is written; csv is Python's own
    device = device_of(args)
    with distributed.process_group(device) as world:
        resume, written = args.resume or distributed.was_restarted(), args.output / "recipe.yaml"
        source = str(written) if resume and args.recipe is None and written.exists() else args.recipe
        console = PlainConsole(quiet=args.quiet or not world.is_main)
        with blaming_arguments(args, source):
            recipe = resolve(source, given_flags(args))
            if not resume and Checkpoints(args.output / "checkpoints").paths():
                raise argparse.ArgumentError(
                    None, f"argument --output: {args.output} holds a training; expected another folder, or --resume"
                )
            model, network, data, recipe = start(recipe, device, console.print_line)
            fit(model, data, recipe, Run(
                args.output, device, console, resume, args.checkpoint_every, args.keep, args.log,
                network.metadata(),
            ))  # fmt: skip
        console.print_line(f"weights and log are in {args.output.resolve()}")
    return 0


def how_to_resume(args: argparse.Namespace) -> str:
    """After a training was stopped: where its last checkpoint is, and the command that continues."""
    with extra("train"):
        from ..training.checkpoint import Checkpoints
    kept = Checkpoints(args.output / "checkpoints").paths()
    if not kept:
        return "; there is no checkpoint yet: the same command starts anew"
    return f"; the last checkpoint is {kept[-1]}; to continue: {command_line('--resume')}"
