"""`gala-cuda tune` in Triton's interpreter, with made-up clocks: what it tries, refuses, chooses and writes."""

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed")

from triton.runtime.errors import OutOfResources

from gala_cuda.backends.squash import Squash
from gala_cuda.backends.triton import config as table
from gala_cuda.backends.triton import kept
from gala_cuda.backends.triton.config import Config, TableError, Tile
from gala_cuda.bench import passes, search, timing, tune
from gala_cuda.bench.candidates import Shape, candidates
from gala_cuda.bench.tuned_row import TileError, TunedRow
from gala_cuda.cli.main import main
from gala_cuda.testing import exact

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
SETTINGS = tune.Settings(((32, 2, 2),), (1,), (torch.float32,), ("channels_last",), device=str(DEVICE))
TWO_SIZES = replace(SETTINGS, batches=(1, 2))


def tile(kernel: str, *sizes: int, warps: int = 4, stages: int = 2) -> Tile:
    return Tile(tuple(zip(table.SIZES[kernel], sizes, strict=True)), warps, stages)


START = Config(
    gather=tile("gather", 16, 16, 32),
    scale=tile("scale", 16, 32),
    scale_backward=tile("scale_backward", 16, 32),
    grad_x=tile("grad_x", 16, 32, 16),
    local_products=tile("local_products", 16, 32, 16),
)


@pytest.fixture(autouse=True)
def start(tmp_path, monkeypatch):
    """The table in use: two widths of each kind, for the oldest architecture."""
    kinds = [(size, lanes, reduced) for size in (2, 4) for lanes in (True, False) for reduced in (16, 64)]
    rows = [(dict(zip(table.KIND, (80, *kind), strict=True)), START) for kind in kinds]
    path = tmp_path / "start.json"
    table.write(path, rows, [])
    monkeypatch.setenv("GALA_TRITON_TABLE", str(path))
    kept.clear_plans()
    yield path
    kept.clear_plans()


def clock(seconds, spread: float = 0.0):
    """A clock for which a pass takes `seconds(pass)`."""

    def time(calls, _seconds, _device):
        taken = {name: seconds(call) for name, call in calls.items()}
        return {name: timing.Timing(t, t * (1 - spread), t * (1 + spread), 7, 1) for name, t in taken.items()}

    return time


def prefer(kernel: str, wanted: Tile, spread: float = 0.0):
    """A clock that runs the faster the nearer `kernel`'s tile is to `wanted`."""

    def seconds(call) -> float:
        found, best = getattr(call.config, kernel).entry, wanted.entry
        return 1.0 + sum(abs(found[name] / best[name] - 1) for name in best)

    return clock(seconds, spread)


@pytest.fixture
def unchecked(monkeypatch):
    """Without the comparison with float64, which takes longest; other tests have it."""
    monkeypatch.setattr(search, "check", lambda example, _, kernel, row: example.plan(passes.PARTS[kernel].kind, row))


def find(monkeypatch, tmp_path, kernel, time, settings=SETTINGS) -> TunedRow:
    """The only row of `settings`, tuned for one kernel."""
    monkeypatch.setattr(search, "KERNELS", (kernel,))
    (found,) = tune.tune(settings, tmp_path / "found.json", time=time)
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kernel", "wanted"),
    [
        ("gather", tile("gather", 16, 32, 32, stages=4)),
        ("scale", tile("scale", 16, 16, warps=8)),
        ("scale_backward", tile("scale_backward", 16, 16, warps=8)),
        ("grad_x", tile("grad_x", 16, 32, 32, stages=1)),
        ("local_products", tile("local_products", 16, 32, 32)),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_the_fastest_tile_is_found(monkeypatch, tmp_path, unchecked, kernel, wanted):
    """Also where it is several steps away, each of them faster."""
    found = find(monkeypatch, tmp_path, kernel, prefer(kernel, wanted))
    assert found.after == replace(START, **{kernel: wanted})
    assert found.gains[kernel] > 1
    assert not found.dropped


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "name"), [(torch.float32, "map"), (torch.bfloat16, "grad v_shrink")])
def test_every_kernel_is_checked(dtype, name):
    """Right results pass; of a kernel's own plan, the launch with its name is looked at for spills."""
    example = passes.Example(Shape(2, 32, 2, 2, 8), dtype, "channels_last", DEVICE, full=True)
    want = exact(example.drawn)
    found = {kernel: part.launch(passes.check(example, want, kernel, START)) for kernel, part in passes.PARTS.items()}
    assert {kernel: made.kernel.__name__ for kernel, made in found.items()} == {name: name for name in table.KERNELS}
    with pytest.raises(TileError, match=f"wrong: {name} at"):
        passes.check(example, want | {name: 1.1 * want[name]}, "gather", START)


