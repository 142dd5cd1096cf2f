"""Checkpoints: exact continuation after a kill, refusals of what is damaged, disks that are full or read-only."""

import contextlib
import json
import os
import random
import resource
import signal
import subprocess
import sys

import pytest
import torch

from gala_cuda.cli.main import main
from gala_cuda.training.checkpoint import CheckpointError, Checkpoints, as_bytes, write_atomically

pytestmark = pytest.mark.usefixtures("one_thread")
TINY = ["train", "--image-size", "8", "--width", "4", "--batch-size", "128", "--epochs", "2", "--checkpoint-every", "3"]
STEPS = 20
EVERYTHING = ["--ema", "0.9", "--mixup", "0.2", "--cutmix", "1", "--accumulate", "2", "--clip", "1"]
KILLED = """
import os, signal, sys, torch
from torch.optim.optimizer import register_optimizer_step_post_hook
from gala_cuda.cli.main import main

steps = 0

def kill(*_):
    global steps
    steps += 1
    if steps == int(sys.argv[1]):
        os.kill(os.getpid(), signal.SIGKILL)

register_optimizer_step_post_hook(kill)
torch.set_num_threads(1)
main(sys.argv[2:])
"""


@pytest.fixture
def checkpoints(tmp_path):
    """Three of them, of steps 1, 2 and 3."""
    made = Checkpoints(tmp_path / "checkpoints", keep=3)
    for step in (1, 2, 3):
        made.save(step, as_bytes({"w": torch.full((100,), float(step))}), {"step": step}, "epochs: 1\n")
    return made


def losses(folder):
    return [json.loads(line)["loss"] for line in (folder / "log.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_killed_and_resumed_equals_uninterrupted(tmp_path):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert main([*TINY, *EVERYTHING, "--quiet", "--output", str(whole)]) == 0
    step = random.randint(1, STEPS - 1)
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, str(step), *TINY, *EVERYTHING, "--output", broken], check=False
    )
    assert killed.returncode == -signal.SIGKILL
    assert main([*TINY, *EVERYTHING, "--quiet", "--output", str(broken), "--resume"]) == 0
    for name in ("last.safetensors", "best.safetensors"):
        assert (broken / name).read_bytes() == (whole / name).read_bytes(), f"{name}, killed after step {step}"
    assert losses(broken) == losses(whole), f"killed after step {step}"


@pytest.mark.slow
def test_resume_refuses_another_recipe_and_a_new_start_refuses_a_training(tmp_path, capsys):
    base = [*TINY, "--epochs", "1", "--output", str(tmp_path), "--quiet"]
    assert main(base) == 0
    for extra, message in (
        (["--resume", "--lr", "0.5"], "--lr: lr is not that of the training in"),
        ([], f"argument --output: {tmp_path} holds a training"),
    ):
        with pytest.raises(SystemExit):
            main([*base, *extra])
        assert message in capsys.readouterr().err
    assert main(["train", "--output", str(tmp_path), "--resume", "--workers", "0"]) == 0
    assert "resumed at step 10" in capsys.readouterr().out


def test_the_newest_are_kept_and_hold_what_was_saved(checkpoints):
    checkpoints.keep = 2
    checkpoints.save(4, as_bytes({"w": torch.arange(3.0)}), {"rng": torch.get_rng_state(), "log": [{"a": None}]}, "x")
    assert [path.name for path in checkpoints.paths()] == ["step-00000003", "step-00000004"]
    found, refused = checkpoints.load()
    assert (found.step, refused, found.state["log"]) == (4, [], [{"a": None}])
    assert torch.equal(found.weights["w"], torch.arange(3.0))


def cut(path):
    file = path / "weights.safetensors"
    file.write_bytes(file.read_bytes()[:-7])


def flip(path):
    content = bytearray((path / "state.pt").read_bytes())
    content[len(content) // 2] ^= 1
    (path / "state.pt").write_bytes(content)


def lose(path):
    (path / "state.pt").unlink()


def foreign(path):
    (path / "checkpoint.json").write_text('{"format": "of another program", "sha256": {}}')


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        pytest.param(cut, "weights.safetensors is truncated or altered", id="truncated"),
        pytest.param(flip, "state.pt is truncated or altered", id="one-bit"),
        pytest.param(lose, "state.pt: No such file", id="missing"),
        pytest.param(foreign, "does not say 'gala_cuda checkpoint 2'", id="foreign"),
    ],
)
def test_a_damaged_checkpoint_is_refused_by_name_and_the_previous_one_used(checkpoints, damage, reason):
    newest = checkpoints.paths()[-1]
    damage(newest)
    found, (refused,) = checkpoints.load()
    assert found.step == 2
    assert refused.startswith(f"{newest} is refused: ")
    assert reason in refused
    for path in checkpoints.paths()[:-1]:
        damage(path)
    with pytest.raises(CheckpointError, match="holds no usable checkpoint"):
        checkpoints.load()


@contextlib.contextmanager
def full_disk():
    """Inside, files cannot grow beyond 1 kB: writes stop in the middle, as on a full disk.

    That holds for the test runner's own output too, so nothing but the writing belongs inside.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_leaves_earlier_checkpoints_intact(checkpoints, tmp_path):
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    last = checkpoints.paths()[-1]
    problem = rf"cannot write the checkpoint .*step-00000004: .*; the last one is {last}"
    with pytest.raises(CheckpointError, match=problem), full_disk():
        checkpoints.save(4, as_bytes({"w": torch.zeros(1000)}), {}, "")
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    weights = tmp_path / "last.safetensors"
    write_atomically(weights, b"small")
    with pytest.raises(CheckpointError, match=rf"cannot write {weights}: File too large"), full_disk():
        write_atomically(weights, bytes(2000))
    assert weights.read_bytes() == b"small"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder_is_named(checkpoints):
    checkpoints.folder.chmod(0o500)
    with pytest.raises(CheckpointError, match="Permission denied; the last one is"):
        checkpoints.save(4, b"", {}, "")
    checkpoints.folder.chmod(0o700)


def test_an_output_that_cannot_be_a_folder_is_named(tmp_path, capsys):
    (tmp_path / "file").touch()
    assert main([*TINY, "--output", str(tmp_path / "file" / "run")]) == 1
    assert f"cannot write to {tmp_path}/file/run: Not a directory" in capsys.readouterr().err
