"""Describes what the figures depend on: device, driver, versions, commit."""

import os
import platform
import re
import subprocess
from pathlib import Path
from typing import Any

import torch

from gala_cuda import native
from gala_cuda.diagnostics import describe, version
from gala_cuda.version import __version__

ROOT = Path(__file__).resolve().parents[2]
_KERNEL_MODULE = Path("/proc/driver/nvidia/version")


def environment(device: torch.device) -> dict[str, Any]:
    """Plain data that is equal for two runs exactly where their figures may stand side by side."""
    return {
        "device": describe(device),
        "driver": _driver() if device.type == "cuda" else None,
        "host": f"{platform.machine()}, {os.cpu_count()} logical cores",
        "versions": {
            "gala_cuda": __version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version() if device.type == "cuda" else None,
            "triton": version("triton"),
            "timm": version("timm"),
        },
        "extension": native.module.build_info() if native.module else native.why_not,
        "commit": _commit(),
    }


def slug(device_name: str) -> str:
    """ "NVIDIA H200" as it stands in a folder's name: nvidia-h200."""
    return re.sub(r"[^a-z0-9]+", "-", device_name.lower()).strip("-")


def ask_driver(*fields: str) -> dict[str, str] | None:
    """Fields of `nvidia-smi --query-gpu` for the first GPU that this process may see, or None without the tool."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0] or "0"
    command = ["nvidia-smi", f"--id={visible}", f"--query-gpu={','.join(fields)}", "--format=csv,noheader"]
    answer = _output(command)
    return None if answer is None else dict(zip(fields, answer.split(", "), strict=True))


def _driver() -> str | None:
    answer = ask_driver("driver_version")
    if answer is not None:
        return answer["driver_version"]
    if not _KERNEL_MODULE.exists():
        return None
    found = re.search(r"\d+\.\d+(\.\d+)?", _KERNEL_MODULE.read_text())
    return None if found is None else found[0]


def _commit() -> str | None:
    """The checkout's commit, with "-dirty" where tracked files differ from it; None outside a checkout."""
    commit = _output(["git", "-C", str(ROOT), "rev-parse", "HEAD"])
    if commit is None:
        return None
    changed = _output(["git", "-C", str(ROOT), "status", "--porcelain", "--untracked-files=no"])
    return f"{commit}-dirty" if changed else commit


def _output(command: list[str]) -> str | None:
    """What `command` prints, or None where it does not exist or fails."""
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout.strip()
    except (OSError, subprocess.CalledProcessError, subprocess.TimeoutExpired):
        return None
