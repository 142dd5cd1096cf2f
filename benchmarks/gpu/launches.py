"""The Triton kernels that steps need, compiled before anything is measured, by as many processes as there are cores.

What a call needs is found by running its plans on tensors without memory (``tools.kernel_report.compiled_kernels``).
Compiled kernels are put into Triton's own cache, where the process that measures finds them. None of it touches a GPU.
"""

import contextlib
import importlib
import os
import resource
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, TimeoutError, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from multiprocessing import get_context
from typing import TYPE_CHECKING, NamedTuple
from unittest import mock

import torch

from gala_cuda.backends.interface import Weights, weight_shapes

from .forms import TICKETS, Kind

if TYPE_CHECKING:
    from tools.kernel_report.compiled_kernels import Launch

EVERY_CORE = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Use(NamedTuple):
    """A call of the operator on the Triton backend or one of its forms; with ``save``, and its backward pass."""

    contestant: str
    kind: Kind
    weights: torch.dtype
    squash: str = "tanh"
    bias: bool = False
    residual: bool = False
    map: bool = False
    save: bool = True


class Target(NamedTuple):
    """What is compiled for."""

    arch: int  # compute capability as 10 major + minor
    num_sms: int


class Compiled(NamedTuple):
    """One kernel compiled."""

    kernel: str
    cpu_seconds: float  # of the process and of those that it started
    problem: str | None  # why it does not compile


def collect(uses: Iterable[Use], target: Target) -> "list[Launch]":
    """Each different launch of ``uses``, in their order."""
    return list(dict.fromkeys(launch for use in dict.fromkeys(uses) for launch in _launched(use, target)))


def _launched(use: Use, target: Target) -> "list[Launch]":
    from gala_cuda.backends.triton import config, forward_plan
    from gala_cuda.backends.triton.problem import Problem
    from tools.kernel_report.compiled_kernels import WITHOUT_BIASES, launched, run_plans

    x, (_, channels, _, _) = use.kind.x, use.kind.shape
    shapes: tuple = weight_shapes(channels, use.kind.reduced)
    shapes = shapes if use.bias else shapes[:WITHOUT_BIASES]
    w = Weights(*(torch.empty(shape, dtype=use.weights, device="meta") for shape in shapes))
    precision = "tf32x3" if x.dtype == torch.float32 else "tf32"
    problem = Problem.of(x, w, use.squash, precision)
    rows = config.read(config.in_use()).rows
    row = config.choose(rows, target.arch, x.element_size(), problem.channels_last, use.kind.reduced)
    if use.contestant == TICKETS and row.tickets is None:
        return []
    problem = replace(problem, config=row, num_sms=target.num_sms)
    form = forward_plan.TicketForward if use.contestant == TICKETS else forward_plan.Forward
    residual = torch.empty_like(x) if use.residual else None
    return launched(target.arch, lambda: run_plans(problem, x, w, residual, use.map, [form], use.save))


def compile_one(launch: "Launch") -> Compiled:
    """Compiles a kernel into Triton's cache, and where Triton needs one, its launcher."""
    from tools.kernel_report.compiled_kernels import build

    start, problem = _cpu_seconds(), None
    try:
        binary = build(launch)
        _build_launcher(binary)
    except _errors() as error:
        problem = f"{type(error).__name__}: {error}"
    return Compiled(launch.kernel, _cpu_seconds() - start, problem)


def _build_launcher(binary) -> None:
    """Older Tritons compile C code for each signature; that takes a driver's library, which a dry run lacks."""
    driver = importlib.import_module("triton.backends.nvidia.driver")
    if hasattr(driver, "make_launcher"):
        with contextlib.suppress(AssertionError, ImportError):
            driver.CudaLauncher(binary.src, binary.metadata)


def _errors() -> tuple[type[Exception], ...]:
    """What Triton raises where a kernel does not compile."""
    import triton

    return triton.TritonError, RuntimeError, OSError


def _cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + used.ru_utime + used.ru_stime


class Compiler:
    """A pool of processes for ``with``, each with Triton's compiler and never its interpreter."""

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

    def collect(self, uses: list[Use], target: Target) -> "list[Launch]":
        return self._pool.submit(collect, uses, target).result()

    def compile(self, launches: "list[Launch]", seconds: float) -> Iterator[Compiled]:
        """Those of ``launches``, the first first, that are compiled within ``seconds``.

        Raises:
            BrokenProcessPool: a process died, such as for want of memory.
        """
        waiting: list[Future[Compiled]] = [self._pool.submit(compile_one, launch) for launch in launches]
        with contextlib.suppress(TimeoutError):
            for done in as_completed(waiting, None if seconds == float("inf") else max(0.0, seconds)):
                yield done.result()
        for future in waiting:
            future.cancel()


__all__ = ["BrokenProcessPool", "Compiled", "Compiler", "Target", "Use", "collect"]
