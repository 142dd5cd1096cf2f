"""Hopper's instructions on the host (``shim``): a warpgroup's product, bulk copies and barriers between blocks."""

import ctypes
from ctypes import c_char_p, c_int, c_void_p
from functools import cache

import pytest
import torch
from shim import CPP, SHIM, Memory, build, loaded, why_no_compiler

pytestmark = pytest.mark.skipif(bool(why_no_compiler()), reason=why_no_compiler() or "")

DEVICE = (132, 50 << 20, 227 << 10)  # multiprocessors, bytes of L2 cache, of shared memory a block, as of an H100


@cache
def instructions() -> ctypes.CDLL:
    library = loaded(build("clusters", [*SHIM, CPP / "clusters.cu"]))
    library.run_tile_product.restype = library.run_exchange_in_cluster.restype = c_char_p
    library.run_tile_product.argtypes = [c_void_p] * 3 + [c_int] * 2
    library.run_exchange_in_cluster.argtypes = [c_void_p] * 2
    return library


@pytest.mark.parametrize("first", [0, 16, 48])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_a_product_of_a_warpgroup(dtype, first):
    """d [64, 64] += a [64, 16] b^T, b being 16 columns of a tile whose 16-byte vectors are swizzled over 8 lines."""
    generator = torch.Generator().manual_seed(0)
    a, tile = (torch.randn(64, depth, generator=generator).to(dtype) for depth in (16, 64))
    d = torch.randn(64, 64, generator=generator)
    line, vector = torch.arange(64)[:, None], torch.arange(8)
    swizzled = tile.view(64, 8, 8)[line, vector ^ line % 8]
    library = instructions()
    library.shim_set_device(1, *DEVICE)
    memory = Memory(library)
    got = memory.new(64, 64).copy_(d)
    pointers = (memory.copy(a).data_ptr(), memory.copy(swizzled.reshape(64, 64)).data_ptr(), got.data_ptr())
    assert library.run_tile_product(*pointers, first, dtype == torch.bfloat16) is None
    memory.check()
    want = d + a.double() @ tile[:, first : first + 16].double().T
    assert ((got.double() - want).abs() <= 2**-23 * want.abs().clamp(min=2**-10)).all()


def test_copies_to_all_and_peers_writes():
    values = torch.arange(64.0)
    library = instructions()
    for seed in range(20):
        library.shim_set_device(seed, *DEVICE)
        memory = Memory(library)
        got = memory.new(2, 64)
        assert library.run_exchange_in_cluster(memory.copy(values).data_ptr(), got.data_ptr()) is None
        sent = torch.arange(64.0).view(2, 32).flip(0).repeat(1, 2)  # each block has the other's
        assert torch.equal(got, values + sent)
