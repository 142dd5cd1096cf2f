"""`gala-cuda doctor`: what is installed, what was built, and which backend runs where."""

import argparse
import json

from .. import diagnostics

HELP = "Versions, build, devices, and which backend runs where."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="as JSON")


def run(args: argparse.Namespace) -> int:
    report = diagnostics.doctor()
    print(json.dumps(report.as_dict(), indent=1) if args.json else report)
    return 0
