"""The Triton backend's plans: what tells them apart, and which row of the table and which tiles they take."""

from types import SimpleNamespace

import pytest
import torch

from gala_cuda.backends import triton as backend
from gala_cuda.backends.interface import BackwardCall, ForwardCall
from gala_cuda.backends.squash import Squash
from gala_cuda.testing import Case, draw, operator

pytest.importorskip("triton", reason="Triton is not installed")

from test_triton import DEVICE, table, to_device  # noqa: F401
from triton import knobs

from gala_cuda.backends.triton import config, kept, launch
from gala_cuda.backends.triton.config import Multiprocessors
from gala_cuda.backends.triton.problem import FEWEST_ROWS, Problem, Rows, even_parts


@pytest.mark.parametrize(("images", "rows"), [(256, 128), (66, 128), (65, 64), (32, 64), (1, 64)])
def test_a_batch_too_small_for_all_multiprocessors_is_cut_finer(images, rows, monkeypatch):
    """Into tiles of half as many rows, never below what the tensor cores take."""
    monkeypatch.setattr("gala_cuda.backends.triton.problem.multiprocessors", lambda _: Multiprocessors(132, 64 << 10))
    problem = draw(Case((images, 8, 16, 16), 2, torch.bfloat16, layout="channels_last"))
    p = Problem.of(problem.x, problem.w, Squash.TANH, "tf32")
    assert Rows.filling(p, 128).size == rows
    assert Rows.filling(p, FEWEST_ROWS).size == FEWEST_ROWS


@pytest.mark.parametrize(
    ("tiles", "blocks", "at_once", "beginning", "parts"),
    [
        pytest.param(392, 32, 264, 2, 2, id="1.5 rounds become 3 of half the length"),
        pytest.param(98, 32, 396, 2, 4, id="one full round"),
        pytest.param(392, 32, 132, 2, 1, id="2.97 rounds stay"),
        pytest.param(4, 32, 264, 2, 32, id="a program for each block"),
        pytest.param(1, 2**26, 264, 2, 64, id="no more than can be of use"),
    ],
)
def test_work_is_divided_to_fill_the_last_round_of_programs(tiles, blocks, at_once, beginning, parts):
    assert even_parts(tiles, blocks, at_once, beginning) == parts


def test_profilers_are_told_of_launches_and_cost_nothing_where_there_are_none():
    ran = []

    class Compiled:
        function, packed_metadata = "function", (4, 1, 0)

        def run(self, *arguments):
            ran.append(arguments)

        def __getitem__(self, grid):
            return lambda *arguments, stream: ran.append(("told", grid, stream, *arguments))

    kernel = SimpleNamespace(arg_names=["x", "sizes", "PDL", "BLOCK", "STAGES"])
    step = launch.KernelLaunch(
        kernel, (2, 4), ((7, 8),), {"PDL": True, "BLOCK": 16}, config.Tile((), warps=4, stages=3)
    )
    assert step.options["launch_pdl"]
    step.compiled = Compiled()
    x = torch.zeros(1)
    step(x, stream=5)
    assert ran.pop() == (6, 1, 1, 5, "function", (4, 1, 0), None, None, None, x, (7, 8), True, 16, 3)
    knobs.runtime.launch_enter_hook.add(print)
    try:
        step(x, stream=5)
    finally:
        knobs.runtime.launch_enter_hook.remove(print)
    assert ran.pop() == ("told", (6, 1, 1), 5, x, (7, 8), True, 16, 3)


@pytest.mark.parametrize(
    ("capability", "driver", "chosen", "pdl"),
    [
        ((9, 0), 12030, None, True), ((12, 0), 13000, "1", True), ((9, 0), 13000, "0", False),
        ((9, 0), 12020, "1", False), ((8, 9), 13000, "1", False),
    ],
)  # fmt: skip
def test_kernels_overlap_where_gpu_and_driver_can_and_nobody_forbids_it(capability, driver, chosen, pdl, monkeypatch):
    found = SimpleNamespace(multi_processor_count=132, shared_memory_per_multiprocessor=228 << 10)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: found)
    monkeypatch.setattr(config, "driver_version", lambda: driver)
    monkeypatch.delenv("GALA_TRITON_PDL", raising=False)
    if chosen is not None:
        monkeypatch.setenv("GALA_TRITON_PDL", chosen)
    assert config.multiprocessors(torch.device("cuda:0")) == Multiprocessors(132, 228 << 10, pdl)


