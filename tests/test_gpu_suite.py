"""The GPU suite without a GPU: the dry run, what it records and how it goes on after every kind of accident."""

import json
import math
import os
import subprocess
import sys
import time

import pytest
import torch

from benchmarks.gpu import __main__ as suite
from benchmarks.gpu import clock, correctness, floors, records, robustness, sanitized, worker
from benchmarks.gpu.environment import ROOT, slug
from benchmarks.gpu.forms import DTYPES
from benchmarks.gpu.schedule import MEASURED
from benchmarks.gpu.settings import DRY_RUN, GPU, Context
from gala_cuda.backends import reference

pytestmark = pytest.mark.slow

NEED_CUDA = {"graphs", "second stream", *robustness.SANITIZERS}


@pytest.fixture(scope="module")
def dry_run(tmp_path_factory):
    """(the finished process, its folder) of one whole dry run, without Triton's interpreter, which takes long."""
    folder = tmp_path_factory.mktemp("dry-run")
    command = [sys.executable, "-m", "benchmarks.gpu", "--dry-run", "--seed", "1", "--output", folder]
    command += ["--compile", "2"]
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False), folder


@pytest.fixture
def context(tmp_path, monkeypatch):
    """A dry run on one thread, without Triton's interpreter."""
    why_not = Context.why_not
    monkeypatch.setattr(
        Context,
        "why_not",
        lambda self, name, kind: "slow" if name.startswith("triton") else why_not(self, name, kind),
    )
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield Context(torch.device("cpu"), DRY_RUN, 1, tmp_path)
    torch.set_num_threads(threads)


def read(context, part):
    return json.loads((context.folder / f"{part}.json").read_text())


def test_dry_run_does_every_part(dry_run):
    done, folder = dry_run
    assert done.returncode == 0, done.stderr
    found = records.load(folder, list(MEASURED))
    assert list(found) == list(MEASURED)
    for part, record in found.items():
        assert record["part"] == part
        assert record["running"] is None
        (environment,) = record["environments"]
        assert environment["versions"]["torch"] == torch.__version__
        assert {"device", "driver", "commit"} <= environment.keys()
        assert record["settings"]["device"] == "cpu"
        for step, entry in record["steps"].items():
            assert "failed" not in entry, step
            assert ("result" in entry) != ("left_out" in entry), step
            assert entry["started"].startswith("20")
    reasons = {step: reason for part, step, reason in records.entries(found, "left_out") if part == "robustness"}
    assert {step.rpartition(" ")[0] for step, reason in reasons.items() if reason == "needs CUDA"} == NEED_CUDA


def test_dry_run_measures(dry_run):
    _, folder = dry_run
    found = records.load(folder, list(MEASURED))
    ((_, _, case),) = records.entries({"operators": found["operators"]}, "result")
    assert case["shape"] == [2, 16, 5, 5]
    assert set(case["errors"]) >= {"eager", "compile", "se", "cbam"}
    for kind in ("forward", "forward+backward"):
        times = case["times"]["loop"][kind]
        assert times.keys() == case["errors"].keys()
        assert case["speedup"]["loop"][kind]["compile"] == pytest.approx(
            {"eager": times["eager"]["median"] / times["compile"]["median"], "compile": 1}
        )
        assert case["over_floor"]["loop"][kind]["eager"] > 0
    shapes = found["shapes"]["steps"]
    assert len(shapes) == 7
    assert found["operators"]["steps"].keys().isdisjoint(shapes)
    rates = found["networks"]["steps"]["training"]["result"]["images_per_second"]
    assert {"resnet18", "se_resnet18", "timm seresnet18", "GALA eager", "GALA compiled"} <= rates.keys()
    assert all(math.isfinite(rate) and rate > 0 for rate in rates.values())


def test_dry_run_reports(dry_run):
    done, folder = dry_run
    pictures = {path.name for path in folder.glob("*.png")}
    groups = {
        f"times-{dtype}-{layout}.png" for dtype in ("bfloat16", "float32") for layout in ("channels_last", "nchw")
    }
    assert pictures == {*groups, "networks.png"}
    for title in ("Machine", "Worst error", "Robustness", "Microseconds", "Training", "left out: needs CUDA"):
        assert title in done.stdout
    names = {path.name for path in folder.iterdir()} - pictures
    records_of_parts = {f"{part}.json" for part in MEASURED}
    assert names == {*records_of_parts, "predicted.json", "about.json", "results.tar.gz"}


