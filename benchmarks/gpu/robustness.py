"""Part "robustness": equal bits under load, in CUDA graphs and on other streams; torch.compile; sanitizers."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gala_cuda import GALA
from gala_cuda.backends import NAMES

from . import sanitized
from .environment import ROOT
from .forms import FORMS, GPU_BACKENDS, running
from .records import MeasurementError, Step, UnavailableError
from .settings import Context
from .uses import Use

LOAD = 4096  # rows and columns of the matrices that keep the GPU busy
LOADS_PER_CALL = 4  # products, together longer than a call
WARM_UP_CALLS = 3  # before a capture
SANITIZERS = ("memcheck", "racecheck", "initcheck", "synccheck")
SANITIZER_SECONDS = 90
SANITIZER_LINES = 20  # of its output, recorded
SANITIZER_FOUND = 86  # the exit code we ask for where it found something


class Block:
    """A GALA layer and its inputs: bfloat16, channels_last, float32 weights."""

    def __init__(self, context: Context, contestant: str):
        reason = context.why_not(contestant, context.repeated)
        if reason:
            raise UnavailableError(reason)
        torch.manual_seed(context.seed)
        backend = FORMS.get(contestant, contestant)
        self.layer = GALA(context.sizes.repeated[1], init="paper", backend=backend, device=context.device)
        self.x, self.grad = self.inputs(context), self.inputs(context)
        self.x.requires_grad_()
        self.names = ["out", "x", *(name for name, _ in self.layer.named_parameters())]

    def inputs(self, context: Context) -> Tensor:
        shape = context.sizes.repeated
        return torch.randn(shape, device=context.device).to(torch.bfloat16, memory_format=torch.channels_last)

    def forward(self) -> list[Tensor]:
        with torch.no_grad():
            return [self.layer(self.x)]

    def both(self, call: Callable[[Tensor], Tensor] | None = None) -> list[Tensor]:
        """out and the gradients of x and of each parameter, by the layer or by `call`."""
        out = self.layer(self.x) if call is None else call(self.x)
        return [out.detach(), *torch.autograd.grad(out, [self.x, *self.layer.parameters()], self.grad)]


def steps(context: Context) -> list[Step]:
    """The checks of each fused backend, those for GPUs first."""
    names = [*GPU_BACKENDS, *(name for name in NAMES if name not in (*GPU_BACKENDS, "reference"))]
    checks = (
        ("repeats", _repeats, 15),
        ("graphs", _graphs, 5),
        ("second stream", _stream, 3),
        ("compile", _compile, 10),
    )
    found = [
        Step(f"{title} {name}", partial(_in_form, check, context, name), seconds, uses(context, name))
        for name in names
        for title, check, seconds in checks
    ]
    found += [
        Step(f"{tool} {name}", partial(_sanitize, context, tool, name), 40, sanitized.uses(name))
        for name in GPU_BACKENDS
        for tool in SANITIZERS
    ]
    return found


def uses(context: Context, name: str) -> tuple[Use, ...]:
    if name != "triton":
        return ()
    return tuple(Use(context.repeated, torch.float32, save=save) for save in (True, False))


def _in_form(check: Callable[[Context, str], dict[str, Any]], context: Context, contestant: str) -> dict[str, Any]:
    with running(contestant):
        return check(context, contestant)


def _repeats(context: Context, backend: str) -> dict[str, Any]:
    """Checks that repeated calls are equal bit for bit, on a GPU while another stream keeps it busy."""
    block = Block(context, backend)
    first = block.both()
    unequal = torch.zeros(len(first), dtype=torch.int64, device=context.device)
    load = _Load(context.device) if context.is_cuda else None
    for _ in range(context.sizes.repeats):
        if load is not None:
            load.add()
        unequal += torch.stack([_differs(a, b) for a, b in zip(block.both(), first, strict=True)])
    if load is not None:
        load.wait()
    result = {"repeats": context.sizes.repeats, "load": load is not None}
    return _verdict(result, dict(zip(block.names, unequal.tolist(), strict=True)), "repeats")


def _graphs(context: Context, backend: str) -> dict[str, Any]:
    """Checks that replays of a CUDA graph on new data give the bits of a call outside of it, forward and backward."""
    block = _on_gpu(context, backend)
    unequal: dict[str, int] = {}
    for title, call in (("forward", block.forward), ("forward+backward", block.both)):
        graph, captured = _capture(call)
        for _ in range(2):
            with torch.no_grad():
                block.x.copy_(block.inputs(context))
                block.grad.copy_(block.inputs(context))
            want = call()
            graph.replay()
            for name, a, b in zip(block.names, captured, want, strict=False):
                key = f"{title}: {name}"
                unequal[key] = unequal.get(key, 0) + int(_differs(a, b))
    return _verdict({"replays": 2}, unequal, "replays")


def _stream(context: Context, backend: str) -> dict[str, Any]:
    """Checks that a call on another stream gives equal bits."""
    block = _on_gpu(context, backend)
    want = block.both()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        got = block.both()
    torch.cuda.current_stream().wait_stream(stream)
    unequal = {name: int(_differs(a, b)) for name, a, b in zip(block.names, got, want, strict=True)}
    return _verdict({}, unequal, "calls")


def _compile(context: Context, backend: str) -> dict[str, Any]:
    """Checks that torch.compile(fullgraph=True) of a layer is within the dtype's epsilon of eager, gradients too."""
    block = Block(context, backend)
    context.start_afresh()
    compiled = torch.compile(block.layer, fullgraph=True, dynamic=False, backend=context.sizes.compiler)
    errors = {}
    for name, got, want in zip(block.names, block.both(compiled), block.both(), strict=True):
        scale = torch.linalg.vector_norm(want.double()).item() or 1.0
        errors[name] = torch.linalg.vector_norm(got.double() - want.double()).item() / scale
    limit = torch.finfo(block.x.dtype).eps
    result = {"compiler": context.sizes.compiler, "limit": limit, "errors": errors}
    beyond = {name: error for name, error in errors.items() if not error <= limit}
    if beyond:
        raise MeasurementError(f"compiled and eager differ by more than {limit:.1e} relative: {beyond}", result)
    return result


