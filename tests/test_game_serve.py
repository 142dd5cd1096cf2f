"""The commands: `clickme serve` and `clickme forget`, as a user starts them, and what they refuse."""

import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from game_play import COLOURS, Player, corner, write_study
from safetensors.torch import save_file
from sqlalchemy import create_engine, text

from gala_cuda.cli.main import main
from gala_cuda.game.store import Store
from gala_cuda.networks.network import Network

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def study(tmp_path):
    return write_study(tmp_path / "study", per_class=2)


class Served:
    """`gala-cuda clickme serve` with `arguments`, until it plays."""

    def __init__(self, *arguments, cwd=None):
        self.lines = []
        self.process = subprocess.Popen(
            [sys.executable, "-m", "gala_cuda", "clickme", "serve", *map(str, arguments)], stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True, cwd=cwd,
            env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"},
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )  # fmt: skip
        for line in self.process.stdout:
            self.lines.append(line)
            if match := re.search(r"played at (http://\S+:(\d+))/", line):
                self.address, self.port = match[1], int(match[2])
                return
        raise AssertionError("".join(self.lines))

    def stop(self, number=signal.SIGINT):
        """What it prints, and its exit code."""
        self.process.send_signal(number)
        rest, _ = self.process.communicate(timeout=120)
        return rest, self.process.returncode


def refused(capsys, *arguments):
    """What the command says, which ends with exit code 2 or 1."""
    try:
        code = main(["clickme", *map(str, arguments)])
    except SystemExit as exit:
        code = exit.code
    captured = capsys.readouterr()
    assert code in (1, 2)
    assert captured.err.count("\n") == 1, captured.err
    return captured.err


def colour_network(path, classes=tuple(COLOURS)):
    """A tiny network's file; what it answers is by chance."""
    torch.manual_seed(0)
    network = Network("resnet18", (), 4, False, "small", (*classes, "nothing"), 3, 32)
    save_file(network.build().state_dict(), path, network.metadata())
    return path


@pytest.mark.slow
def test_demo_is_played_from_the_command_line(tmp_path):
    """The whole way: photographs, the network from its package, the check, a round, forgetting, Ctrl-C."""
    served = Served("--demo", "--port", 0, cwd=tmp_path)
    try:
        player = Player(served.port).join()
        played = player.start()
        assert (played["width"], played["height"]) == (160, 160)
        assert played["label"] in ("Egyptian cat", "missile", "moped", "palace", "daisy")
        assert player.ask("GET", f"/api/rounds/{played['round']}/image")[0] == 200
        status, answer = player.guess(played["round"], corner())
        assert (status, answer["n"], len(answer["names"])) == (200, 10, 5)
        assert player.finish(played["round"], corner(), "skip")[0] == 200
        assert player.ask("GET", "/")[0] == 200
    finally:
        rest, code = served.stop()
    assert code == 130, rest
    assert "Traceback" not in rest
    folder = tmp_path / "runs" / "clickme-demo"
    store = Store(f"sqlite:///{folder / 'game.sqlite'}")
    assert len(list(store.rounds())) == 1
    assert main(["clickme", "forget", str(folder), player.code]) == 0
    assert not list(store.rounds())
    assert not store.participants()


