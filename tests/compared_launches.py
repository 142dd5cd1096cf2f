"""What test_gpu_schedule.py runs without Triton's interpreter: calls of steps against what is compiled for them.

Each call of the operator stops where Triton has specialised its kernels for an H100; the same must be among what the
GPU suite compiles before. Prints the number of different launches.
"""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from unittest import mock

import torch

from benchmarks.gpu import compiler, correctness, forms, operators, sanitized
from benchmarks.gpu.predict import HOPPER as TARGET
from benchmarks.gpu.settings import DRY_RUN, Context
from benchmarks.gpu.uses import Use
from gala_cuda import GALA, testing
from gala_cuda.backends import triton
from gala_cuda.backends.triton import config, problem
from tools.kernel_report.launches import launched

STAND_INS = ((triton, "why_not", None), (config, "architecture", TARGET.arch), (problem, "multiprocessors", TARGET.sms))
GROUPS = (("bfloat16", "channels_last"), ("float32", "nchw"))


def compare(uses: Sequence[Use], run: Callable[[], object]) -> int:
    want, got = set(compiler.collect(uses, TARGET)), set(launched(TARGET.arch, run))
    assert want == got, (uses, [launch.kernel for launch in want ^ got])
    return len(got)


def correctness_steps(context: Context) -> int:
    seen = 0
    for dtype, layout in GROUPS:
        cases = correctness.cases(context, forms.DTYPES[dtype], layout)
        for case, use in zip(cases, correctness.uses(context, "triton", dtype, layout), strict=True):
            seen += compare([use], partial(testing.results, testing.operator("triton"), testing.draw(case)))
    return seen


def operator_steps(context: Context) -> int:
    kind = context.repeated._replace(shape=(16, 1024, 14, 14), reduced=256)
    layer, x = GALA(1024, init="paper", backend="triton"), torch.zeros(kind.shape, dtype=kind.dtype)
    x = x.to(memory_format=torch.channels_last).requires_grad_()

    def both() -> None:
        with torch.no_grad():
            layer(x)
        torch.autograd.grad(layer(x), [x, *layer.parameters()], torch.empty_like(x))

    return compare(operators.uses(kind)[:2], both)


def sanitized_steps() -> int:
    seen = 0
    for kind in sanitized.KINDS:
        uses = [use for use in sanitized.uses("triton") if use.kind == kind]
        seen += compare(uses, partial(sanitized._both, kind, "triton", "cpu"))
    return seen


if __name__ == "__main__":
    for module, name, value in STAND_INS:
        mock.patch.object(module, name, lambda *_, value=value: value).start()
    context = Context(torch.device("cpu"), DRY_RUN, 0, Path())
    print(correctness_steps(context) + operator_steps(context) + sanitized_steps())
