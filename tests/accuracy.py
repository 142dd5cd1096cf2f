"""Random problems against float64: ``python tests/accuracy.py --cases 1000 --seed 0 --backend cpu``.

Prints, for each dtype, the worst error of every result over all cases and its share of the tolerance
(``oracle.errors`` and ``oracle.tolerance`` say what both mean); exits with 1 where a result is beyond its tolerance.
"""

import argparse
import random
import sys
from collections import defaultdict

import torch
from oracle import LAYOUTS, Case, draw, errors, operator, results, tolerance

from gala_cuda import backends
from gala_cuda.backends.interface import SQUASHES

DTYPES = (
    (torch.float32, None),
    (torch.float64, None),
    (torch.bfloat16, None),
    (torch.bfloat16, torch.float32),
    (torch.float16, None),
    (torch.float16, torch.float32),
)


def random_case(rng: random.Random) -> Case:
    """Sizes on both sides of every vector, tile and word: C to 130, R to 70, odd planes; at most 40,000 elements."""
    dtype, parameters = rng.choice(DTYPES)
    while True:
        shape = rng.choice((1, 1, 2, 3, 5)), rng.randint(1, 130), rng.randint(1, 14), rng.randint(1, 14)
        reduced = rng.choice((1, 2, 7, 8, 16, 31, 32, 33, 64, rng.randint(1, 70)))
        pixels = shape[0] * shape[2] * shape[3]
        if pixels * max(shape[1], reduced) <= 40_000:
            break
    squash, layout = rng.choice(SQUASHES), rng.choice(LAYOUTS)
    bias, residual, with_map = (rng.random() < 0.5 for _ in range(3))
    return Case(shape, reduced, dtype, parameters, layout, squash, bias, residual, with_map)


def measure(cases: int, seed: int, backend: str):
    """(label, result, error, tolerance, case) of every result of every case."""
    rng = random.Random(seed)
    for i in range(cases):
        case = random_case(rng)
        problem = draw(case, seed + i)
        got = results(operator(backend), problem)
        label = str(case.dtype).removeprefix("torch.") + ("" if case.parameters is None else ", float32 weights")
        for name, error in errors(got, problem, case).items():
            yield label, name, error, tolerance(got[name].dtype, case.dtype, case.terms), case


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
    for label, name, error, limit, case in measure(options.cases, options.seed, options.backend):
        worst[name, label] = tuple(map(max, worst[name, label], (error, error / limit)))
        if not error <= limit:
            beyond += 1
            print(f"beyond tolerance: {name} {error:.2e} > {limit:.2e} in {case}")
    labels = sorted({label for _, label in worst})
    print(
        f"{options.cases} cases, seed {options.seed}, backend {options.backend}: worst error (share of its tolerance)"
    )
    print(" " * 18 + "".join(f"{label:>26}" for label in labels))
    for name in dict.fromkeys(name for name, _ in worst):
        cells = ("{:.1e} ({:.2f})".format(*worst[name, label]) for label in labels)
        print(f"{name:18}" + "".join(f"{cell:>26}" for cell in cells))
    print(f"{beyond} results beyond tolerance" if beyond else "all results within tolerance")
    return 1 if beyond else 0


if __name__ == "__main__":
    sys.exit(main())