def _sanitize(context: Context, tool: str, backend: str) -> dict[str, Any]:
    """Runs compute-sanitizer over small problems in a process of their own."""
    _on_gpu(context, backend)
    if not any(context.why_not(backend, kind) is None for kind in sanitized.KINDS):
        raise UnavailableError(context.why_not(backend, sanitized.KINDS[0]) or "")
    program = _sanitizer()
    # without the caching allocator every tensor is an allocation, whose bounds memcheck knows
    environment = os.environ | {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    command = [program, "--tool", tool, "--error-exitcode", str(SANITIZER_FOUND)]
    command += [sys.executable, "-m", "benchmarks.gpu.sanitized", backend]
    code, output = _output(command, environment, SANITIZER_SECONDS)
    last = output[-1] if output else "no output"
    if code == SANITIZER_FOUND:
        raise MeasurementError(f"{tool} found errors: {last}", {"output": output[-SANITIZER_LINES:]})
    if code:
        raise UnavailableError(f"{tool} ended with exit code {code}: {last}")
    return {"output": output[-SANITIZER_LINES:]}


def _output(command: list[str], environment: dict[str, str], seconds: float) -> tuple[int, list[str]]:
    """(exit code, lines of output) of a command, which is ended with all that it started after `seconds`."""
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired as error:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        raise UnavailableError(f"not finished after {seconds:g} s") from error
    return process.returncode, output.splitlines()


class _Load:
    """Matrix products that keep another stream busy."""

    def __init__(self, device: torch.device):
        self._stream = torch.cuda.Stream(device)
        self._a = torch.randn(LOAD, LOAD, device=device).to(torch.bfloat16)
        self._out = torch.empty_like(self._a)
        self._stream.wait_stream(torch.cuda.current_stream(device))

    def add(self) -> None:
        with torch.cuda.stream(self._stream):
            for _ in range(LOADS_PER_CALL):
                torch.mm(self._a, self._a, out=self._out)

    def wait(self) -> None:
        """Lets the current stream wait for the load, whose memory is then free."""
        torch.cuda.current_stream().wait_stream(self._stream)


def _capture(call: Callable[[], list[Tensor]]) -> tuple[torch.cuda.CUDAGraph, list[Tensor]]:
    """The graph of `call`, after a warm-up on a side stream, and the tensors that its replays write."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARM_UP_CALLS):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = call()
    return graph, captured


def _on_gpu(context: Context, backend: str) -> Block:
    if not context.is_cuda:
        raise UnavailableError("needs CUDA")
    return Block(context, backend)


def _differs(a: Tensor, b: Tensor) -> Tensor:
    """Whether any bit differs, as a number on the device; NaN equals NaN."""
    integer = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[a.itemsize]
    return (a.view(integer) != b.view(integer)).any().long()


def _verdict(result: dict[str, Any], unequal: dict[str, int], unit: str) -> dict[str, Any]:
    result["unequal"] = unequal
    different = {name: count for name, count in unequal.items() if count}
    if different:
        raise MeasurementError(f"bits differ, number of {unit} by result: {different}", result)
    return result


def _sanitizer() -> str:
    homes = [os.environ.get("CUDA_HOME"), "/usr/local/cuda"]
    folders = [str(Path(home) / place) for home in homes if home for place in ("bin", "compute-sanitizer")]
    program = shutil.which("compute-sanitizer", path=os.pathsep.join([os.environ.get("PATH", ""), *folders]))
    if program is None:
        raise UnavailableError("compute-sanitizer is neither on PATH nor in CUDA_HOME")
    return program
