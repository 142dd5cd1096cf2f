"""What the GPU suite does first, for how long, what it compiles before, and how its results travel."""

import gzip
import io
import json
import os
import subprocess
import sys
import tarfile
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from benchmarks.gpu import archive, extension, forms, kernels, profiled, records, schedule, worker
from benchmarks.gpu.environment import ROOT
from benchmarks.gpu.forms import CLUSTER, Kind
from benchmarks.gpu.records import Step
from benchmarks.gpu.settings import DRY_RUN, GPU, Context, cluster_step
from gala_cuda import backends
from gala_cuda.backends.triton import launch
from gala_cuda.backends.triton.config import Multiprocessors

CPU = torch.device("cpu")
FIRST_CALL, PREPARED = 540, 60  # seconds


def names(steps):
    return [step.name for step in steps]


def test_shares_are_those_of_the_chosen_parts():
    assert schedule.portion("networks", ["networks"]) == 1
    both = [schedule.portion(part, ["operators", "networks"]) for part in ("operators", "networks")]
    assert sum(both) == pytest.approx(1)
    weights = schedule.PARTS["operators"] / schedule.PARTS["networks"]
    assert both[0] / both[1] == pytest.approx(weights)
    whole = [Step(f"{i}", dict, 1) for i in range(100)]
    assert len(schedule.expected({"networks": whole}, 50.5)["networks"]) == 50
    assert len(schedule.expected({"machine": [], "networks": whole}, 50.5)["networks"]) == 50  # nothing to do there


def test_time_that_a_part_leaves_is_for_those_after_it():
    few, many = [Step("a", dict, 1)], [Step(f"{i}", dict, 1) for i in range(100)]
    found = schedule.expected({"operators": few, "networks": many}, 60.5)
    assert len(found["operators"]) == 1
    assert len(found["networks"]) == 59
    found = schedule.expected({"operators": many, "networks": many}, 110.5)
    assert len(found["operators"]) == 60  # 60 of 110
    assert len(found["networks"]) == 50


def test_a_first_call_brings_what_is_worth_most(tmp_path):
    """Nine minutes on a GPU: kernels alone, operators at N = 256 and 32, correctness, a network against GALA's."""
    context = Context(torch.device("cuda:0"), GPU, 0, tmp_path)
    todo = {part: worker.STEPS[part](context) for part in schedule.MEASURED}
    found = schedule.expected(todo, FIRST_CALL - PREPARED)
    assert schedule.MEASURED[0] == "kernels"
    assert names(found["kernels"])[0] == "triton 256x1024x14x14 bfloat16 channels_last"
    assert names(found["kernels"]) == names(todo["kernels"])
    assert names(found["operators"]) == [f"{n}x1024x14x14 bfloat16 channels_last" for n in (256, 32)]
    of_gpus = {f"{name} {dtype} {layout}" for name in ("triton", "cuda", CLUSTER)
               for dtype in ("bfloat16", "float32", "float16") for layout in ("channels_last", "nchw")}  # fmt: skip
    assert of_gpus <= set(names(found["correctness"]))
    assert names(found["networks"])[0] == "training, plain and GALA"
    alone = schedule.expected({"networks": todo["networks"]}, FIRST_CALL - PREPARED)
    assert names(alone["networks"]) == names(todo["networks"])


@pytest.fixture
def usable(monkeypatch):
    """Every backend runs everywhere, on a GPU like the H100 where it is asked for."""
    monkeypatch.setattr(backends, "why_not", lambda name, x: None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))


def test_a_form_that_is_not_there_is_left_out(usable):
    wide = Kind((2, 1024, 14, 14), 256, torch.bfloat16, "channels_last")
    assert forms.why_not("triton", wide, CPU) is None
    assert forms.why_not(CLUSTER, wide, CPU) is None
    for change in ({"layout": "nchw"}, {"dtype": torch.float32}, {"reduced": 257}, {"shape": (2, 96, 7, 7)}):
        assert forms.why_not(CLUSTER, wide._replace(**change), CPU).startswith("no cluster form: it takes"), change


