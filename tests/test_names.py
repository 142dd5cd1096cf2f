"""Files and classes may have any name: it is printed as it is, and neither rich nor a terminal obeys it."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from rich.table import Table

from gala_cuda import resnet18
from gala_cuda.cli import export as export_command
from gala_cuda.cli.main import main
from gala_cuda.console import PlainConsole
from gala_cuda.inspection.sheet import overlay
from gala_cuda.networks.loading import read_weights
from gala_cuda.text import printable

pytestmark = pytest.mark.slow

NOT_UTF8 = os.fsdecode(b"caf\xe9")
CLASSES = sorted(("$0_$50", "$50_$", "[red]x", ":cat:", "<i>&amp;", "a\x1b[31mb", "日本", NOT_UTF8))


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        pytest.param("a b\tc\n日本 é 🐱", "a b\tc\n日本 é 🐱", id="as-it-is"),
        pytest.param("a\x1b[31mb\r\x00", r"a\x1b[31mb\r\x00", id="control"),
        pytest.param("gnp\u202ejpg", r"gnp\u202ejpg", id="right-to-left"),
        pytest.param(NOT_UTF8, r"caf\xe9", id="bytes"),
        pytest.param("\ud83d", r"\ud83d", id="half-a-pair"),
    ],
)
def test_printable(name, shown):
    assert printable(name) == shown


def test_console_shows_names_as_they_are(capsys):
    console = PlainConsole(width=60)
    console.print("[red]x[/] :cat: \x1b[1m")
    table = Table("[b]", title=":dog:")
    table.add_row("[/]")
    console.print(table)
    printed = capsys.readouterr().out
    for name in ("[red]x[/] :cat: \\x1b[1m\n", "[b]", ":dog:", "[/]"):
        assert name in printed
    assert "\x1b" not in printed


def test_sheets_take_dollars_for_dollars(tmp_path):
    names = ["$\\frac$", "_{x}^$", NOT_UTF8]
    figure = overlay(torch.zeros(3, 3, 8, 8), {}, names, "$a_$ of $b^$")
    figure.savefig(tmp_path / "sheet.png")
    assert [axes.get_ylabel() for axes in figure.axes] == ["$\\frac$", "_{x}^$", r"caf\xe9"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with pictures of `CLASSES` in data, and in run a network trained on them."""
    root = tmp_path_factory.mktemp("names")
    rng = np.random.default_rng(0)
    for split, count in (("train", 2), ("val", 1)):
        for name in CLASSES:
            folder = root / "data" / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                picture = Image.fromarray(rng.integers(0, 255, (36, 36, 3), np.uint8))
                picture.save(folder / f"{name}{i}.png")
    command = "train --data data --model gala_resnet18 --width 8 --image-size 32 --epochs 1 --batch-size 8 --workers 0"
    return root, call(root, *command.split(), "--device", "cpu", "--output", "run")


def call(root, *arguments):
    """The command line on an output that knows ASCII alone."""
    environment = os.environ | {"PYTHONIOENCODING": "ascii:strict", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "gala_cuda", *arguments]
    return subprocess.run(command, cwd=root, env=environment, capture_output=True, check=False)


def test_train(trained):
    root, done = trained
    assert (done.returncode, done.stderr) == (0, b"")
    assert read_weights(root / "run" / "last.safetensors")[1].classes == tuple(CLASSES)
    assert len((root / "run" / "log.jsonl").read_text().splitlines()) == 1


def test_eval(trained):
    root, _ = trained
    done = call(root, "eval", "run", "--data", "data", "--workers", "0", "--device", "cpu")
    assert (done.returncode, done.stderr) == (0, b"")
    for name in (b"$0_$50", b"[red]x", b":cat:", b"<i>&amp;", b"a\\x1b[31mb", rb"\u65e5\u672c", rb"caf\xe9"):
        assert name in done.stdout
    assert b"\x1b" not in done.stdout


def test_inspect(trained):
    root, _ = trained
    broken = root / "[b]\x1b.png"
    broken.write_bytes(b"no picture")
    done = call(root, "inspect", "run", "data/val", broken.name, "--output", "seen", "--device", "cpu")
    assert (done.returncode, done.stderr) == (0, b"")
    assert rb"skipped [b]\x1b.png: no image of a known format" in done.stdout
    page = (root / "seen" / "inspection.html").read_text(encoding="utf-8")
    for name in ("$0_$50", "[red]x", ":cat:", "&lt;i&gt;&amp;amp;", r"a\x1b[31mb", "日本", r"caf\xe9"):
        assert name in page
    assert (root / "seen" / "inspection.png").is_file()


def test_errors(trained):
    root, _ = trained
    done = call(root, "inspect", "run", "\x1b[31m[/]" + os.fsdecode(b"n\xf6"))
    assert done.returncode == 2
    assert rb"\x1b[31m[/]n\xf6" in done.stderr
    assert b"Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("output", "written"),
    [
        pytest.param("w/lr0.1", ["w/lr0.1.onnx", "w/lr0.1.pt2"], id="dot"),
        pytest.param("w/lr0.2.onnx", ["w/lr0.2.onnx", "w/lr0.2.pt2"], id="suffix"),
        pytest.param("net", ["net.onnx", "net.pt2"], id="plain"),
    ],
)
def test_exports_keep_dots(tmp_path, monkeypatch, output, written):
    monkeypatch.chdir(tmp_path)
    torch.save(resnet18(4, width=8, stem="small").state_dict(), "weights.pth")

    def export(model, channels, size, path):
        path.write_bytes(b"")
        return 0.0

    monkeypatch.setattr(export_command, "FORMATS", {"onnx": export, "pt2": export})
    options = ["--model", "resnet18", "--image-size", "32", "--format", "onnx", "pt2"]
    assert main(["export", "weights.pth", *options, "--output", output]) == 0
    assert sorted(str(path) for path in [*Path().glob("*.*"), *Path().glob("w/*")]) == sorted([*written, "weights.pth"])
