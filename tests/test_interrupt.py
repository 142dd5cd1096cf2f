"""Ctrl-C and SIGTERM: a line, an exit code, no traceback; and the command that continues."""

import os
import shlex
import signal
import subprocess
import sys

import pytest

from gala_cuda.cli.interrupt import command_line

pytestmark = pytest.mark.slow

TRAIN = ["train", "--image-size", "8", "--width", "8", "--batch-size", "128", "--epochs", "500"]


def stopped(arguments, awaited, number):
    """(exit code, standard error) of the command, to whose group the signal is sent once it prints `awaited`."""
    process = subprocess.Popen(
        [sys.executable, "-m", "gala_cuda", *arguments],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        env=os.environ | {"PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    for line in process.stdout:
        if awaited in line:
            break
    os.killpg(process.pid, number)
    _, err = process.communicate()
    return process.returncode, err


@pytest.mark.parametrize(
    ("number", "code", "told"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "ended by SIGTERM")]
)
def test_a_training_names_its_last_checkpoint_and_the_command(tmp_path, number, code, told):
    command = [*TRAIN, "--checkpoint-every", "1", "--output", str(tmp_path / "run")]
    found, err = stopped(command, "epoch   1/500", number)
    assert found == code
    last = max((tmp_path / "run" / "checkpoints").glob("step-*"))
    continued = shlex.join([sys.executable, "-m", "gala_cuda", *command, "--resume"])
    assert err == f"gala-cuda: {told}; the last checkpoint is {last}; to continue: {continued}\n"
    assert not list(tmp_path.rglob("*.draft"))


def test_another_command_tells_that_it_was_interrupted(tmp_path):
    arguments = ["bench", "--shape", "64x14x14", "--contestants", "eager", "--seconds", "9", "--output", str(tmp_path)]
    assert stopped(arguments, "timing", signal.SIGINT) == (130, "gala-cuda: interrupted\n")


@pytest.mark.parametrize(
    ("machines", "meet"), [("1", ""), ("2", "--nnodes 2 --rdzv-backend c10d --rdzv-endpoint HOST:PORT ")]
)
def test_what_torchrun_started_continues_with_torchrun(monkeypatch, machines, meet):
    for name, value in {"WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "4", "GROUP_WORLD_SIZE": machines}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "argv", ["gala-cuda", "train", "--quiet"])
    expected = f"torchrun {meet}--nproc-per-node 4 -m gala_cuda train --quiet --resume"
    assert command_line("--resume") == expected