@pytest.mark.slow
def test_what_is_faster_by_less_than_the_spread_is_not_taken(monkeypatch, tmp_path):
    wanted = tile("scale", 16, 32, warps=8)  # 1.5 times faster
    assert find(monkeypatch, tmp_path, "scale", prefer("scale", wanted, spread=0.6)).after == START


@pytest.fixture
def fault(monkeypatch):
    """Makes passes with a tile of scale fail: `fault(tile, error)` raises `error`, or without it spoils `out`."""

    def arrange(bad: Tile, error: Exception | None = None) -> None:
        planned, run = passes.Example.plan, passes.Example.forward
        bad_plans = []

        def plan(self, kind, config):
            made = planned(self, kind, config)
            if config.scale == bad:
                bad_plans.append(made)
            return made

        def forward(self, plan):
            outputs = run(self, plan)
            if any(plan is each for each in bad_plans):
                if error is not None:
                    raise error
                outputs.out[-1, -1] += 1
            return outputs

        monkeypatch.setattr(passes.Example, "plan", plan)
        monkeypatch.setattr(passes.Example, "forward", forward)

    return arrange


@pytest.mark.slow
@pytest.mark.parametrize(
    ("error", "reason"),
    [
        pytest.param(None, "wrong: out at (1, 32, 2, 2), float32, is off float64 by", id="wrong"),
        pytest.param(OutOfResources(300, 200, "shared memory"), "OutOfResources: out of resource: shared", id="memory"),
        pytest.param(RuntimeError("PassManager::run failed"), "RuntimeError: PassManager::run failed", id="compiler"),
    ],
)
def test_a_tile_that_cannot_be_used_is_named_and_never_chosen(monkeypatch, tmp_path, fault, error, reason):
    wanted = tile("scale", 16, 32, warps=8)
    fault(wanted, error)
    found = find(monkeypatch, tmp_path, "scale", prefer("scale", wanted))
    assert found.after == START
    ((kernel, name, why),) = found.dropped
    assert (kernel, name) == ("scale", "16x32, 8 warps, 2 stages")
    assert why.startswith(reason)


@pytest.mark.slow
def test_a_tile_in_use_that_does_not_run_gives_way(monkeypatch, tmp_path, fault):
    """To the first that does."""
    fault(START.scale, OutOfResources(300, 200, "shared memory"))
    found = find(monkeypatch, tmp_path, "scale", clock(lambda call: 1.0))
    assert found.after.scale == tile("scale", 16, 16)
    assert found.speedup == {"forward": None, "backward": None}


def test_a_row_none_of_whose_tiles_runs_is_refused(monkeypatch, tmp_path):
    def fail(self, plan):
        raise OutOfResources(300, 200, "shared memory")

    monkeypatch.setattr(passes.Example, "forward", fail)
    with pytest.raises(tune.BenchmarkError, match=r"gather runs with no tile that was tried; OutOfResources"):
        find(monkeypatch, tmp_path, "gather", clock(lambda call: 1.0))
    assert not (tmp_path / "found.json").exists()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["forward", "backward"])
def test_a_pass_is_a_call_to_time(kind):
    example = passes.Example(Shape(1, 16, 2, 2, 4), torch.float32, "nchw", DEVICE)
    assert timing.alternate({kind: passes.Pass(example, START, kind)}, 1e-3, DEVICE)[kind].median > 0