def test_an_image_that_fits_into_no_cluster_is_left_out(usable, tmp_path):
    """Part "kernels" has seen what is launched at a stage; of others nothing is known."""
    context = Context(CPU, DRY_RUN, 1, tmp_path)
    record = records.Record(tmp_path, "kernels", {}, {})
    for side, launched in ((56, {"void gather_kernel<1>": 1.0}), (28, {"void image_kernel<64>": 1.0}), (7, {})):
        with record.step(cluster_step((256, side, side))) as entry:
            entry["result"] = {"seconds": {"in calls": launched}}
    kind = Kind((2, 256, 56, 56), 64, torch.bfloat16, "channels_last")
    reason = "no cluster form: an image does not fit into the shared memory of a cluster"
    assert context.why_not(CLUSTER, kind) == reason
    assert context.why_not("cuda", kind) is None
    for side in (28, 14, 7):
        assert context.why_not(CLUSTER, kind._replace(shape=(2, 256, side, side))) is None
    titles = names(worker.STEPS["kernels"](replace(context, sizes=GPU)))
    assert titles[-4:] == [cluster_step(stage) for stage in GPU.stages]


@pytest.mark.parametrize(
    ("signature", "name"),
    [
        (
            "void gala::cuda::scale_kernel<gala::cuda::bf16, 8, true>(gala::cuda::ScaleParams)",
            "scale_kernel<bf16, 8, true>",
        ),
        ("gala::cuda::sum_kernel(gala::cuda::SumParams)", "sum_kernel"),
        ("scale_backward", "scale_backward"),
    ],
)
def test_kernels_go_by_their_names(signature, name):
    assert profiled.short(signature) == name


def test_nothing_is_timed_where_it_was_profiled(tmp_path, monkeypatch):
    context = Context(CPU, DRY_RUN, 1, tmp_path)
    monkeypatch.setattr(worker.profiled, "profiles", 0)
    steps = [Step(name, lambda: setattr(worker.profiled, "profiles", 1) or {}, 1) for name in "ab"]
    monkeypatch.setitem(worker.STEPS, "kernels", lambda _: steps)
    with pytest.raises(SystemExit) as ended:
        worker.run(context, ["kernels", "machine"], 1000)
    assert ended.value.code == worker.RESTART
    found = records.load(tmp_path, ["kernels", "machine"])
    assert list(found) == ["kernels"]
    assert list(found["kernels"]["steps"]) == ["a", "b"]


def test_correctness_leaves_out_the_problems_that_a_form_lacks(usable, tmp_path):
    context = Context(CPU, replace(DRY_RUN, problems=(((1, 8, 3, 3), 2), ((1, 1024, 3, 3), 256))), 1, tmp_path)
    steps = {step.name: step for step in worker.STEPS["correctness"](context)}
    found = steps["reference bfloat16 channels_last"].run()
    assert (found["problems"], found["left_out"]) == (2, {})
    with pytest.raises(records.UnavailableError, match="no cluster form: it takes bfloat16 or float16, channels_last"):
        steps["cuda-cluster float32 channels_last"].run()


def test_whole_calls_are_timed_overlapped_and_not(monkeypatch, tmp_path):
    """By the attribute of the launches alone; afterwards it is as before."""
    launcher, seen = SimpleNamespace(launch_pdl=True), []
    original = launch.KernelLaunch.__call__

    def stand_in(step, *tensors, stream):
        step.compiled = None  # the interpreter's launch
        original(step, *tensors, stream=stream)
        step.compiled = SimpleNamespace(run=launcher)
        seen.append(launcher.launch_pdl)

    context = Context(CPU, DRY_RUN, 1, tmp_path)
    kind = Kind((2, 16, 5, 5), 4, torch.bfloat16, "channels_last")
    with pytest.raises(records.UnavailableError, match="no programmatic dependent launch on cpu"):
        kernels._overlapped(context, kind)
    monkeypatch.setattr(kernels, "multiprocessors", lambda device: Multiprocessors(2, 64 << 10, pdl=True))
    monkeypatch.setattr(launch.KernelLaunch, "__call__", stand_in)
    times = kernels._overlapped(context, kind)["seconds"]["warm"]
    assert set(times) == {"all, overlapped", "all, one after the other"}
    assert set(seen) == {True, False}
    assert launcher.launch_pdl


