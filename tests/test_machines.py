"""A training on two machines: the same weights as two processes on one, and how it goes on where one was lost.

The machines are network namespaces with a cable between them, else two loopback addresses.
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
import warnings
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import two_machines

pytestmark = pytest.mark.slow
SECONDS = 300  # after which something hangs
TRAIN = ["train", "--epochs", "1", "--image-size", "8", "--width", "8", "--workers", "0", "--checkpoint-every", "10"]
ENVIRONMENT = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1", "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}


@dataclass(frozen=True)
class Machine:
    """Where a process runs: its address there, its network interface, and what its command begins with."""

    address: str
    interface: str = "lo"
    prefix: list[str] = field(default_factory=list)


@pytest.fixture(scope="module")
def machines():
    names = [f"gala-{os.getpid()}-{number}" for number in range(2)]
    try:
        found = _namespaces(names)
    except (OSError, subprocess.CalledProcessError) as error:
        reason = str(getattr(error, "stderr", None) or error).strip()
        warnings.warn(f"two loopback addresses for want of network namespaces: {reason}", stacklevel=1)
        found = [Machine("127.0.0.1"), Machine("127.0.0.2")]
    yield found
    if found[0].prefix:
        for name in names:
            _ip("netns", "delete", name)


def _namespaces(names):
    made = []
    try:
        for name in names:
            _ip("netns", "add", name)
            made.append(name)
            _ip("-n", name, "link", "set", "lo", "up")
        _ip("-n", names[0], "link", "add", "cable", "type", "veth", "peer", "name", "cable", "netns", names[1])
        for number, name in enumerate(names, 1):
            _ip("-n", name, "address", "add", f"10.77.0.{number}/24", "dev", "cable")
            _ip("-n", name, "link", "set", "cable", "up")
            _ip("netns", "exec", name, "true")
    except (OSError, subprocess.CalledProcessError):
        for name in made:
            _ip("netns", "delete", name)
        raise
    return [Machine(f"10.77.0.{n}", "cable", ["ip", "netns", "exec", name]) for n, name in enumerate(names, 1)]


def _ip(*arguments):
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True, timeout=SECONDS)


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def told(machine, output):
    """The file with what a machine's torchrun and its processes printed."""
    return output.with_name(f"{output.name}-{machine.address}.txt")


@contextmanager
def started(machine, options, output, arguments=(), **environment):
    """Has torchrun start a training on a machine. All of it ends here."""
    command = [*machine.prefix, sys.executable, "-m", "torch.distributed.run", *options, two_machines.__file__]
    with open(told(machine, output), "a") as file:
        process = subprocess.Popen(
            [*command, *TRAIN, "--output", output, *arguments],
            stdout=file, stderr=subprocess.STDOUT, start_new_session=True,
            env=os.environ | ENVIRONMENT | {"GLOO_SOCKET_IFNAME": machine.interface} | environment,
        )  # fmt: skip
    try:
        yield process
    finally:
        if process.poll() is None:
            below = children(process.pid)  # of sessions of their own
            process.kill()
            process.wait()
            for number in below:
                with suppress(ProcessLookupError):
                    os.kill(number, signal.SIGKILL)


def children(number):
    return [int(child) for child in Path(f"/proc/{number}/task/{number}/children").read_text().split()]


def of_two(machines, restarts=0):
    """torchrun's arguments on each machine."""
    meet = f"{machines[0].address}:{free_port()}"
    return [
        [
            "--nnodes", "2", "--nproc-per-node", "1", "--max-restarts", str(restarts), "--rdzv-id", "test",
            "--rdzv-backend", "c10d", "--rdzv-endpoint", meet, "--rdzv-conf", f"is_host={machine is machines[0]}",
            "--local-addr", machine.address,
        ]
        for machine in machines
    ]  # fmt: skip


def train(machines, outputs, restarts=0, arguments=(), lost=None):
    """Exit codes and what was told, by machine; `outputs` has the folder of each."""
    (one, two), lose = of_two(machines, restarts), {} if lost is None else {"LOST": lost}
    first, second = zip(machines, (one, two), outputs, strict=True)
    with started(*first, arguments, **lose) as a, started(*second, arguments, **lose) as b:
        if lost == "machine":
            assert b.wait(SECONDS) == -signal.SIGKILL
            with started(*second, arguments) as again:
                codes = [a.wait(SECONDS), again.wait(SECONDS)]
        else:
            codes = [a.wait(SECONDS), b.wait(SECONDS)]
    return codes, [told(*each).read_text() for each in zip(machines, outputs, strict=True)]


def weights(output):
    return (output / "last.safetensors").read_bytes()


@pytest.fixture(scope="module")
def on_one(tmp_path_factory):
    """The folder of what two processes of one machine trained."""
    output, machine = tmp_path_factory.mktemp("one") / "run", Machine("127.0.0.1")
    with started(machine, ["--standalone", "--nproc-per-node", "2"], output) as process:
        assert process.wait(SECONDS) == 0, told(machine, output).read_text()
    return output


def test_two_machines_equal_one(machines, on_one, tmp_path):
    codes, texts = train(machines, [tmp_path / "run"] * 2)
    assert codes == [0, 0], texts
    assert "resumed" not in texts[0]
    assert weights(tmp_path / "run") == weights(on_one)


def test_a_lost_worker_ends_it_and_resume_goes_on(machines, on_one, tmp_path):
    codes, texts = train(machines, [tmp_path / "run"] * 2, lost="worker")
    assert 0 not in codes
    assert "gala-cuda: process 0 of 2 lost another one, of which the output of its own torchrun tells more" in texts[0]
    assert "Signal 9 (SIGKILL)" in texts[1]
    assert not (tmp_path / "run" / "last.safetensors").exists() or weights(tmp_path / "run") != weights(on_one)
    codes, texts = train(machines, [tmp_path / "run"] * 2, arguments=["--resume"])
    assert codes == [0, 0], texts
    assert "resumed at step 10, from " in texts[0]
    assert weights(tmp_path / "run") == weights(on_one)


@pytest.mark.parametrize(("lost", "arguments"), [("worker", []), ("machine", ["--resume"])])
def test_torchrun_goes_on_from_the_last_checkpoint(machines, on_one, tmp_path, lost, arguments):
    """A lost worker is started again; a lost machine, torchrun and all, is waited for."""
    codes, texts = train(machines, [tmp_path / "run"] * 2, 1, arguments, lost)
    assert codes == [0, 0], texts
    assert "resumed at step 10, from " in texts[0]
    assert weights(tmp_path / "run") == weights(on_one)


def test_machines_that_share_no_folder_cannot_resume(machines, on_one, tmp_path):
    shutil.copytree(on_one, tmp_path / "run")
    codes, texts = train(machines, [tmp_path / "run", tmp_path / "other"], arguments=["--resume", "--epochs", "2"])
    assert 0 not in codes
    for text, folder in zip(texts, ("run", "other"), strict=True):
        assert f"{tmp_path / folder} is not the same folder in every process: the last checkpoints there are " in text
    assert weights(tmp_path / "run") == weights(on_one)
    assert not (tmp_path / "other").exists()
