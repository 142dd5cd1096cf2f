"""Prints a backend's worst errors against float64 over random problems: `python -m tools.accuracy --backend cpu`.

For each dtype: the worst error of every result over all cases and its share of the tolerance (`gala_cuda.testing`
says what both mean). Exits with 1 where a result is beyond its tolerance.
"""

import argparse
import sys
from collections import defaultdict

import torch

from gala_cuda import backends
from gala_cuda.diagnostics import dtype_name
from gala_cuda.testing import draw, errors, operator, random_cases, results, tolerance


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--backend", choices=backends.NAMES, default="cpu")
    options = parser.parse_args()
    reason = backends.why_not(options.backend, torch.empty(1, 1, 1, 1))
    if reason:
        parser.error(f"backend {options.backend!r} cannot run: {reason}")

    worst: dict[tuple[str, str], tuple[float, float]] = defaultdict(lambda: (0.0, 0.0))
    beyond = 0
    for i, case in enumerate(random_cases(options.cases, options.seed)):
        problem = draw(case, options.seed + i)
        got = results(operator(options.backend), problem)
        label = dtype_name(case.dtype) + ("" if case.parameters is None else ", float32 weights")
        for name, error in errors(got, problem, case).items():
            limit = tolerance(got[name].dtype, case.dtype, case.terms)
            largest, share = worst[name, label]
            worst[name, label] = max(largest, error), max(share, error / limit)
            if not error <= limit:
                beyond += 1
                print(f"beyond tolerance: {name} {error:.2e} > {limit:.2e} in {case}")
    print(f"{options.cases} cases, seed {options.seed}, backend {options.backend}")
    _print(worst)
    print(f"{beyond} results beyond tolerance" if beyond else "all results within tolerance")
    return 1 if beyond else 0


def _print(worst: dict[tuple[str, str], tuple[float, float]]) -> None:
    """One line for each result, one column for each dtype."""
    labels = sorted({label for _, label in worst})
    print("worst error (share of its tolerance)")
    print(" " * 18 + "".join(f"{label:>26}" for label in labels))
    for name in dict.fromkeys(name for name, _ in worst):
        cells = ("{:.1e} ({:.2f})".format(*worst[name, label]) for label in labels)
        print(f"{name:18}" + "".join(f"{cell:>26}" for cell in cells))


if __name__ == "__main__":
    sys.exit(main())