def test_dry_run_predicts(dry_run):
    """Acceptance: what a first call of nine minutes is to bring, in minutes of each part."""
    done, folder = dry_run
    found = json.loads((folder / "predicted.json").read_text())
    assert list(found["parts"]) == list(MEASURED)
    assert found["kernels"]["problems"] == []
    assert found["kernels"]["compiled"] == 2
    assert found["kernels"]["needed"]["kernels"] > 10
    assert found["kernels"]["cpu_seconds"] > 0
    title = "Predicted, not measured: a first call of 9 minutes on a GPU with 16 cores"
    assert title in done.stdout
    lines = done.stdout.partition(title)[2].splitlines()
    rows = {line.split()[1]: line for line in lines if line.startswith("│ ") and line.split()[1] != "│"}
    assert list(rows) == ["prepare", *MEASURED]


def test_recorded_steps_are_skipped_and_missing_ones_done(context):
    parts = ["machine", "robustness"]
    worker.run(context, parts, 100)
    first = {part: read(context, part) for part in parts}
    (context.folder / "machine.json").unlink()
    steps = first["robustness"]["steps"]
    forgotten = next(name for name, entry in steps.items() if "result" in entry)
    kept = {name: entry for name, entry in steps.items() if name != forgotten}
    (context.folder / "robustness.json").write_text(json.dumps({**first["robustness"], "steps": kept}))
    time.sleep(1)  # the resolution of "started"
    worker.run(context, parts, 100)

    again = {part: read(context, part) for part in parts}
    assert again["machine"]["steps"].keys() == first["machine"]["steps"].keys()
    assert all(
        entry["started"] > first["machine"]["steps"][name]["started"]
        for name, entry in again["machine"]["steps"].items()
    )
    assert again["robustness"]["steps"].keys() == steps.keys()
    assert again["robustness"]["steps"][forgotten]["started"] > steps[forgotten]["started"]
    for name, entry in kept.items():
        if "result" in entry:
            assert again["robustness"]["steps"][name] == entry


def test_steps_of_another_environment_say_so(context, monkeypatch):
    first = worker.environment(context.device)
    worker.run(context, ["machine"], 0)
    monkeypatch.setattr(worker, "environment", lambda device: {**first, "commit": "another"})
    worker.run(context, ["machine"], 100)
    record = read(context, "machine")
    assert [environment["commit"] for environment in record["environments"]] == [first["commit"], "another"]
    assert {entry["environment"] for entry in record["steps"].values()} == {1}


def test_what_does_not_fit_in_the_budget_is_recorded(context):
    worker.run(context, ["machine", "networks"], 0)
    for part in ("machine", "networks"):
        steps = read(context, part)["steps"]
        assert steps
        assert all(entry["left_out"].startswith("no time: 0 s left") for entry in steps.values())
    assert not any(records.entries(records.load(context.folder, ["machine"]), "result"))
    worker.run(context, ["machine"], 100)
    assert all("result" in entry for entry in read(context, "machine")["steps"].values())


def test_a_wrong_backend_fails_its_steps_alone_and_the_suite(context, monkeypatch, capfd):
    forward = reference.forward

    def wrong(*args):
        out, *rest = forward(*args)
        return out * 1.1, *rest

    monkeypatch.setattr(reference, "forward", wrong)
    worker.run(context, ["correctness", "machine"], 100)
    steps = read(context, "correctness")["steps"]
    failed = {name for name, entry in steps.items() if "failed" in entry}
    assert failed == {name for name in steps if name.startswith("reference")}
    entry = steps["reference float32 nchw"]
    assert "results beyond tolerance, the first: out is off by" in entry["failed"]
    assert entry["result"]["worst"]["out"]["share"] > 1000
    assert "result" in read(context, "machine")["steps"]["copy"]

    monkeypatch.setattr(suite, "supervise", lambda *_: True)
    monkeypatch.setattr(suite.predict, "show", lambda *_: None)
    assert suite.main(["--dry-run", "--output", str(context.folder)]) == 1
    assert "reference float32 nchw: " in capfd.readouterr().out
    (context.folder / "correctness.json").unlink()
    assert suite.main(["--dry-run", "--output", str(context.folder)]) == 0


def test_a_worker_that_cannot_start_is_not_started_again(context, capsys):
    assert not suite.supervise([sys.executable, "-c", "raise SystemExit(7)"], context.folder, ["machine"], 100)
    assert "ended with exit code 7 before it did anything" in capsys.readouterr().err


def test_a_step_that_raises_is_recorded_and_the_next_one_done(context, monkeypatch):
    steps = [records.Step("raises", lambda: {}["key"], 1), records.Step("works", dict, 1)]
    monkeypatch.setitem(worker.STEPS, "machine", lambda _: steps)
    worker.run(context, ["machine"], 100)
    record = read(context, "machine")
    assert record["running"] is None
    assert record["steps"]["raises"]["failed"] == "KeyError: 'key'"
    assert record["steps"]["works"]["result"] == {}


