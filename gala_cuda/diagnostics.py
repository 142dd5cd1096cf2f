"""`doctor`: what is installed, what was built, and which backend runs where."""

import importlib.metadata
import json
import os
import platform
from dataclasses import asdict, dataclass
from email import message_from_string
from pathlib import Path

import torch

from . import backends, native
from .version import __version__


@dataclass(frozen=True)
class Device:
    """One device and what runs on it."""

    name: str  # "cpu", "cuda:0"
    description: str
    backends: dict[str, str | None]  # None where the backend is usable on a float32 tensor, else why not
    automatic: str | None  # the backend that backend=None takes
    problem: str | None  # why that choice fails, where it does


@dataclass(frozen=True)
class Report:
    """What `doctor` found; `str(report)` is a table, `report.as_dict()` plain data for JSON."""

    versions: dict[str, str | None]
    wheel: str | None  # the installed one's tag and size, None where the package is not installed
    build: dict | None  # of the compiled extension, None where there is none
    build_problem: str | None  # why there is none
    instruction_set: str | None  # that the compiled CPU kernels use here
    gala_backend: str | None  # the environment variable GALA_BACKEND
    devices: tuple[Device, ...]

    def as_dict(self) -> dict:
        return asdict(self)

    def __str__(self) -> str:
        rows = [(name, version or "not installed") for name, version in self.versions.items()]
        rows.append(("wheel", self.wheel or "none: the package is not installed"))
        rows.append(
            ("extension", self.build_problem or ", ".join(f"{k} {_words(v)}" for k, v in (self.build or {}).items()))
        )
        if self.instruction_set:
            rows.append(("instructions", self.instruction_set))
        rows.append(("GALA_BACKEND", self.gala_backend or "not set"))
        lines = _align(rows)
        for device in self.devices:
            usable = [(name, f"no: {reason}" if reason else _usable(name)) for name, reason in device.backends.items()]
            usable.append(("automatic", f"none: {device.problem}" if device.problem else f"{device.automatic}"))
            lines += ["", f"{device.name}: {device.description}", *(f"  {line}" for line in _align(usable))]
        return "\n".join(lines)


def doctor() -> Report:
    """Versions, build, devices, and for each backend: usable, or why not. Never raises for a broken installation."""
    build = instruction_set = None
    if native.module is not None:
        build = native.module.build_info()
        instruction_set = torch.ops.gala_native.cpu_isa()
    return Report(
        versions={
            "gala_cuda": __version__,
            "python": platform.python_version(),
            "torch": f"{torch.__version__} ({f'CUDA {torch.version.cuda}' if torch.version.cuda else 'no CUDA'})",
            "triton": version("triton"),
        },
        wheel=_wheel(),
        build=build,
        build_problem=native.why_not,
        instruction_set=instruction_set,
        gala_backend=os.environ.get("GALA_BACKEND") or None,
        devices=tuple(_device(torch.device(name)) for name in _device_names()),
    )


def describe(device: torch.device) -> str:
    """The device in words: the CPU's model and torch's threads, or the GPU's name and compute capability."""
    if device.type == "cpu":
        return f"{_cpu_model()}, {torch.get_num_threads()} threads"
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        return f"{properties.name}, compute capability {properties.major}.{properties.minor}"
    return device.type


def dtype_name(dtype: torch.dtype) -> str:
    """The name of a dtype alone, such as "bfloat16" for torch.bfloat16."""
    return str(dtype).removeprefix("torch.")


def version(distribution: str) -> str | None:
    """The version of an installed distribution, or None."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _wheel() -> str | None:
    try:
        installed = importlib.metadata.distribution("gala-cuda")
    except importlib.metadata.PackageNotFoundError:
        return None
    tags = ", ".join(message_from_string(installed.read_text("WHEEL") or "").get_all("Tag", []))
    origin = json.loads(installed.read_text("direct_url.json") or "{}")
    if origin.get("dir_info", {}).get("editable"):
        return f"{tags}, editable"
    paths = [Path(str(file.locate())) for file in installed.files or ()]
    return f"{tags}, {sum(path.stat().st_size for path in paths if path.exists()) / 1e6:.1f} MB"


def _device_names() -> list[str]:
    return ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]


def _device(device: torch.device) -> Device:
    x = torch.zeros(1, 1, 1, 1, device=device)
    automatic = problem = None
    try:
        automatic, _ = backends.choose(x, backends.requested(None))
    except (ValueError, RuntimeError) as error:  # GALA_BACKEND names no backend, or one that does not run here
        problem = str(error)
    return Device(
        name=str(device),
        description=describe(device),
        backends={name: backends.why_not(name, x) for name in backends.NAMES},
        automatic=automatic,
        problem=problem,
    )


def _cpu_model() -> str:
    try:
        with open("/proc/cpuinfo") as lines:
            return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):  # not Linux, or an architecture without the field
        return platform.processor() or platform.machine()


def _usable(name: str) -> str:
    reason = backends.ON_REQUEST.get(name)
    return f"usable where it is asked for by name: {reason}" if reason else "usable"


def _words(value: object) -> str:
    return " ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _align(rows: list[tuple[str, str]]) -> list[str]:
    width = max(len(name) for name, _ in rows)
    return [f"{name:<{width}}  {text}" for name, text in rows]
