"""The ticket form: tickets wait only for lower ones, and the order in which programs run them changes no bit."""

import gc
import random
import weakref

import pytest
import torch
from test_triton import DEVICE, FULL, table, to_device  # noqa: F401

from gala_cuda.backends import triton as backend
from gala_cuda.backends.interface import ForwardCall, Squash
from gala_cuda.testing import Case, draw

pytest.importorskip("triton", reason="Triton is not installed")

from gala_cuda.backends.triton import launch, tickets


def random_tiles(generator: random.Random) -> list[tuple[int, int, int, int]]:
    def tiles() -> int:
        return generator.randint(1, 9)

    return [(tiles(), tiles(), tiles(), tiles()) for _ in range(generator.randint(1, 7))]


@pytest.mark.parametrize("seed", range(50))
def test_tickets_wait_only_for_lower_ones(seed):
    """So the lowest unfinished ticket never waits, and there is no deadlock, however few programs are resident."""
    tiles = random_tiles(random.Random(seed))
    order = tickets.schedule(tiles)
    done = [0] * (1 + 4 * len(tiles))
    for ticket in order:
        assert ticket.wait == 0 or done[ticket.wait] >= ticket.need
        assert ticket.signal > 0
        done[ticket.signal] += 1
    assert {(t.stage, t.chunk, t.tile) for t in order} == {
        (stage, chunk, tile)
        for chunk, counts in enumerate(tiles)
        for stage, count in enumerate(counts)
        for tile in range(count)
    }
    assert len(order) == sum(map(sum, tiles))


@pytest.mark.parametrize("seed", range(10))
def test_each_stage_waits_for_all_of_the_one_before(seed):
    tiles = random_tiles(random.Random(seed))
    for ticket in tickets.schedule(tiles):
        if ticket.stage == tickets.GATHER:
            assert (ticket.wait, ticket.need) == (0, 0)
        else:
            earlier = [t for t in tickets.schedule(tiles) if (t.stage, t.chunk) == (ticket.stage - 1, ticket.chunk)]
            assert {t.signal for t in earlier} == {ticket.wait}
            assert ticket.need == len(earlier) == tiles[ticket.chunk][ticket.stage - 1]


def valid_order(order: list[tickets.Ticket], generator: random.Random) -> list[int]:
    """A random order in which tickets may finish: any whose wait is over may be next."""
    done = [0] * (1 + max(t.signal for t in order))
    left, found = list(range(len(order))), []
    while left:
        ready = [i for i in left if order[i].wait == 0 or done[order[i].wait] >= order[i].need]
        chosen = generator.choice(ready)
        left.remove(chosen)
        done[order[chosen].signal] += 1
        found.append(chosen)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_any_valid_order_gives_the_same_bits(layout, table, monkeypatch):  # noqa: F811
    """One program for each ticket, in random order, against one launch that takes the tickets as they come."""
    table(tickets_from=0, chunk_bytes=2 * 20 * 25 * 4)
    problem = to_device(draw(Case((5, 20, 5, 5), 5, layout=layout, **FULL)))
    launched = []
    call = launch.KernelLaunch.__call__

    def record(kernel_launch, *tensors):
        launched.append((kernel_launch, tensors))
        call(kernel_launch, *tensors)

    monkeypatch.setattr(launch.KernelLaunch, "__call__", record)
    backend.forward(ForwardCall(problem.x, problem.w, problem.residual, Squash.TANH, True, True))
    ((kernel_launch, tensors),) = [(s, t) for s, t in launched if s.kernel is tickets.forward_tickets]
    names = dict(zip(kernel_launch.kernel.arg_names, tensors, strict=False))
    order = [tickets.Ticket(*entry) for entry in names["schedule"].tolist()]
    assert len({t.chunk for t in order}) == 3
    results = [names["out"], names["stats"], names["relu_mask"], names["map_parts"][: 2 * 5 * 25]]
    want = [t.clone() for t in results]
    generator = random.Random(0)
    for _ in range(2):
        for t in results:
            t.fill_(-1)
        names["counters"].zero_()
        for ticket in valid_order(order, generator):
            names["counters"][0] = ticket
            numbers = (ticket + 1, *kernel_launch.numbers[1:])
            kernel_launch.kernel[(1, 1, 1)](*tensors, *numbers, *kernel_launch.constants, **kernel_launch.options)
        assert all(torch.equal(a, b) for a, b in zip(results, want, strict=True))


@pytest.mark.slow
def test_a_captured_graphs_schedule_outlives_its_plan(table, monkeypatch):  # noqa: F811
    """The graph has only its address, so neither clearing the plans nor the schedules of other shapes may free it."""
    table(tickets_from=0)
    problem = to_device(draw(Case((2, 8, 3, 3), 2, **FULL)))
    seen = []
    call = launch.KernelLaunch.__call__

    def record(kernel_launch, *tensors):
        if kernel_launch.kernel is tickets.forward_tickets:
            seen.append(weakref.ref(tensors[0]))
        call(kernel_launch, *tensors)

    monkeypatch.setattr(launch.KernelLaunch, "__call__", record)
    monkeypatch.setattr(tickets, "_captured", {})
    monkeypatch.setattr(tickets, "capturing", lambda: capturing)
    for capturing in (True, True, False):
        image = slice(0, 1 if capturing else 2)
        backend.forward(ForwardCall(problem.x[image], problem.w, problem.residual[image], Squash.TANH, False, False))
        launch.clear_plans()
    captured, again, other = (reference() for reference in seen)
    assert captured is again
    assert other is not None
    assert list(tickets._captured.values()) == [captured]
    tickets.on_device.cache_clear()
    del captured, again, other
    gc.collect()
    assert [reference() is not None for reference in seen] == [True, True, False]
