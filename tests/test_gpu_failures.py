"""The GPU suite where something goes wrong: a contestant that fails, hangs or takes the GPU along costs only itself."""

import json
import sys
from dataclasses import replace

import pytest
import torch

from benchmarks.gpu import __main__ as suite
from benchmarks.gpu import attempts, entrants, networks, operators, records, worker
from benchmarks.gpu.settings import DRY_RUN, Context

pytestmark = pytest.mark.slow


class NoPlaceError(Exception):
    """Like Triton's OutOfResources, no RuntimeError."""


@pytest.fixture
def context(tmp_path, one_thread, monkeypatch):
    """A dry run on one thread without Triton's interpreter."""
    why_not = Context.why_not
    monkeypatch.setattr(
        Context, "why_not", lambda c, name, kind: "slow" if "triton" in name else why_not(c, name, kind)
    )
    return Context(torch.device("cpu"), DRY_RUN, 1, tmp_path)


def read(folder, part):
    return json.loads((folder / f"{part}.json").read_text())


def breaking(monkeypatch, name, error, after):
    """The contestant `name` raises `error` from its call number `after` on."""
    make, calls = entrants._entrant, []

    def entrant(who, context, x):
        found = make(who, context, x)
        if who != name:
            return found

        def call(x):
            calls.append(1)
            if len(calls) > after:
                raise error
            return found.call(x)

        return entrants.replace(found, call=context.trials.watched(who, call))

    monkeypatch.setattr(entrants, "_entrant", entrant)


@pytest.mark.parametrize("after", [0, 2, 6], ids=["check", "timing", "later in timing"])
@pytest.mark.parametrize(
    ("name", "error", "reason"),
    [
        ("cpu", NoPlaceError("shared memory\nadvice"), "NoPlaceError: shared memory"),
        ("compile", torch.OutOfMemoryError("2 GiB"), "OutOfMemoryError: 2 GiB"),
        ("se", ZeroDivisionError(), "ZeroDivisionError: "),
    ],
)
def test_a_contestant_that_fails_costs_only_itself(context, monkeypatch, name, error, reason, after):
    breaking(monkeypatch, name, error, after)
    (step,) = operators.steps(context)
    if name == "cpu":  # a backend: its failure is one of the step
        with pytest.raises(records.MeasurementError) as failed:
            step.run()
        assert str(failed.value) == f"{name}: {reason}"
        found = failed.value.result
    else:
        found = step.run()
    others = {"eager", "compile", "cpu", "se", "cbam"} - {name}
    assert found["left_out"][name] == reason
    for kind in ("forward", "forward+backward"):
        assert found["times"]["loop"][kind].keys() == others
    assert found["errors"].keys() == found["saved_bytes"].keys() == others


def test_a_network_that_fails_costs_only_itself(context, monkeypatch):
    compiled = networks._compiled
    monkeypatch.setattr(networks, "_compiled", lambda *_: compiled(*_) and {}["a kernel"])
    monkeypatch.setattr(networks, "_in_form", lambda *_: torch.nn.Linear(1, 1))  # takes no images
    (step,) = (step for step in networks.steps(context) if step.name == "training")
    with pytest.raises(records.MeasurementError, match=r"^GALA cpu: ") as failed:
        step.run()
    result = failed.value.result
    assert result["images_per_second"].keys() == {"resnet18", "GALA eager", "se_resnet18", "timm seresnet18"}
    assert result["left_out"]["GALA compiled"] == "KeyError: 'a kernel'"


def test_without_timm_its_blocks_and_network_are_left_out(context, monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] in ("timm", "torchvision")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "timm", None)
    monkeypatch.setitem(sys.modules, "torchvision", None)
    found = operators.steps(context)[0].run()
    assert all(found["left_out"][name].startswith("ModuleNotFoundError: ") for name in ("se", "cbam"))
    assert set(found["errors"]) == {"eager", "compile", "cpu"}
    found = networks.steps(context)[1].run()
    assert found["left_out"]["timm seresnet18"].startswith("ModuleNotFoundError: ")
    assert found["over_timm_se"] == {}
    assert "GALA cpu" in found["over_plain"]


def test_memory_for_fewer_images(context, monkeypatch):
    """The largest batch that all fit with; at the smallest those that do not are left out."""
    prepared, fits = networks._prepared, {"GALA eager": 4, "GALA cpu": 2}

    def limited(build, images, labels, context):
        name = context.trials.current
        if len(images) > fits.get(name, 8):
            raise torch.OutOfMemoryError(f"{len(images)} images")
        return prepared(build, images, labels, context)

    monkeypatch.setattr(networks, "_prepared", limited)
    sizes = replace(DRY_RUN, network_batches=(8, 4, 2))
    step, _ = networks.steps(Context(context.device, sizes, 1, context.folder))
    found = step.run()
    assert found["batch"] == 2
    assert found["left_out"].keys().isdisjoint(found["images_per_second"])
    fits["GALA cpu"] = 1
    with pytest.raises(records.MeasurementError, match="GALA cpu: OutOfMemoryError: 2 images") as failed:
        step.run()
    assert failed.value.result["images_per_second"].keys() == {"resnet18", "GALA eager"}


