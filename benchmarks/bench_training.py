"""Measures the training throughput of whole networks with `gala-cuda train` on made-up images.

`python -m benchmarks.bench_training` trains each network in a process of its own for a few epochs. For the last epoch
it prints images per second, the ratio to the plain ResNet, peak memory and the share of the time spent waiting for
data. The defaults are small on a CPU; on a GPU they are the paper's network with batches of 256 in bfloat16, with and
without torch.compile.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.table import Table

from .arguments import GPU, training_parser

NETWORKS = {  # title: model, GALA_BACKEND
    "resnet{depth}": ("resnet{depth}", ""),
    "se_resnet{depth}": ("se_resnet{depth}", ""),
    "GALA, eager": ("gala_resnet{depth}", "reference"),
    "GALA, fused": ("gala_resnet{depth}", ""),
}


def train(model: str, backend: str, options: argparse.Namespace, compiled: bool) -> dict:
    """Trains a network and gives the last epoch of its log."""
    with tempfile.TemporaryDirectory() as folder:
        command = [
            sys.executable, "-m", "gala_cuda", "train", "--quiet", "--output", folder, "--model", model,
            "--data", f"builtin:synthetic:{options.images}", "--epochs", str(options.epochs),
            "--width", str(options.width), "--image-size", str(options.image_size),
            "--batch-size", str(options.batch_size), "--precision", options.precision,
            "--device", options.device, "--workers", str(options.workers),
        ]  # fmt: skip
        command += ["--compile"] if compiled else []
        done = subprocess.run(
            command, env={**os.environ, "GALA_BACKEND": backend}, capture_output=True, text=True, check=False
        )
        if done.returncode:
            sys.exit(f"bench_training: {model}: {done.stderr}")
        return json.loads((Path(folder) / "log.jsonl").read_text().splitlines()[-1])


def parse() -> argparse.Namespace:
    parser = training_parser(__doc__, image_size=224 if GPU else 96, batch_size=16)
    add = parser.add_argument
    add("--depth", type=int, default=50, help="layers of the networks")
    add("--width", type=int, default=64 if GPU else 16, help="channels of the first stage")
    add("--images", type=int, default=10240 if GPU else 320, help="of an epoch")
    add("--epochs", type=int, default=2, help="the first is the warm-up")
    add("--workers", type=int, default=8 if GPU else 0)
    add("--compile", nargs="+", choices=("no", "yes"), default=["no", "yes"] if GPU else ["no"])
    return parser.parse_args()


def main() -> None:
    options = parse()
    table = Table("network", "compiled", "image/s", "ratio", "peak memory, MiB", "waiting for data")
    for compiled in options.compile:
        plain = None
        for title, (model, backend) in NETWORKS.items():
            epoch = train(model.format(depth=options.depth), backend, options, compiled == "yes")
            rate = epoch["images_per_second"]
            plain = plain or rate
            table.add_row(
                title.format(depth=options.depth), compiled, f"{rate:.1f}", f"{rate / plain:.2f}",
                f"{epoch['peak_memory'] / 2**20:.0f}", f"{epoch['data_wait']:.1%}",
            )  # fmt: skip
    Console().print(table)


if __name__ == "__main__":
    main()