def test_an_interrupted_step_is_done_again(context):
    record = records.Record(context.folder, "machine", {}, {})
    with pytest.raises(KeyboardInterrupt), record.step("copy"):
        raise KeyboardInterrupt
    assert read(context, "machine")["running"] == "copy"
    assert not records.Record(context.folder, "machine", {}, {}).settled("copy")


def test_without_a_gpu_nothing_is_written(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert suite.main(["--output", str(tmp_path / "new")]) == 2
    assert "no usable NVIDIA GPU" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_floors_are_those_of_the_design():
    """Paper shape, N = 256, bfloat16, at a copy's 4.3 TB/s and 790 TFLOP/s."""
    found = floors.floors((256, 1024, 14, 14), 256, "bfloat16", floors.Rates(4.3e12, 790e12))
    assert found["forward"] == {"seconds": pytest.approx(48e-6, rel=0.01), "set_by": "memory"}
    assert found["backward"] == {"seconds": pytest.approx(72e-6, rel=0.01), "set_by": "memory"}
    assert found["forward+backward"]["seconds"] == pytest.approx(120e-6, rel=0.01)
    slow = floors.floors((256, 1024, 14, 14), 256, "bfloat16", floors.Rates(4.3e12, 79e12))
    assert slow["backward"] == {"seconds": pytest.approx(667e-6, rel=0.01), "set_by": "arithmetic"}


class PatientClock(clock.WallClock):
    """A GPU that has reached the call before it is submitted, until it was kept busy for long enough."""

    def __init__(self, enough):
        self.enough, self.leads = enough, []

    def lead(self, seconds, cold):
        self.leads.append(seconds)

    def was_queued(self, first):
        return self.leads[-1] > self.enough


def test_device_times_are_those_of_queued_calls():
    stages = (lambda: time.sleep(0.001), lambda: time.sleep(0.003))
    patient = PatientClock(enough=0.01)
    times = clock.device_times({"a": stages, "b": stages}, 0.0, patient, cold=True)
    first, second, both = times["a"]
    assert 0.001 <= first.median < second.median < both.median
    assert both.median >= 0.004
    accepted = [lead for lead in patient.leads if lead > 0.01]
    assert len(accepted) == 2 * (1 + both.rounds)
    with pytest.raises(RuntimeError, match="b waits for the GPU"):
        clock.device_times({"b": stages}, 0.0, PatientClock(enough=math.inf), cold=False)


@pytest.mark.parametrize(
    ("other", "differs"),
    [
        pytest.param([0.0, math.nan], 0, id="equal-nan"),
        pytest.param([-0.0, math.nan], 1, id="sign-of-zero"),
        pytest.param([1e-45, math.nan], 1, id="last-bit"),
    ],
)
def test_bits_are_compared(other, differs):
    assert robustness._differs(torch.tensor([0.0, math.nan]), torch.tensor(other)) == differs


def test_options_combine_in_threes():
    for dropped in range(4):
        assert len({options[:dropped] + options[dropped + 1 :] for options in correctness.OPTIONS}) == 8


@pytest.mark.parametrize("backend", ["triton", "cuda"])
def test_each_backend_for_gpus_has_its_steps(context, backend):
    names = {step.name for part in ("correctness", "robustness") for step in worker.STEPS[part](context)}
    assert {f"{backend} {dtype} {layout}" for dtype in DTYPES for layout in correctness.LAYOUTS} <= names
    checks = ("repeats", "graphs", "second stream", "compile", "memcheck", "racecheck", "initcheck", "synccheck")
    assert {f"{check} {backend}" for check in checks} <= names


def test_without_compute_sanitizer_its_steps_say_so(context, monkeypatch):
    monkeypatch.setattr(robustness, "_on_gpu", lambda context, name: None)
    monkeypatch.setattr(Context, "why_not", lambda *_: None)
    monkeypatch.setattr(robustness.shutil, "which", lambda name, path: None)
    with pytest.raises(records.UnavailableError, match="compute-sanitizer is neither on PATH nor in CUDA_HOME"):
        robustness._sanitize(context, "initcheck", "cuda")


def test_sanitized_problems_run():
    sanitized.main("reference", "cpu")


def test_the_gpu_sizes_are_those_of_the_paper():
    assert GPU.stages[0] == GPU.repeated[1:] == (1024, 14, 14)
    assert set(GPU.batches) == {1, 8, 32, 128, 256}
    assert slug("NVIDIA H200") == "nvidia-h200"