def test_where_the_gpu_is_lost_another_worker_goes_on_without(context, monkeypatch):
    breaking(monkeypatch, "cpu", RuntimeError("CUDA error: an illegal memory access"), 0)
    lost = iter([False])
    monkeypatch.setattr(attempts, "alive", lambda device: next(lost, True))
    monkeypatch.setattr(worker, "alive", lambda device: True)
    with pytest.raises(SystemExit) as ended:
        worker.run(context, ["operators"], 100)
    assert ended.value.code == worker.RESTART
    record, name = read(context.folder, "operators"), operators.steps(context)[0].name
    reason = "RuntimeError: CUDA error: an illegal memory access; the CUDA context was lost"
    assert record["excluded"] == {name: {"cpu": reason}}
    assert record["running"] is None
    assert record["steps"] == {}
    assert records.progress(context.folder, ["operators"]) == 1

    worker.run(context, ["operators"], 100)
    entry = read(context.folder, "operators")["steps"][name]
    assert entry["failed"] == f"cpu: {reason}"
    assert entry["result"]["errors"].keys() == {"eager", "compile", "se", "cbam"}


def test_after_a_step_that_lost_the_gpu_another_worker_is_asked_for(context, monkeypatch):
    monkeypatch.setattr(worker, "alive", lambda device: False)
    monkeypatch.setitem(worker.STEPS, "machine", lambda _: [records.Step("loses it", lambda: {}["gpu"], 1)])
    with pytest.raises(SystemExit) as ended:
        worker.run(context, ["machine"], 100)
    assert ended.value.code == worker.RESTART
    assert read(context.folder, "machine")["steps"]["loses it"]["failed"] == "KeyError: 'gpu'"


PROGRAM = """
import os, signal, sys, time
from benchmarks.gpu import attempts, worker
from benchmarks.gpu.records import Step
worker.PATIENCE = (0.05, 0)
attempts.patience = worker.patience = lambda device: 20.0
options, context = worker.options_of(None)
def alone():
    time.sleep(60 if options.call == "first" else 0)
    return {}
def several():
    done = []
    for name in ("good", "bad"):
        if name not in context.trials.excluded:
            with context.trials.attempt(name):
                if name == "bad":
                    os.kill(os.getpid(), signal.SIGSEGV)
                done.append(name)
    return {"done": done, "without": context.trials.excluded}
worker.STEPS = {"machine": lambda _: [Step("alone", alone, 1), Step("several", several, 1), Step("works", dict, 1)]}
worker.run(context, ["machine"], options.seconds, options.call)
"""


def test_a_hang_is_left_out_until_a_later_call_and_a_crash_costs_only_its_contestant(tmp_path):
    command = [sys.executable, "-c", PROGRAM, "--dry-run", "--seed", "1", "--output", str(tmp_path)]
    command += ["--parts", "machine", "--call"]
    assert suite.supervise([*command, "first"], tmp_path, ["machine"], 1000)
    record = read(tmp_path, "machine")
    assert record["running"] is None
    assert not (tmp_path / worker.MARKER).exists()
    steps = record["steps"]
    assert steps["alone"]["left_out"].startswith("timed out")
    assert "failed" not in steps["alone"]
    assert steps["several"]["result"]["done"] == ["good"]
    assert steps["several"]["result"]["without"]["bad"].startswith("the process ended with signal SIGSEGV")
    assert steps["works"]["result"] == {}
    assert suite.supervise([*command, "second"], tmp_path, ["machine"], 1000)
    again = read(tmp_path, "machine")["steps"]
    assert again["alone"]["result"] == {}
    assert again["several"] == steps["several"]


@pytest.mark.parametrize("contestant", ["", "triton"])
@pytest.mark.parametrize(("code", "key"), [(1, "left_out"), (-11, "failed")], ids=["timed out", "crash"])
def test_what_becomes_of_a_step_whose_process_died(tmp_path, code, key, contestant):
    record = records.Record(tmp_path, "machine", {}, {}, "first")
    record.begin("copy")
    fate = suite._fate(["worker", "--call", "first"], code, f"code {code}")
    records.settle_running(tmp_path, ["machine"], fate, contestant)
    found = read(tmp_path, "machine")
    assert found["running"] is None
    assert records.progress(tmp_path, ["machine"]) == 1
    if contestant:
        assert found["excluded"]["copy"] == {contestant: fate[key]}
        assert found["steps"] == {}
        again = records.Record(tmp_path, "machine", {}, {}, "first")  # and dies without that contestant too
        again.begin("copy")
        records.settle_running(tmp_path, ["machine"], fate, contestant)
        assert read(tmp_path, "machine")["steps"]["copy"][key] == fate[key]
    else:
        assert found["steps"]["copy"][key] == fate[key]
        assert found["steps"]["copy"].get("call") == ("first" if key == "left_out" else None)


def test_what_was_given_up_is_done_last(tmp_path):
    record = records.Record(tmp_path, "machine", {}, {}, "second")
    kept = {"a": {"left_out": "timed out", "call": "first"}, "b": {"left_out": "timed out", "call": "second"}}
    kept |= {"c": {"left_out": "no time"}, "d": {"result": {}}, "e": {"failed": "wrong"}}
    record._data["steps"] = kept
    steps = [records.Step(name, dict, 1) for name in "abcdef"]
    assert [step.name for step in record.to_do(steps)] == ["c", "f", "a"]