@pytest.mark.slow
def test_weights_of_this_package_are_a_partner(study, tmp_path):
    """With --top as many as there are classes all images are won while they are hidden: nothing is left to play."""
    weights = colour_network(tmp_path / "weights.safetensors")
    command = ["clickme", "serve", study, "--port", "0", "--partner", weights, "--top", "5"]
    done = subprocess.run(
        [sys.executable, "-m", "gala_cuda", *command],
        env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stdout.count("the partner recognises it while all of it is hidden") == 8
    assert "none of the 8 images in" in done.stderr
    assert "can be played, see above" in done.stderr


def test_port_in_use(study, capsys):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        said = refused(capsys, "serve", study, "--port", port)
    assert f"argument --port: port {port} of 127.0.0.1 cannot be listened at: Address already in use" in said
    assert "expected a free one" in said
    assert not (study / "game.sqlite").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "argument STUDY: none was given; expected a study's folder, or --demo"),
        (["nowhere"], "argument STUDY: there is no folder nowhere; expected a study"),
        (["STUDY", "--port", "99999"], "argument --port: '99999' was given; expected a whole number from 0 to 65535"),
        (["STUDY", "--model", "resnet50"], "argument --model: there is no --partner"),
        (["STUDY", "--public-url", "game.org"], "argument --public-url: 'game.org' was given; expected an address"),
        (["STUDY", "--host", "256.0.0.1", "--port", "0"], "256.0.0.1 cannot be listened at"),
        (["STUDY", "--port", "0", "--database", "mysql://x/y"], "a database of another kind"),
        (["STUDY", "--view", "half"], "argument --view: invalid choice"),
        (["STUDY", "--top", "0"], "argument --top: '0' was given; expected a whole number of at least 1"),
    ],
)
def test_bad_arguments(study, capsys, arguments, said, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert said in refused(capsys, "serve", *[study if each == "STUDY" else each for each in arguments])
    assert not (study / "game.sqlite").exists()


def test_study_without_consent(study, capsys):
    (study / "consent.txt").unlink()
    assert "consent.txt cannot be read" in refused(capsys, "serve", study, "--port", 0)
    assert not (study / "game.sqlite").exists()


def test_database_of_another_version(study, capsys):
    Store(f"sqlite:///{study / 'game.sqlite'}").close()
    with create_engine(f"sqlite:///{study / 'game.sqlite'}").begin() as connection:
        connection.execute(text("UPDATE study SET schema = 99"))
    said = refused(capsys, "serve", study, "--port", 0)
    assert "a database of version 99; expected version 1" in said
    assert "a database of version 99" in refused(capsys, "forget", study, "abc")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ours", "none", "missing", "unnamed"])
def test_partner_that_does_not_fit(study, tmp_path, capsys, kind):
    """A checkpoint of other classes; the default network, which knows ImageNet's; no file; no network's name."""
    weights, arguments = tmp_path / "weights.safetensors", []
    if kind == "ours":
        colour_network(weights, ("cat", "dog"))
        arguments, expected = ["--partner", weights], "does not know, blue, green, red, yellow; it knows cat, dog"
    elif kind == "none":
        expected = "does not know, blue, green, red, yellow; it knows tench"
    elif kind == "missing":
        arguments, expected = ["--partner", tmp_path / "none.pth"], "none.pth cannot be read as weights: No such file"
    else:
        save_file({"weight": torch.zeros(2, 2)}, weights)
        arguments, expected = ["--partner", weights], "does not name its network; expected --model NAME"
    said = refused(capsys, "serve", study, "--port", 0, *arguments)
    assert expected in said
    if kind in ("ours", "none"):
        assert "argument STUDY" in said
        assert "expected --partner with a network of the study's classes" in said


def test_forget(study, capsys):
    store = Store(f"sqlite:///{study / 'game.sqlite'}")
    code = store.join("token", "consent")
    assert "has no participant 'nobody'" in refused(capsys, "forget", study, "nobody")
    assert main(["clickme", "forget", code, "--database", f"sqlite:///{study / 'game.sqlite'}"]) == 0
    assert f"deleted: {code}" in capsys.readouterr().out
    assert not store.participants()
    assert "there is no database" in refused(capsys, "forget", study / "images", code)
    assert not (study / "images" / "game.sqlite").exists()


def test_game_without_its_extra(study):
    program = "import sys; sys.modules['sqlalchemy'] = None; from gala_cuda.cli.main import main; sys.exit(main())"
    command = [sys.executable, "-c", program, "clickme", "serve", str(study)]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=300)
    assert found.returncode == 1
    assert "sqlalchemy is not installed; pip install 'gala-cuda[game]'" in found.stderr
