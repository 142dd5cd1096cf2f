"""`gala-cuda clickme serve`: plays the game in browsers, to collect human maps of one's own images."""

import argparse
from pathlib import Path

from .arguments import count
from .extras import extra

HELP = "Play the game in browsers, to collect human maps of your own images."
DEMO = Path("runs/clickme-demo")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "study",
        type=Path,
        nargs="?",
        metavar="STUDY",
        help="the study's folder: images/[SPLIT/]CLASS/*, consent.txt, "
        f"and, if you like, practice, catch and study.yaml; with --demo, where to put the trial (default: {DEMO})",
    )
    add("--demo", action="store_true", help="play on photographs that ship with scikit-image and scikit-learn")
    add("--host", default="127.0.0.1", help="address to listen at; 0.0.0.0 is all of this machine's (default: "
        "%(default)s)")  # fmt: skip
    add("--port", type=port, default=8000, metavar="N", help="0: any free one (default: %(default)s)")
    add("--public-url", metavar="URL", help="address that players open, where a proxy passes their requests on "
        "(default: the server's own)")  # fmt: skip
    add("--database", metavar="URL", help="where rounds are kept: sqlite:///FILE or, for several servers, "
        "postgresql+psycopg://USER@HOST/NAME (default: STUDY/game.sqlite)")  # fmt: skip
    add("--partner", metavar="WEIGHTS", help="the network that guesses: weights of this package, torchvision or timm, "
        "or the folder of a training (default: EfficientNet-Lite0, which knows ImageNet's classes)")  # fmt: skip
    add(
        "--model", metavar="NAME", help="the network, where its weights do not say it: torchvision/NAME, timm/NAME, ..."
    )
    add("--top", type=count, metavar="K", help="of the likeliest classes one has to be the true one (default: 5 of 50 "
        "classes and more, else 1)")  # fmt: skip
    add("--view", choices=("crop", "whole"), default="crop", help="show the partner pictures cut as the network's own "
        "are, or whole (default: %(default)s)")  # fmt: skip


def port(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 6 and int(text) < 65_536):
        raise argparse.ArgumentTypeError(f"{text!r} was given; expected a whole number from 0 to 65535")
    return int(text)


def run(args: argparse.Namespace) -> int:
    with extra("game"):
        from ..console import PlainConsole
        from ..game.access import origin_of
        from ..game.launch import Options, launch
        from ..game.listen import PortError, bind
        from ..game.study import StudyError
        from ..game.view import ViewOptions
    if args.study is None and not args.demo:
        raise argparse.ArgumentError(None, "argument STUDY: none was given; expected a study's folder, or --demo")
    if args.model is not None and args.partner is None:
        raise argparse.ArgumentError(None, "argument --model: there is no --partner; expected its weights")
    try:
        public = None if args.public_url is None else origin_of(args.public_url)
    except ValueError as error:
        raise argparse.ArgumentError(None, f"argument --public-url: {error}") from error
    try:
        bound = bind(args.host, args.port)
    except PortError as error:
        raise argparse.ArgumentError(None, f"argument --port: {error}") from error
    view = ViewOptions(args.partner, args.model, args.view, args.top)
    try:
        launch(Options(args.study or DEMO, args.demo, args.database, view, args.top, public), bound, PlainConsole())
    except StudyError as error:
        raise argparse.ArgumentError(None, f"argument STUDY: {error}") from error
    finally:
        bound.close()
    return 0
