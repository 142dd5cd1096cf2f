"""Training throughput of whole networks, by ``gala-cuda train`` on made-up images.

``python benchmarks/bench_training.py`` trains each network in a process of its own for a few epochs and prints image/s,
the ratio to the plain ResNet, peak memory and the share of the time spent waiting for data, of the last epoch. The
defaults are small on a CPU, and on a GPU the paper's network with batches of 256 in bfloat16, with and without
torch.compile.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

NETWORKS = {  # title: model, GALA_BACKEND
    "resnet{depth}": ("resnet{depth}", ""),
    "se_resnet{depth}": ("se_resnet{depth}", ""),
    "GALA, eager": ("gala_resnet{depth}", "reference"),
    "GALA, fused": ("gala_resnet{depth}", ""),
}


def train(model: str, backend: str, options: argparse.Namespace, compiled: bool) -> dict:
    """The log's last epoch."""
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
    gpu = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    add = parser.add_argument
    add("--device", default="cuda" if gpu else "cpu")
    add("--depth", type=int, default=50, help="layers of the networks")
    add("--width", type=int, default=64 if gpu else 16, help="channels of the first stage")
    add("--image-size", type=int, default=224 if gpu else 96, help="pixels")
    add("--batch-size", type=int, default=256 if gpu else 16)
    add("--images", type=int, default=10240 if gpu else 320, help="of an epoch")
    add("--epochs", type=int, default=2, help="the first is the warm-up")
    add("--precision", default="bfloat16" if gpu else "float32")
    add("--workers", type=int, default=8 if gpu else 0)
    add("--compile", nargs="+", choices=("no", "yes"), default=["no", "yes"] if gpu else ["no"])
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