def test_launches_of_a_call(monkeypatch):
    """With float32 weights for bfloat16: more launches cost every small batch."""
    ran = []
    call = launch.KernelLaunch.__call__
    monkeypatch.setattr(
        launch.KernelLaunch, "__call__", lambda *args, **on: (ran.append(args[0].kernel.__name__), call(*args, **on))
    )
    p = to_device(draw(Case((1, 8, 2, 2), 2, torch.bfloat16, torch.float32, "channels_last")))
    _, _, stats, relu_mask = backend.forward(ForwardCall(p.x, p.w, None, Squash.TANH, False, True))
    assert ran == ["prepare", "gather", "shrink", "expand", "scale"]  # with more than 8 images also finish_hidden
    ran.clear()
    backend.backward(BackwardCall(p.grad_out, None, p.x, p.w, None, stats, relu_mask, Squash.TANH, True, True))
    assert ran == [
        "expand_and_prepare", "scale_backward", "grad_hidden", "finish_and_weigh", "local_products", "small_grads",
        "grad_x",
    ]  # fmt: skip


def test_plans_are_made_once_and_told_apart(table):  # noqa: F811
    """They differ by strides and alignment, on which the kernels are specialised."""
    table()
    problem = to_device(draw(Case((2, 16, 4, 4), 4)))
    call = operator("triton")
    call(problem.x, problem.w, None, "tanh", False)
    call(problem.x.clone(), problem.w, None, "tanh", False)
    assert len(kept._plans) == 1
    call(problem.x.to(memory_format=torch.channels_last), problem.w, None, "tanh", False)
    shifted = torch.empty(problem.x.numel() + 1, device=DEVICE)[1:].view(problem.x.shape)
    call(shifted.copy_(problem.x), problem.w, None, "tanh", False)
    assert len(kept._plans) == 3


def test_backward_of_misaligned_statistics_has_a_plan_of_its_own(table):  # noqa: F811
    """vmap hands over such statistics, slice by slice."""
    table()
    problem = to_device(draw(Case((1, 6, 3, 3), 2)))
    _, _, stats, relu_mask = backend.forward(ForwardCall(problem.x, problem.w, None, Squash.TANH, False, True))
    several = torch.cat([stats, stats])  # of 17 numbers each: the second row is off a 16-byte boundary
    kept.clear_plans()

    def backward(stats):
        call = BackwardCall(
            problem.grad_out, None, problem.x, problem.w, None, stats, relu_mask, Squash.TANH, True, True
        )
        return backend.backward(call)

    (grad_x, grad_w, _), (grad_x_of_slice, grad_w_of_slice, _) = backward(stats), backward(several[1:])
    assert len(kept._plans) == 2
    assert torch.equal(grad_x, grad_x_of_slice)
    assert all(torch.equal(a, b) for a, b in zip(grad_w[:6], grad_w_of_slice[:6], strict=True))


def test_rows_of_the_table_are_chosen_by_architecture_and_width():
    def row(arch: int, reduced: int):
        return {"arch": arch, "bytes": 2, "channels_last": True, "reduced": reduced}, f"{arch}/{reduced}"

    rows = [row(80, 64), row(80, 256), row(86, 64), row(90, 64), row(90, 256)]
    wanted = {(80, 10): "80/64", (89, 64): "86/64", (90, 65): "90/256", (100, 999): "90/256", (120, 64): "86/64"}
    assert {key: config.row_of(rows, key[0], 2, True, key[1])[1] for key in wanted} == wanted
