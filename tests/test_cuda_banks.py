"""Bank conflicts of the CUDA kernels in shared memory, as the host shim counts them."""

import pytest
import torch
from shim import Shim, counted, kernels, why_no_compiler

from gala_cuda import backends
from gala_cuda.testing import Case, draw, operator, results

pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(why_no_compiler()), reason=why_no_compiler() or "")]


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("reduced", [40, 136])
def test_no_access_has_a_conflict(reduced, dtype, layout, monkeypatch):
    """In forward and backward, with whole and with partial tiles, with few and with many hidden units."""
    problem = draw(Case((2, 136, 8, 8), reduced, dtype, layout=layout, bias=True, residual=True, map=True))
    monkeypatch.setitem(backends.BACKENDS, "cuda", Shim(seed=1))
    found = counted(kernels(), lambda: results(operator("cuda"), problem))
    assert {"gather_kernel", "grad_x_kernel", "local_products_kernel"} <= {one.kernel for one in found}
    assert [one for one in found if one.conflicts] == []
