"""Hopper's instructions as `shim` performs them on the host: a warpgroup's product, bulk copies, clusters' barriers."""

import ctypes
from ctypes import c_char_p, c_int, c_void_p
from functools import cache

import pytest
import torch
from layouts import places, table
from shim import CPP, SHIM, Memory, build, loaded, why_no_compiler

pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(why_no_compiler()), reason=why_no_compiler() or "")]

SHARED_LIMIT = 227 << 10  # bytes a block, as of an H100


@cache
def instructions() -> ctypes.CDLL:
    library = loaded(build("clusters", [*SHIM, CPP / "clusters.cu", CPP / "hopper_faults.cu"]))
    arguments = {
        "run_tile_product": [c_void_p] * 3 + [c_int] * 2,
        "run_exchange_in_cluster": [c_void_p] * 2,
        "sample_transfer": [c_void_p] * 2 + [c_int],
        "run_describe": [c_void_p, c_int],
    }
    for name, types in arguments.items():
        getattr(library, name).restype, getattr(library, name).argtypes = c_char_p, types
    return library


@pytest.mark.parametrize("first", [0, 16, 48])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_a_product_of_a_warpgroup(dtype, first):
    """d [64, 64] += a [64, 16] b^T, b being 16 columns of a swizzled tile; fragments and swizzle as CuTe has them."""
    generator = torch.Generator().manual_seed(0)
    a, tile = (torch.randn(64, depth, generator=generator).to(dtype) for depth in (16, 64))
    d = torch.randn(64, 64, generator=generator)
    swizzled = torch.empty_like(tile).view(-1)
    swizzled[torch.from_numpy(places("wgmma tile"))] = tile
    library = instructions()
    library.shim_set_device(1, SHARED_LIMIT)
    memory = Memory(library)
    got = memory.new(64, 64).copy_(d)
    pointers = (memory.copy(a).data_ptr(), memory.copy(swizzled).data_ptr(), got.data_ptr())
    assert library.run_tile_product(*pointers, first, dtype == torch.bfloat16) is None
    memory.check()
    want = d + a.double() @ tile[:, first : first + 16].double().T
    assert ((got.double() - want).abs() <= 2**-23 * want.abs().clamp(min=2**-10)).all()


def test_copies_to_all_and_peers_writes():
    values = torch.arange(64.0)
    library = instructions()
    for seed in range(20):
        library.shim_set_device(seed, SHARED_LIMIT)
        memory = Memory(library)
        got = memory.new(2, 64)
        assert library.run_exchange_in_cluster(memory.copy(values).data_ptr(), got.data_ptr()) is None
        sent = torch.arange(64.0).view(2, 32).flip(0).repeat(1, 2)  # each block has the other's
        assert torch.equal(got, values + sent)


def test_descriptors_are_cutes():
    """They are, but for the address. No tile lies at address 0, nor where only a larger alignment would put it."""
    library, memory = instructions(), Memory(instructions())
    cutes_address, cutes = table()["wgmma descriptor"]
    start = 0x3FFF  # of the descriptor's bits, those of the address in units of 16 bytes
    assert cutes & start == cutes_address >> 4
    addresses = set()
    for seed in range(20):
        library.shim_set_device(seed, SHARED_LIMIT)
        got = memory.new(2, dtype=torch.int64)
        assert library.run_describe(got.data_ptr(), 1) is None
        address, descriptor = got.tolist()
        assert address % 2048 == 1024
        assert descriptor == cutes & ~start | address >> 4
        addresses.add(address)
    assert len(addresses) > 1


# the number of the fault in hopper_faults.cu, and what the error says
FAULTS = {
    "a store before the copy": (2, "copies over bytes, byte 0 of which thread 0 wrote without fence.proxy.async"),
    "a store under the copy": (3, "lands on bytes, byte 0 of which thread 0 wrote without fence.proxy.async"),
    "a store before the product": (4, "multiplies a tile, byte 0 of which thread 0 wrote without fence.proxy.async"),
    "a store under the product": (5, "wrote without fence.proxy.async"),
    "a fence of another thread": (6, "byte 4 of which thread 1 wrote without fence.proxy.async"),
    "memory aligned to 128 bytes": (7, "a tile that is not aligned to 1024 bytes"),
    "memory by two names": (8, "aligned to 1024 that another name aligns to 128"),
    "a barrier that is not published": (9, "copies to a barrier that is not made and published"),
    "a barrier made twice": (10, "makes a barrier where there is one"),
    "no arrivals": (11, "a barrier of 0 arrivals, expected 1 to 1048575"),
    "too many arrivals": (12, "a barrier of 1048576 arrivals, expected 1 to 1048575"),
    "too many bytes": (13, "expects 1048576 bytes, not 0 to 1048575"),
    "fewer bytes than come": (14, "a phase that was to have 16 bytes less"),
    "bytes that never come": (15, "ends while a barrier waits for 16 bytes more"),
    "a size that is not whole units": (16, "copies 4088 bytes, expected a multiple of 16"),
    "a place that is not aligned": (17, "accesses 4096 bytes not aligned to 16"),
    "a source that is not aligned": (18, "accesses 4096 bytes not aligned to 16"),
    "a copy too large": (19, "copies 1048576 bytes, expected a multiple of 16 up to 1048575"),
    "a parity of 2": (20, "a phase of parity 2, expected 0 or 1"),
}


def transferred(fault: int, seed: int) -> str | None:
    library = instructions()
    library.shim_set_device(seed, SHARED_LIMIT)
    memory = Memory(library)
    tile, got = memory.copy(torch.ones(2048, dtype=torch.bfloat16)), memory.new(128)
    error = library.sample_transfer(tile.data_ptr(), got.data_ptr(), fault)
    if error is None:
        memory.check()
        assert not got.any()
    return error and error.decode()


@pytest.mark.parametrize("fault", [0, 1], ids=["no store", "a store and a fence of each thread"])
def test_without_a_fault_every_order_passes(fault):
    assert [transferred(fault, seed) for seed in range(8)] == [None] * 8


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_caught_in_every_order(name):
    fault, message = FAULTS[name]
    for seed in range(8):
        assert message in (transferred(fault, seed) or ""), seed


@pytest.mark.parametrize("cluster", [3, 16])
def test_clusters_that_not_every_gpu_has(cluster):
    """One has 16 blocks, and the size of the other does not divide the grid's 16 blocks."""
    memory = Memory(instructions())
    error = instructions().run_describe(memory.new(2, dtype=torch.int64).data_ptr(), cluster)
    assert f"16 blocks along x are not whole clusters of {cluster}, at most 8" in error.decode()