def test_local_memory_is_refused():
    """As Triton counts it: 32-bit words; the interpreter compiles nothing."""
    for compiled in (None, SimpleNamespace(n_spills=0)):
        passes.refuse_spills(SimpleNamespace(scale=SimpleNamespace(compiled=compiled)), "scale")
    with pytest.raises(TileError, match="uses 8 bytes of local memory"):
        passes.refuse_spills(SimpleNamespace(scale=SimpleNamespace(compiled=SimpleNamespace(n_spills=2))), "scale")


@pytest.mark.slow
def test_the_written_table_is_used(monkeypatch, tmp_path, start):
    """Through GALA_TRITON_TABLE: the tuned row; the other rows are as they were."""
    wanted = replace(START, scale=tile("scale", 16, 16))

    def seconds(call) -> float:
        return 1.0 + call.config.scale["CHANNELS"]

    found = find(monkeypatch, tmp_path, "scale", clock(seconds), TWO_SIZES)
    before, path = table.read(start).rows, tmp_path / "found.json"
    written = table.read(path)
    arch = table.architecture(DEVICE)
    row = {"arch": arch, "bytes": 4, "channels_last": True, "reduced": 16}
    assert found.where == row
    assert [each for each in written.rows if each[0]["arch"] == 80 and each[0] != row] == [
        each for each in before if each[0] != row
    ]
    assert [config for where, config in written.rows if where == row] == [wanted]
    (entry,) = written.measured
    assert entry["for"] == row
    assert entry["shapes"] == ["1x32x2x2", "2x32x2x2"]
    assert entry["speedup"] == {
        "forward": round(found.speedup["forward"], 3),
        "backward": pytest.approx(33 / 17, abs=1e-3),
    }

    monkeypatch.setenv("GALA_TRITON_TABLE", str(path))
    example = passes.Example(Shape(2, 32, 2, 2, 8), torch.float32, "channels_last", DEVICE)
    torch.ops.gala_cuda.gala(example.x, *example.w, None, Squash.TANH, False, False, "triton")
    (plan,) = kept._plans.values()
    assert plan.scale.constants[-3:] == (16, 16, wanted.scale.stages)
    monkeypatch.setattr(search, "candidates", lambda *_: [])
    again = tune.tune(SETTINGS, path, time=clock(lambda call: 1.0))
    assert again[0].before == wanted
    assert [entry["shapes"] for entry in table.read(path).measured] == [["1x32x2x2"]]


def test_rows_of_a_new_architecture_are_added_at_all_widths(start):
    rows = list(table.read(start).rows)
    old = len(rows)
    settings = tune.Settings(((32, 4, 4), (128, 2, 2), (48, 2, 2)), (1,), (torch.bfloat16, torch.float16))
    work = tune._work(settings, rows, 90)
    assert [where for where, _ in rows[old:]] == [
        {"arch": 90, "bytes": 2, "channels_last": True, "reduced": reduced} for reduced in (16, 64)
    ]
    shapes = {
        rows[index][0]["reduced"]: [shape.channels for shape, _ in problems] for (index, _), problems in work.items()
    }
    assert shapes == {16: [32, 48, 32, 48], 64: [128, 128]}


def test_candidates():
    """One step each; none that the problem or the registers have no room for."""
    shapes = [Shape(2, 256, 8, 8, 64)]
    found = {str(each) for each in candidates("gather", tile("gather", 64, 64, 512, warps=4, stages=5), shapes)}
    assert found == {
        "32x64x512, 4 warps, 5 stages",
        "64x32x512, 4 warps, 5 stages",
        "64x128x512, 4 warps, 5 stages",
        "64x64x32, 4 warps, 5 stages",
        "64x64x512, 2 warps, 5 stages",
        "64x64x512, 8 warps, 5 stages",
        "64x64x512, 4 warps, 4 stages",
    }
    found = {str(each) for each in candidates("scale_backward", tile("scale_backward", 16, 16), [shapes[0]])}
    assert found == {
        "8x16, 4 warps, 2 stages",
        "32x16, 4 warps, 2 stages",
        "16x32, 4 warps, 2 stages",
        "16x16, 2 warps, 2 stages",
        "16x16, 8 warps, 2 stages",
        "16x16, 4 warps, 1 stages",
        "16x16, 4 warps, 3 stages",
    }
    wide = [Shape(2, 1024, 32, 32, 64)]
    found = {str(each) for each in candidates("scale", tile("scale", 64, 256), wide)}
    assert {each for each in found if "2 stages" in each} == {
        "32x256, 4 warps, 2 stages",
        "64x128, 4 warps, 2 stages",
        "64x256, 8 warps, 2 stages",
    }