@pytest.mark.slow
def test_what_is_compiled_before_is_what_is_launched():
    """Calls of the operator as steps make them, stopped where Triton has specialised them for an H100."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "tests.compared_launches"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 150


@pytest.mark.slow
def test_the_pool_compiles_into_tritons_cache(tmp_path):
    """In processes of its own, and never in the interpreter, though this process may have it."""
    program = """
import torch
from benchmarks.gpu.forms import Kind
from benchmarks.gpu.compiler import Compiler
from benchmarks.gpu.predict import HOPPER
from benchmarks.gpu.uses import Use
if __name__ == "__main__":
    kind = Kind((2, 64, 7, 7), 16, torch.bfloat16, "channels_last")
    with Compiler(1) as compiler:
        launches = compiler.collect([Use(kind, torch.float32, save=False)], HOPPER)
        small = [launch for launch in launches if launch.kernel == "prepare"]
        print(len(launches), [(done.kernel, done.problem) for done in compiler.compile(2 * small, 1000)])
"""
    script = tmp_path / "program.py"
    script.write_text(program)
    environment = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path / "cache"), "TRITON_INTERPRET": "1"}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    done = subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "5 [('prepare', None), ('prepare', None)]", done.stderr
    assert len(list((tmp_path / "cache").rglob("*.cubin"))) == 1


@pytest.mark.parametrize(
    ("program", "seconds", "became", "failure"),
    [
        ("import sys; assert sys.argv[1:] == ['build_ext', '--inplace']", 60, "built, in", ""),
        ("raise SystemExit('no compiler')", 60, "no compiler", "no compiler"),
        ("import time; time.sleep(60)", 0.1, "not built: 0 s did not suffice", ""),
    ],
    ids=["built", "fails", "slow"],
)
def test_the_extension_is_built_by_setup_py(tmp_path, monkeypatch, program, seconds, became, failure):
    (tmp_path / "setup.py").write_text(program)
    monkeypatch.setattr(extension, "ROOT", tmp_path)
    with extension.Build("90a") as build:
        assert build.finish(seconds).startswith(became)
    assert build.failure == failure
    assert build._process.poll() is not None


def test_architectures_of_gpus():
    assert [extension.architecture(found) for found in ((8, 0), (8, 6), (9, 0), (10, 0), (12, 0))] == [
        "80", "86", "90a", "100", "120",
    ]  # fmt: skip


def test_all_results_are_in_one_archive(tmp_path):
    record = records.Record(tmp_path, "machine", {"device": "NVIDIA H200", "driver": "580", "versions": {}}, {})
    with record.step("copy") as entry:
        entry["result"] = {}
    with record.step("lost"):
        raise KeyError("gpu")
    record.leave_out("matrix", "no time")
    (tmp_path / "times.png").write_bytes(b"picture")
    (tmp_path / worker.MARKER).write_bytes(b"no result")
    found = records.load(tmp_path, ["machine"])
    path = archive.write(found, tmp_path)
    first = path.read_bytes()
    os.utime(tmp_path / "times.png", (0, 0))
    assert archive.write(found, tmp_path).read_bytes() == first
    with tarfile.open(fileobj=io.BytesIO(gzip.decompress(first))) as packed:
        assert packed.getnames() == ["about.json", "machine.json", "times.png"]
        about = json.load(packed.extractfile("about.json"))
        assert json.load(packed.extractfile("machine.json")) == found["machine"]
    assert about["environments"] == [{"device": "NVIDIA H200", "driver": "580", "versions": {}}]
    assert about["first"] == found["machine"]["steps"]["copy"]["started"]
    assert about["steps"] == {"machine": {"result": 1, "failed": 1, "left_out": 1}}
