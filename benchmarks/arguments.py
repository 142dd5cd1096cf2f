"""The flags that timings of training share, with defaults for the machine at hand: a GPU, or else a CPU."""

import argparse

import torch

GPU = torch.cuda.is_available()


def training_parser(description: str | None, image_size: int, batch_size: int) -> argparse.ArgumentParser:
    """A parser with --device, --image-size, --batch-size (on a GPU 256) and --precision."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    add = parser.add_argument
    add("--device", default="cuda" if GPU else "cpu")
    add("--image-size", type=int, default=image_size, help="pixels")
    add("--batch-size", type=int, default=256 if GPU else batch_size)
    add("--precision", default="bfloat16" if GPU else "float32")
    return parser
