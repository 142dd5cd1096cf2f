"""Counts the package's functions between the command and the compiled kernel in a step of training."""

import sys
from pathlib import Path

import numpy as np
import pytest

import gala_cuda
from gala_cuda.backends import compiled
from gala_cuda.cli.main import main

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.usefixtures("cpu_backend")]
MAX_HOPS = 18
PACKAGE = Path(gala_cuda.__file__).parent
TINY = ["--image-size", "8", "--width", "4", "--batch-size", "256", "--epochs", "1", "--workers", "0", "--quiet"]


def frames():
    """File and function of each frame of the package that led here, from the first one."""
    found, frame = [], sys._getframe(1)
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        if path.is_relative_to(PACKAGE):
            found.append(f"{path.relative_to(PACKAGE)}: {frame.f_code.co_name}")
        frame = frame.f_back
    return found[::-1]


def chain(monkeypatch, command):
    """The frames of the first call of the native forward operator below a step."""
    forward, chains = compiled._forward, []

    def watched(*arguments):
        chains.append(frames())
        return forward(*arguments)

    monkeypatch.setattr(compiled, "_forward", watched)
    assert main(command) == 0
    return next(found for found in chains if "training/step.py: __call__" in found)


def expect_few(found):
    listed = "\n".join(f"{number:2} {frame}" for number, frame in enumerate(found, 1))
    print(listed)
    assert found[0] == "cli/main.py: main"
    assert len(found) <= MAX_HOPS, listed


def test_a_step(monkeypatch, tmp_path):
    expect_few(chain(monkeypatch, ["train", *TINY, "--output", str(tmp_path)]))


def test_a_step_with_human_maps(monkeypatch, tmp_path):
    for split in ("train", "val"):
        (tmp_path / "maps" / split).mkdir(parents=True)
        for label in (0, 1):
            pixels, heatmap = np.full((12, 12, 3), 99 * label, np.uint8), np.eye(12, dtype=np.float32)
            np.savez(tmp_path / "maps" / split / f"{label}.npz", image=pixels, heatmap=heatmap, label=np.int64(label))
    command = ["train", "--clickme", str(tmp_path / "maps"), *TINY, "--output", str(tmp_path / "run")]
    expect_few(chain(monkeypatch, command))
