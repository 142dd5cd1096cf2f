"""Compiles the Triton kernels that steps need, before anything is measured, in one process for each core.

What a call needs is found by running its plans on tensors without memory (`tools.kernel_report.launches`). Compiled
kernels are put into Triton's own cache, where the process that measures finds them. None of it touches a GPU.
"""

import contextlib
import importlib
import os
import resource
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, TimeoutError, as_completed
from multiprocessing import get_context
from typing import NamedTuple
from unittest import mock

import torch
import triton

from gala_cuda.backends.layout import is_channels_last
from gala_cuda.backends.squash import SQUASHES
from gala_cuda.backends.triton import config
from tools.kernel_report.launches import Call, Launch, build, launches_of

from .uses import Target, Use

EVERY_CORE = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Compiled(NamedTuple):
    """One kernel compiled."""

    kernel: str
    cpu_seconds: float  # of the process and of those that it started
    problem: str | None  # why it does not compile


class Compiler:
    """A pool of processes for `with`, each with Triton's compiler and never its interpreter."""

    def __init__(self, jobs: int = EVERY_CORE):
        self._jobs = jobs

    def __enter__(self) -> "Compiler":
        self._environment = mock.patch.dict(os.environ)
        self._environment.start()
        os.environ.pop("TRITON_INTERPRET", None)  # a process inherits the environment when it starts
        self._pool = ProcessPoolExecutor(self._jobs, mp_context=get_context("spawn"))
        return self

    def __exit__(self, *_) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._environment.stop()

    def collect(self, uses: list[Use], target: Target) -> list[Launch]:
        """`collect` in one of the processes."""
        return self._pool.submit(collect, uses, target).result()

    def compile(self, launches: list[Launch], seconds: float) -> Iterator[Compiled]:
        """Those of `launches`, in order, that are compiled within `seconds`.

        Raises:
            BrokenProcessPool: a process died, such as for want of memory.
        """
        waiting: list[Future[Compiled]] = [self._pool.submit(_compile, launch) for launch in launches]
        with contextlib.suppress(TimeoutError):
            for done in as_completed(waiting, None if seconds == float("inf") else max(0.0, seconds)):
                yield done.result()
        for future in waiting:
            future.cancel()


def collect(uses: Iterable[Use], target: Target) -> list[Launch]:
    """Each different launch of `uses`, in their order."""
    return list(dict.fromkeys(launch for use in dict.fromkeys(uses) for launch in _launched(use, target)))


def _launched(use: Use, target: Target) -> list[Launch]:
    x, reduced = use.kind.x, use.kind.reduced
    rows = config.read(config.in_use()).rows
    row = config.row_of(rows, target.arch, x.element_size(), is_channels_last(x), reduced)[1]
    precision = "tf32x3" if x.dtype == torch.float32 else "tf32"  # torch's default
    call = Call(x, reduced, use.weights, precision, SQUASHES[use.squash], use.bias, use.residual, use.map, use.save)
    return launches_of(call, row, target.arch, target.sms)


def _compile(launch: Launch) -> Compiled:
    """Compiles a kernel into Triton's cache, and where Triton needs one, its launcher."""
    start, problem = _cpu_seconds(), None
    try:
        _build_launcher(build(launch))
    except (triton.TritonError, RuntimeError, OSError) as error:
        problem = f"{type(error).__name__}: {error}"
    return Compiled(launch.kernel, _cpu_seconds() - start, problem)


def _build_launcher(binary) -> None:
    """Older Tritons compile C code for each signature; that takes a driver's library, which a dry run lacks."""
    driver = importlib.import_module("triton.backends.nvidia.driver")
    if hasattr(driver, "make_launcher"):
        with contextlib.suppress(AssertionError, ImportError):
            driver.CudaLauncher(binary.src, binary.metadata)


def _cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + used.ru_utime + used.ru_stime
