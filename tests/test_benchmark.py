"""The benchmark: nothing wrong is timed, and what is timed is reported whole."""

import dataclasses
import io
import json
import math
import platform
import subprocess
import sys
import time

import pytest
import torch
from rich.console import Console

from gala_cuda import bench as benchmark
from gala_cuda.bench import peers, report, suite, timing

TINY = benchmark.Settings(batches=(2,), shapes=((12, 3, 5),), contestants=("eager", "reference"), seconds=0.01)
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Short warm-ups; and the allocator stays as it is, for the tests that follow in this process."""
    monkeypatch.setattr(timing, "WARM_UP_SECONDS", 0.01)
    monkeypatch.setattr(timing, "SAMPLE_SECONDS", 0.001)
    monkeypatch.setattr(suite, "pin_allocator", lambda: True)


def tampered(call):
    """A contestant "reference" that computes `call(module, x)`."""

    def build(name, *args):
        contestant = peers.contestant(name, *args)
        if name != "reference":
            return contestant
        return dataclasses.replace(contestant, call=lambda x: call(contestant.module, x))

    return build


def finite(numbers):
    return all(math.isfinite(number) and number > 0 for number in numbers)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dtype", "layout", "contestants"),
    [
        pytest.param(torch.float32, "channels_last", None, id="default"),
        pytest.param(torch.bfloat16, "nchw", ("eager", "reference", "se", "cbam"), id="bfloat16-nchw-peers"),
    ],
)
def test_a_run_is_reported_whole(tmp_path, dtype, layout, contestants):
    settings = dataclasses.replace(TINY, dtype=dtype, layout=layout, contestants=contestants)
    heard = []
    result = benchmark.run(settings, heard.append)
    assert set(result.names) >= set(contestants or {"eager"})
    assert set(result.names).isdisjoint(result.left_out)
    assert len(heard) == 3  # one check, two passes

    data, picture = report.write(result, tmp_path / "new" / "folder")
    plain = json.loads(data.read_text())
    assert plain["settings"]["dtype"] == str(dtype).removeprefix("torch.")
    assert plain["environment"]["versions"]["torch"]
    assert plain["threads"] == torch.get_num_threads()
    (case,) = plain["cases"]
    assert case["shape"] == [2, 12, 3, 5]
    for kind in suite.PASSES:
        assert list(case["timings"][kind]) == result.names
        assert finite(t["median"] for t in case["timings"][kind].values())
        assert finite(ratio for ratios in case["speedup"][kind].values() for ratio in ratios.values())
        assert case["speedup"][kind]["eager"]["eager"] == 1
    assert picture.read_bytes().startswith(b"\x89PNG")

    console = Console(width=200, file=io.StringIO())
    report.print_tables(result, console)
    table = console.file.getvalue()
    assert "2x12x3x5" in table
    assert all(name in table for name in (*result.names, *result.left_out))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        pytest.param(lambda module, x: module(x) * 1.001, "out without grad", id="out"),
        pytest.param(lambda module, x: module(x) * (1 + 0.001 * torch.is_grad_enabled()), "out at", id="out-with-grad"),
        pytest.param(lambda module, x: module(x) * torch.where(x > 9, math.nan, 1.0) + 0 / x.relu(), "out", id="nan"),
        pytest.param(lambda module, x: module(x) + x - x.detach(), "gradient of x", id="gradient-of-x"),
        pytest.param(
            lambda module, x: module(x) + module.m.sum() - module.m.sum().detach(), "gradient of m", id="gradient-of-m"
        ),
    ],
)
def test_a_wrong_contestant_is_refused_before_any_timing(monkeypatch, call, message):
    monkeypatch.setattr(suite, "contestant", tampered(call))
    monkeypatch.setattr(suite, "alternate", lambda *_: pytest.fail("a wrong contestant was timed"))
    with pytest.raises(
        benchmark.WrongResultError, match=rf"reference is wrong, nothing was timed: {message}.*float64 by"
    ):
        benchmark.run(TINY)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param({"batches": ()}, "batches is", id="no-batch"),
        pytest.param({"shapes": ((4, 0, 4),)}, "shapes is", id="empty-shape"),
        pytest.param({"layout": "nhwc"}, "layout is 'nhwc'", id="layout"),
        pytest.param({"contestants": ("eager", "fastest")}, "contestants has 'fastest'", id="unknown"),
        pytest.param({"contestants": ("reference",)}, "at least one of eager", id="no-baseline"),
        pytest.param({"contestants": ("eager", "cuda")}, "'cuda' cannot run: ", id="does-not-run"),
    ],
)
def test_settings_that_cannot_run_are_refused(change, message):
    with pytest.raises(benchmark.BenchmarkError, match=message):
        benchmark.run(dataclasses.replace(TINY, **change))


def test_speedup_is_against_the_fastest_baseline():
    medians = {"eager": 4.0, "compile": 3.0, "cpu": 2.0}
    times = {name: timing.Timing(median, median, median, 7, 1) for name, median in medians.items()}
    case = suite.Case((1, 1, 1, 1), {}, {}, {"forward": times})
    assert case.speedup("forward", "cpu") == 1.5
    assert case.speedup("forward", "cpu", "eager") == 2
    assert case.speedup("forward", "eager") == 0.75


def test_calls_alternate():
    order = []
    calls = {name: lambda name=name: (order.append(name), time.sleep(0.002)) for name in ("a", "b")}
    times = timing.alternate(calls, seconds=0.0, device=CPU)
    rounds = order[-2 * timing.ROUNDS[0] :]
    assert rounds == ["a", "b", "b", "a"] * 3 + ["a", "b"]
    assert [t.rounds for t in times.values()] == [timing.ROUNDS[0]] * 2
    assert all(0.002 <= t.first_quartile <= t.median <= t.third_quartile for t in times.values())


def test_a_run_without_time_calls_once_a_sample():
    times = timing.alternate({"a": lambda: None}, seconds=0.0, device=CPU)
    assert (times["a"].rounds, times["a"].calls_per_round) == (timing.ROUNDS[0], 1)


@pytest.mark.slow
def test_the_formula_is_compiled_by_the_compiler_asked_for():
    compiled = peers.contestant("compile", 12, 4, torch.float32, CPU, compiler="aot_eager")
    eager = peers.contestant("eager", 12, 4, torch.float32, CPU)
    x = torch.randn(2, 12, 3, 5)
    torch.testing.assert_close(compiled.call(x), eager.call(x))
    with pytest.raises(torch._dynamo.exc.InvalidBackend, match="'nobody'"):
        peers.contestant("compile", 12, 4, torch.float32, CPU, compiler="nobody")


def test_max_autotune_starts_a_step_with_each_call(monkeypatch):
    """Otherwise it might overwrite an output that a pending backward still needs."""
    heard = []
    monkeypatch.setattr(torch, "compile", lambda module, **options: heard.append(options) or module)
    monkeypatch.setattr(torch.compiler, "cudagraph_mark_step_begin", lambda: heard.append("step"))
    tuned = peers.contestant("max-autotune", 12, 4, torch.float32, CPU)
    x = torch.randn(2, 12, 3, 5)
    assert torch.equal(tuned.call(x), tuned.module(x))
    tuned.call(x)
    assert heard == [{"dynamic": False, "mode": "max-autotune"}, "step", "step"]


@pytest.mark.parametrize(
    ("function", "kept"),
    [
        pytest.param(lambda x: x * 2, 0, id="nothing"),
        pytest.param(lambda x: x.sin(), 0, id="only-x"),
        pytest.param(lambda x: x.exp(), 1, id="out"),
        pytest.param(lambda x: x.exp().tanh(), 2, id="two"),
        pytest.param(lambda x: (x.exp(), x.sigmoid())[0], 1, id="dropped-branch"),
        pytest.param(lambda x: x.exp()[:1].exp(), 1.25, id="whole-storage"),
    ],
)
def test_memory_kept_for_backward(function, kept):
    x = torch.randn(4, 3, requires_grad=True)
    assert timing.saved_bytes(function, x, ()) == kept * x.nbytes


@pytest.mark.slow
def test_the_allocator_is_pinned_where_it_is_glibc():
    code = "from gala_cuda.bench.timing import pin_allocator; print(pin_allocator())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(platform.libc_ver()[0] == "glibc")
