"""The CUDA kernels on problems so large that counts in 32 bits would overflow, run on the host by `shim`.

The problems' memory is reserved but hardly used: of each launch only a few blocks run, among them the last one. Every
access is checked against the tensors' bounds; values are not looked at.
"""

from ctypes import byref, c_int64

import pytest
import torch
from shim import DTYPES, WORKSPACE_ALIGNMENT, Memory, kernels, why_no_compiler
from structs import Backward, Execution, FeatureMap, Forward, Problem, Shape, WeightPointers

from gala_cuda.backends.interface import Weights
from gala_cuda.backends.layout import is_channels_last
from gala_cuda.backends.saved import mask_words, stats_width

pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(why_no_compiler()), reason=why_no_compiler() or "")]

BLOCKS = 3  # of a launch: the first, the last and one between
BF16 = torch.bfloat16
SMALL = 64 << 20  # bytes; the shim leaves zeros in what is larger


@pytest.fixture
def library():
    library = kernels()
    library.shim_run_blocks(c_int64(BLOCKS))
    yield library
    library.shim_run_blocks(c_int64(0))


class Call:
    """The arguments of forward and backward, all zeros, with biases, a residual and the map."""

    def __init__(self, library, shape: tuple[int, int, int], reduced: int, layout: str):
        self.library, self.memory = library, Memory(library)
        n, c, pixels = shape
        x = torch.empty(n, c, 1, pixels, dtype=BF16, device="meta")
        if layout == "channels_last":
            x = x.to(memory_format=torch.channels_last)
        self.shape, self.maps = Shape(n, c, pixels, reduced), [self.zeros(x) for _ in range(6)]
        self.w = self.weights()
        self.problem = Problem(self.shape, DTYPES[BF16], 0, is_channels_last(x), self.w)
        sizes = [(n, pixels), (n, stats_width(pixels, c, reduced)), (n, pixels, mask_words(reduced))]
        self.vectors = [self.new(*size).data_ptr() for size in sizes]

    def zeros(self, t: torch.Tensor) -> FeatureMap:
        like = self.memory.like(t)
        return FeatureMap.of(like.zero_() if like.nbytes <= SMALL else like)

    def new(self, *size: int, dtype: torch.dtype = torch.float32, modulus: int = 16) -> torch.Tensor:
        new = self.memory.new(*size, dtype=dtype, modulus=modulus)
        return new.zero_() if new.nbytes <= SMALL else new

    def weights(self) -> WeightPointers:
        c, r = self.shape.channels, self.shape.reduced
        sizes = ((r, c), (c, r), (r, c), (r,), (c,), (c,), (r,), (c,), (r,), (1,))
        return WeightPointers.of(Weights(*(self.new(*size) for size in sizes)))

    def forward(self) -> None:
        x, residual, out, *_ = self.maps
        self._run("forward", Forward(x, residual, out, *self.vectors))

    def backward(self, *, need_input: bool, need_weights: bool) -> None:
        grads = self.weights() if need_weights else WeightPointers()
        x, grad_out, out, grad_x, grad_residual, _ = self.maps
        grad_x = grad_x if need_input else FeatureMap()
        self._run("backward", Backward(x, grad_out, out, *self.vectors, grad_x, grad_residual, grads))

    def _run(self, name: str, call: Forward | Backward) -> None:
        nbytes = c_int64()
        self.library.shim_set_device(1, 99 << 10)
        error = getattr(self.library, f"gala_{name}_workspace")(byref(self.problem), byref(call), byref(nbytes))
        assert error is None, error
        workspace = self.new(nbytes.value, dtype=torch.uint8, modulus=WORKSPACE_ALIGNMENT)
        execution = Execution(None, workspace.data_ptr(), False)
        error = getattr(self.library, f"gala_{name}")(byref(self.problem), byref(call), byref(execution))
        assert error is None, error
        self.memory.check()


@pytest.mark.parametrize(
    ("images", "layout"),
    [(2**22 + 5, "contiguous"), (2**22 + 5, "channels_last"), (2**23 + 5, "channels_last")],
)
def test_many_images(images, layout, library):
    """2 N C, then N C and N R are between 2^31 and 2^32, where 32 bits would make them negative; and with them what is
    kept of each image and the parts of sums."""
    call = Call(library, (images, 260, 1), 260, layout)
    call.forward()
    call.backward(need_input=True, need_weights=False)


def test_many_pixels(library):
    """With nearly 2^31 pixels."""
    call = Call(library, (2**20, 2, 2**11 - 1), 33, "channels_last")
    call.forward()
    call.backward(need_input=True, need_weights=False)


def test_large_weights(library):
    """C R is larger than 2^31."""
    call = Call(library, (3, 46400, 2), 46400, "channels_last")
    call.backward(need_input=False, need_weights=True)
