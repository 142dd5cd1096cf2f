"""The CUDA backend's calls of CUDA's runtime: `csrc/cuda/runtime.cuh` and the stages' host code run against
`tests/cpp/mock`, whose GPUs check each launch and execute nothing, so that problems may be of any size."""

import functools
import random
from ctypes import byref

import pytest
from mock_cuda import A100, B200, BF16, EXECUTION, F16, F32, GPUS, H100, RTX3090, RTX5090, Call, Mock
from shim import why_no_compiler
from structs import Backward, Forward, Problem

pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(why_no_compiler()), reason=why_no_compiler() or "")]

STRUCTS = ((Problem, "problem"), (Forward, "forward"), (Backward, "backward"))
MOST_BYTES = 1 << 38  # of a feature map: more than a GPU has


@pytest.fixture
def mock():
    mock = Mock()
    mock.counts()
    yield mock
    mock.library.mock_capture(0)
    mock.fail("")


def any_call(random: random.Random) -> Call:
    """A random call: its shape may be 1 in every dimension, or as large as a GPU could hold."""
    while True:
        n, c, pixels, reduced = (int(2 ** random.uniform(0, most)) for most in (30, 20, 30, 14))
        dtype = random.choice((F32, BF16, F16))
        fits = n * c * pixels * (4 if dtype == F32 else 2) <= MOST_BYTES and n * c < 2**35
        if fits and n * pixels < 2**31 and reduced <= c:
            break
    channels_last, full, misaligned = (random.random() < 0.5 for _ in range(3))
    return Call((n, c, pixels, reduced), dtype, channels_last=channels_last, full=full, misaligned=misaligned)


@pytest.mark.parametrize("gpu", GPUS)
def test_no_launch_is_refused(gpu, mock):
    """Grids, blocks and shared memory stay within what the GPU has, and memory is allowed before it is asked for."""
    mock.use(GPUS[gpu])
    generator = random.Random(gpu)
    for _ in range(150):
        call = any_call(generator)
        for name in ("forward", "backward"):
            assert call.run(mock, name) is None, call
            assert 0 < call.workspace(mock, name) < 2**42, call
    counts = mock.counts()
    assert counts.launches > 150 * 14
    assert counts.refused == counts.limits_lowered == 0


def test_a_failure_is_told_once(mock):
    """A call that fails leaves no error behind that the next one would report."""
    call = Call((2, 64, 49, 16))
    for failing in ("cudaGetDevice", "cudaDeviceGetAttribute", "cudaLaunchKernelExC"):
        mock.fail(failing)
        assert call.run(mock, "forward").endswith(": out of memory")
        assert mock.library.mock_last_error() == 0
        assert call.run(mock, "forward") is None


@pytest.mark.parametrize("failing", ["cudaFuncGetAttributes", "cudaFuncSetAttribute"])
def test_a_kernel_that_does_not_load_is_tried_again(failing, mock):
    call = Call((2, 64, 49, 16))
    mock.fail(failing)
    assert call.run(mock, "forward") == "pack_kernel: out of memory"
    assert mock.library.mock_last_error() == mock.library.mock_capture_mode() == 0
    assert call.run(mock, "forward") is None


def test_shared_memory_is_allowed_once_for_each_kernel_and_gpu(mock):
    call = Call((2, 64, 49, 16))
    for gpu in (H100, A100, RTX3090):
        mock.use(gpu)
        assert call.run(mock, "forward") is None
        kernels = mock.counts().limits_set
        assert 0 < kernels <= 6
        assert call.run(mock, "forward") is None
        assert mock.counts().limits_set == 0


def test_two_threads(mock):
    """They launch the same kernels with different amounts of shared memory."""
    calls = [Call((8, 512, 49, reduced), dtype) for reduced in (16, 128, 200, 512) for dtype in (F32, BF16)]
    structs = [(kind * len(calls))(*(getattr(call, name) for call in calls)) for kind, name in STRUCTS]
    for gpu in (RTX3090, H100):
        mock.use(gpu)
        assert mock.library.mock_two_threads(*structs, byref(EXECUTION), len(calls), 50) == 0
        counts = mock.counts()
        assert counts.launches > 2 * 50 * len(calls) * 14
        assert counts.refused == counts.limits_lowered == 0


def test_a_first_call_in_a_capture_loads_the_kernels(mock):
    """CUDA forbids that to a thread that captures a graph, unless the thread says that it is no part of the graph."""
    mock.library.mock_capture(1)
    for name in ("forward", "backward"):
        assert Call((2, 64, 49, 16)).run(mock, name) is None
    assert mock.library.mock_capture_mode() == 0


@pytest.mark.parametrize("images", [1, 8, 256])
def test_a_launch_is_of_all_images(images, mock):
    """Forward: the weights packed, gather and its finish, two of gate, scale. Backward: packed, expand, that of
    scale and the sums of its parts, two of that of gate, grad_x, and two each for the weights of both paths."""
    for name, launches in (("forward", 6), ("backward", 11)):
        assert Call((images, 1024, 196, 256), BF16, full=False).run(mock, name) is None
        assert mock.counts().launches == launches


def test_the_hopper_form_is_launched_on_its_gpu_alone(mock):
    call = Call((4, 256, 196, 64), BF16)
    run = functools.partial(mock.library.gala_forward_in_cluster, byref(call.problem), byref(call.forward))
    assert run(byref(EXECUTION)) is None
    counts = mock.counts()
    assert (counts.launches, counts.refused) == (2, 0)
    for gpu in (A100, B200, RTX5090):
        mock.use(gpu)
        assert b"the GPU is not of compute capability 9.0" in run(byref(EXECUTION))
    assert mock.counts().launches == 0


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((2**16, 8, 2**15, 2), "images * pixels is 2147483648, expected fewer than 2^31"),
        ((2**29, 8, 4, 2), "images * pixels is 2147483648, expected fewer than 2^31"),
        ((2**30, 2**5, 1, 1), "images * channels is 34359738368, expected fewer than 2^35"),
        ((2**25, 2**5, 1, 2**10), "images * reduced is 34359738368, expected fewer than 2^35"),
        ((1, 2**20, 1, 2**15), "channels * reduced is 34359738368, expected fewer than 2^35"),
        ((2**10, 2**20, 2**10, 1), "images * channels * pixels is 1099511627776, expected fewer than 2^40"),
    ],
)
def test_what_is_too_large_is_refused_before_anything_is_launched(shape, message, mock):
    for name in ("forward", "backward"):
        assert message in Call(shape).run(mock, name)
    assert mock.counts().launches == 0
