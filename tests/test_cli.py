"""The command line: what it prints, writes and returns, and how it refuses."""

import json
import subprocess
import sys

import pytest
from safetensors.torch import load_file

import gala_cuda
from gala_cuda import demo
from gala_cuda.bench import Settings, WrongResultError, suite, timing
from gala_cuda.cli.main import COMMANDS, main
from gala_cuda.training.recipe import Recipe

pytestmark = pytest.mark.usefixtures("one_thread")
TINY_BENCH = ["bench", "--batch", "2", "--shape", "12x3x5", "--contestants", "eager", "reference", "--seconds", "0.01"]
TINY_TRAINING = ["train", "--image-size", "8", "--width", "4", "--batch-size", "256"]


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(timing, "WARM_UP_SECONDS", 0.01)
    monkeypatch.setattr(suite, "pin_allocator", lambda: True)  # would last beyond these tests


def test_doctor_as_a_module():
    done = subprocess.run([sys.executable, "-m", "gala_cuda", "doctor"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith(f"gala_cuda     {gala_cuda.__version__}\n")
    assert "\ncpu: " in done.stdout


def test_doctor_json(capsys):
    assert main(["doctor", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads(json.dumps(gala_cuda.doctor().as_dict()))


def test_bench(tmp_path, capsys):
    assert main([*TINY_BENCH, "--dtype", "float64", "--layout", "nchw", "--output", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "reference vs" in printed
    assert "[" not in printed  # no mark-up
    assert str(tmp_path / "bench.png") in printed
    settings = json.loads((tmp_path / "bench.json").read_text())["settings"]
    assert settings["dtype"] == "float64"
    assert settings["layout"] == "nchw"
    assert settings["shapes"] == [[12, 3, 5]]


def test_bench_fails_on_a_wrong_contestant(monkeypatch, tmp_path, capsys):
    def wrong(*_):
        raise WrongResultError("cpu is wrong, nothing was timed")

    monkeypatch.setattr(suite, "check", wrong)
    assert main([*TINY_BENCH, "--output", str(tmp_path)]) == 1
    assert capsys.readouterr().err == "gala-cuda: cpu is wrong, nothing was timed\n"
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("model", ["gala_resnet18", "se_resnet18", "resnet18"])
def test_train(tmp_path, capsys, model):
    layers = ["--layers", "layer2.0"] if model == "gala_resnet18" else []
    assert main([*TINY_TRAINING, "--epochs", "1", "--model", model, *layers, "--output", str(tmp_path)]) == 0
    assert "epoch 1/1" in capsys.readouterr().out
    weights = load_file(tmp_path / "last.safetensors")
    attended = {key.split(".attention")[0] for key in weights if ".attention." in key}
    blocks = {f"layer{stage}.{block}" for stage in range(1, 5) for block in range(2)}
    assert attended == {"gala_resnet18": {"layer2.0"}, "se_resnet18": blocks, "resnet18": set()}[model]


def test_train_fails_on_a_loss_that_is_no_number(tmp_path, capsys):
    assert main([*TINY_TRAINING, "--lr", "1e30", "--output", str(tmp_path)]) == 1
    assert capsys.readouterr().err.startswith("gala-cuda: the loss is")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param("", "COMMAND", id="no-command"),
        pytest.param("bench --shape 1024x14", "argument --shape: '1024x14' was given", id="shape"),
        pytest.param("bench --batch 0", "argument --batch: '0' was given", id="batch"),
        pytest.param("bench --dtype int8", "argument --dtype: invalid choice: 'int8'", id="dtype"),
        pytest.param("bench --seconds nan", "argument --seconds: 'nan' was given", id="seconds"),
        pytest.param("bench --device tpu", "argument --device: 'tpu' was given", id="device"),
        pytest.param("bench --device cuda:99", "argument --device: 'cuda:99' was given", id="device-missing"),
        pytest.param("bench --contestants eager cuda", "contestant 'cuda' cannot run", id="contestant"),
        pytest.param("train --data nowhere", "argument --data: there is no folder nowhere", id="data"),
        pytest.param("train --model vgg16", "argument --model: there is no 'vgg16'", id="model"),
        pytest.param("train --epochs few", "argument --epochs: epochs is 'few'; expected a whole number", id="epochs"),
        pytest.param("train --lr -1", "argument --lr: lr is -1.0; expected more than 0", id="lr"),
        pytest.param("train --weight-decay -1", "argument --weight-decay: weight_decay is -1.0", id="weight-decay"),
        pytest.param("train --workers -1", "argument --workers: workers is -1", id="workers"),
        pytest.param("train --recipe best", "argument --recipe: recipe is 'best'; expected one of paper", id="recipe"),
        pytest.param(
            "train --weights none.pth", "argument --weights: none.pth cannot be read as weights: No such", id="weights"
        ),
        pytest.param("train --augment cutout", "argument --augment: invalid choice: 'cutout'", id="augment"),
        pytest.param(
            "train --recipe finetune",
            "argument --recipe: finetune, keep_output: keep_output is True, but weights is None; expected --weights",
            id="finetune",
        ),
        pytest.param("train --lr 1 --lr-256 1", "argument --lr-256: lr_256 is given together with lr", id="two-lrs"),
        pytest.param("train --decay-at x", "argument --decay-at: decay_at is ['x']; expected a list", id="list"),
        pytest.param(
            "train --accumulate 3", "argument --accumulate: batch_size is 64; expected a multiple", id="parts"
        ),
        pytest.param(
            "train --keep-output", "argument --keep-output: keep_output is True, but weights", id="keep-output"
        ),
        pytest.param(
            "train --recipe finetune --weights none.pth --init paper",
            "argument --init: init is 'paper'; expected 'half' with keep_output",
            id="init",
        ),
        pytest.param("train --layers layer9", "argument --layers: layers names 'layer9'", id="layers"),
        pytest.param("train --model resnet18 --layers layer3", "argument --layers: resnet18 has no GALA", id="no-gala"),
    ],
)
def test_bad_arguments_are_named(capsys, arguments, message):
    with pytest.raises(SystemExit) as exit_:
        main(arguments.split())
    assert exit_.value.code == 2
    told = capsys.readouterr().err
    assert message in told
    assert told.count("\n") == 1
    assert told.endswith("--help)\n")


WITHOUT_EXTRAS = """
import contextlib, io, json, sys
sys.modules.update(dict.fromkeys({blocked}))
from gala_cuda.cli.main import COMMANDS, main

def call(line):
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        try:
            code = main(line.split())
        except SystemExit as exit_:
            code = exit_.code
    return code, out.getvalue(), err.getvalue()

print(json.dumps({{line: call(line) for line in {lines}}}))
"""


@pytest.mark.slow
def test_an_install_without_extras_has_help_and_doctor_and_names_the_extra():
    blocked = ("PIL", "crc32c", "matplotlib", "rich", "safetensors", "scipy", "sklearn", "timm", "torchvision", "yaml")
    needs = {"bench": "bench", "tune": "bench", "train": "train", "eval w": "train", "export w": "train",
             "inspect w x": "train", "predict w x": "train", "clickme check x": "train",
             "clickme convert x y": "train", "index x": "train", "demo": "train"}  # fmt: skip
    helps = ["--help", *(f"{command} --help" for command in (*COMMANDS, "clickme check", "clickme convert"))]
    lines = [*helps, "doctor", *needs]
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_EXTRAS.format(blocked=blocked, lines=lines)],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    found = json.loads(done.stdout)
    for line in (*helps, "doctor"):
        assert found[line][0] == 0, line
    assert {line.split()[0] for line in needs} | {"doctor"} == set(COMMANDS)
    for line, extra in needs.items():
        code, out, err = found[line]
        assert (code, out) == (1, "")
        assert err.endswith(f" is not installed; pip install 'gala-cuda[{extra}]'\n")
        assert err.split()[1].split(".")[0] in blocked


def test_a_package_of_no_extra_is_named(monkeypatch, capsys):
    def need(args):
        raise ModuleNotFoundError("No module named 'other'", name="other")

    monkeypatch.setattr(COMMANDS["doctor"], "run", need)
    assert main(["doctor"]) == 1
    assert capsys.readouterr().err == "gala-cuda: other is not installed; pip install other\n"


@pytest.mark.slow
@pytest.mark.parametrize(("needed", "code"), [(0.0, 0), (1.0, 1)], ids=["reached", "missed"])
def test_demo(monkeypatch, tmp_path, capsys, needed, code):
    monkeypatch.setattr(demo, "NEEDED", needed)
    monkeypatch.setattr(demo, "RECIPE", Recipe(epochs=1, batch_size=256))
    tiny = Settings(batches=(2,), shapes=((12, 3, 5),), contestants=("eager", "reference"), seconds=0.01)
    monkeypatch.setattr(demo, "BENCH", tiny)
    assert main(["demo", "--output", str(tmp_path)]) == code
    out, err = capsys.readouterr()
    for name in ("last.safetensors", "log.jsonl", "attention.png", "bench.json", "bench.png"):
        assert (tmp_path / name).stat().st_size > 0
        assert str(tmp_path / name) in out
    assert f"GALA runs on: {gala_cuda.doctor().devices[0].automatic}" in out
    assert ("expected at least 100%" in err) == bool(code)


def test_demo_refuses_a_backend_that_does_not_run(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("GALA_BACKEND", "cuda")
    assert main(["demo", "--output", str(tmp_path)]) == 1
    assert "backend 'cuda' cannot run" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
