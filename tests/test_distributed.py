"""Two processes against one: same losses, weights and test results; checkpoints that change their number."""

import json
import os
import shutil
import subprocess
import sys

import pytest
import torch
import two_processes
from safetensors.torch import load_file
from two_processes import RECIPES, train

from gala_cuda.training.recipe import Recipe, RecipeError

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]
CLOSE = {"rtol": 1e-4, "atol": 1e-5}  # float32; sums over images in another order, 42 steps long
MEASURED = ("loss", "train_accuracy", "train_top5", "test_loss", "test_accuracy", "test_top5", "lr")


def torchrun(output, *arguments, options=()):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *options]
    done = subprocess.run(
        [*command, two_processes.__file__, output, *arguments],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
        env=os.environ | {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    return output


@pytest.fixture(scope="module")
def by_two(tmp_path_factory):
    """The folder of what two processes trained."""
    return torchrun(tmp_path_factory.mktemp("two"))


def logged(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("name", RECIPES)
def test_two_processes_equal_one(by_two, tmp_path, name):
    log = train(name, tmp_path)
    for mine, theirs in zip(logged(tmp_path / name), logged(by_two / name), strict=True):
        for measured in MEASURED:
            assert theirs[measured] == pytest.approx(mine[measured], rel=1e-4), measured
    assert log[-1].test_accuracy > 0.7
    expected = load_file(tmp_path / name / "last.safetensors")
    found = load_file(by_two / name / "last.safetensors")
    assert found.keys() == expected.keys()
    for key, tensor in expected.items():
        torch.testing.assert_close(found[key], tensor, **CLOSE)


@pytest.mark.parametrize("name", RECIPES)
def test_one_process_goes_on_where_two_stood(by_two, tmp_path, name):
    shutil.copytree(by_two / name, tmp_path / name)
    for later in ("step-00000021", "step-00000030", "step-00000042"):
        shutil.rmtree(tmp_path / name / "checkpoints" / later)
    train(name, tmp_path, resume=True)
    for mine, theirs in zip(logged(tmp_path / name), logged(by_two / name), strict=True):
        assert mine["loss"] == pytest.approx(theirs["loss"], rel=1e-4)
    expected = load_file(by_two / name / "last.safetensors")
    for key, tensor in load_file(tmp_path / name / "last.safetensors").items():
        torch.testing.assert_close(tensor, expected[key], **CLOSE)


def test_torchrun_restarts_from_the_last_checkpoint(by_two, tmp_path):
    torchrun(tmp_path, "dies", options=("--max-restarts", "1"))
    for file in ("last.safetensors", "best.safetensors"):
        assert (tmp_path / "replicas" / file).read_bytes() == (by_two / "replicas" / file).read_bytes()


def test_a_batch_that_cannot_be_shared_is_refused():
    assert Recipe(batch_size=12, accumulate=3).micro_batch_size() == 4
    with pytest.raises(RecipeError, match="batch_size is 10; expected a multiple of 1 processes times accumulate 3"):
        Recipe(batch_size=10, accumulate=3).micro_batch_size()
