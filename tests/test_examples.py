"""Every example runs as its reader would run it, and what it prints holds."""

import base64
import io
import os
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from PIL import Image

import gala_cuda

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
CHECKED = ("attention_pictures", "convert_and_finetune", "layer", "train_on_human_maps")


def readers_environment():
    hidden = ("GALA_BACKEND", "TRITON_INTERPRET")  # of the tests, not of a reader
    environment = {key: value for key, value in os.environ.items() if key not in hidden}
    return environment | {"PYTHONPATH": str(Path(gala_cuda.__file__).parents[1])}


def printed(name, folder):
    """What the example prints, run with ``folder`` as its working directory."""
    done = subprocess.run(
        [sys.executable, EXAMPLES / f"{name}.py"],
        env=readers_environment(),
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def numbers(text, pattern):
    return [float(found) for found in re.findall(pattern, text)]


def test_every_example_is_checked_and_listed():
    assert {path.stem for path in EXAMPLES.glob("*.py")} == set(CHECKED)
    table = (EXAMPLES / "README.md").read_text()
    assert [path.name for path in EXAMPLES.iterdir() if path.suffix != ".md" and f"({path.name})" not in table] == []


def test_layer(tmp_path):
    text = printed("layer", tmp_path)
    assert "x (2, 64, 14, 14), out (2, 64, 14, 14), attention (2, 64, 14, 14)" in text
    assert text.count(": True") == 4
    assert "False" not in text
    assert "backend 'cuda' cannot run" in text
    (difference,) = numbers(text, r"difference from the reference: (\S+)")
    assert difference < 1e-5


@pytest.mark.slow
def test_convert_and_finetune(tmp_path):
    text = printed("convert_and_finetune", tmp_path)
    (change,) = numbers(text, r"change of an output: (\S+)")
    before, after = numbers(text, r"accuracy \w+ fine-tuning: ([\d.]+)%")
    assert change < 1e-5
    assert after > max(before, 95)


@pytest.mark.slow
def test_train_on_human_maps(tmp_path):
    """Over three seeds the accuracies were 13 points apart and more, the distances a factor of three and more."""
    text = printed("train_on_human_maps", tmp_path)
    without_accuracy, with_accuracy = numbers(text, r"accuracy ([\d.]+)%")
    without_distance, with_distance = numbers(text, r"distance of the attention from the maps ([\d.]+)")
    assert with_accuracy > without_accuracy
    assert with_distance < 0.5 * without_distance


@pytest.mark.slow
def test_attention_pictures(tmp_path):
    text = printed("attention_pictures", tmp_path)
    (accuracy,) = numbers(text, r"crops told apart: ([\d.]+)%")
    assert accuracy > 90
    with Image.open(tmp_path / "attention.png") as picture:
        assert picture.format == "PNG"
        assert len(picture.convert("RGB").getcolors(picture.width * picture.height)) > 1000


@pytest.mark.slow
def test_notebook(tmp_path):
    """As it is kept, without outputs, in a kernel of its own that sees no GPU."""
    notebook = nbformat.read(EXAMPLES / "attention.ipynb", as_version=nbformat.NO_CONVERT)
    nbformat.validate(notebook)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.outputs or cell.execution_count for cell in cells] == [None] * len(cells)
    client = NotebookClient(notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": tmp_path}})
    client.execute(env=readers_environment() | {"CUDA_VISIBLE_DEVICES": ""})
    (accuracy,) = numbers("".join(output.get("text", "") for output in cells[-2].outputs), r"([\d.]+)%")
    assert accuracy > 75
    (drawn,) = cells[-1].outputs
    with Image.open(io.BytesIO(base64.b64decode(drawn.data["image/png"]))) as picture:
        assert len(picture.convert("RGB").getcolors(picture.width * picture.height)) > 1000