def test_a_table_that_would_be_lost_is_refused(tmp_path):
    path = tmp_path / "other.json"
    path.write_text("precious")
    with pytest.raises(tune.BenchmarkError, match=r"other.json exists and is not the table in use"):
        tune.tune(SETTINGS, path, time=clock(lambda call: 1.0))
    assert path.read_text() == "precious"


def test_no_gpu_is_an_error(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert main(["tune"]) == 1
    assert "tune measures on a GPU; device is cuda, and torch sees" in capsys.readouterr().err
    assert not (tmp_path / "cache").exists()


def test_the_command(monkeypatch, tmp_path, capsys):
    """Its arguments, what it prints, and where it writes by default."""
    given = []

    def stand_in(settings, output, say):
        given.append((settings, output))
        say("gather: 16x16x32", False)
        where = dict(zip(table.KIND, (90, 4, True, 16), strict=True))
        after = replace(START, scale=tile("scale", 16, 16))
        gains = dict.fromkeys(table.KERNELS, 1.0) | {"scale": 1.25}
        return [TunedRow(where, START, after, gains, {"forward": 1.5, "backward": None}, [("scale", "t", "why")])]

    monkeypatch.setattr(tune, "tune", stand_in)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    chosen = "tune --shape 32x4x4 --batch 1 2 --dtype float32 --layout channels_last nchw --seconds 2"
    assert main(chosen.split()) == 0
    path = tmp_path / "gala_cuda" / "triton-table.json"
    wanted = tune.Settings(((32, 4, 4),), (1, 2), (torch.float32,), ("channels_last", "nchw"), 2.0)
    assert given == [(wanted, path)]
    printed = capsys.readouterr().out
    for text in ("16x16, 4 warps, 2 stages", "1.250x", "1.500x", "not known", "not timed: sm_90", "scale t: why"):
        assert text in printed
    assert f"export GALA_TRITON_TABLE={path}" in printed


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data.pop("rows"), 'malformed; expected {"rows"'),
        (lambda data: data["rows"][3].pop("for"), "row 3 (from 0): for is None; expected arch, bytes, channels_last"),
        (lambda data: data["rows"][1].pop("scale"), "row 1 (from 0): scale is None; expected PIXELS, CHANNELS, warps"),
        (lambda data: data["rows"][1]["scale"].update(PIXELS=24), "scale PIXELS is 24; expected a power of two"),
        (lambda data: data["rows"][0]["gather"].update(warps="4"), "gather warps is '4'; expected a whole number"),
        (lambda data: data["rows"].clear(), "has no row for architecture"),
    ],
    ids=["rows", "for", "kernel", "size", "warps", "empty"],
)
def test_a_malformed_table_is_named(start, change, message):
    data = json.loads(start.read_text())
    change(data)
    start.write_text(json.dumps(data))
    table.read.cache_clear()
    with pytest.raises(TableError) as raised:
        table.lookup(torch.empty(1, 8, 2, 2, device=DEVICE), True, 2)
    assert f"the table of tiles {start} " in str(raised.value)
    assert message in str(raised.value)


def test_further_entries_of_a_row_are_not_read(start):
    """Such as those of an earlier version."""
    data = json.loads(start.read_text())
    for row in data["rows"]:
        row.update(other={"ROWS": 16}, chosen=None)
    start.write_text(json.dumps(data))
    table.read.cache_clear()
    assert table.lookup(torch.empty(1, 8, 2, 2, device=DEVICE), True, 2) == START


@pytest.mark.parametrize(("text", "message"), [(None, "cannot be read: No such file"), ("{", "is not JSON")])
def test_a_missing_table_is_named(start, tmp_path, text, message):
    start.unlink()
    if text is not None:
        start.write_text(text)
    table.read.cache_clear()
    with pytest.raises(TableError, match=message):
        tune.tune(SETTINGS, tmp_path / "found.json", time=clock(lambda call: 1.0))
