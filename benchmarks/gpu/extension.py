"""Builds the compiled extension into the checkout, with setuptools, pybind11, CMake and ninja but without pip.

`GALA_CUDA_ARCHITECTURES=90a python3 setup.py build_ext --inplace` does the same by hand.
"""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time

from gala_cuda import native

from .environment import ROOT

NVCC = os.pathsep.join([os.environ.get("PATH", ""), "/usr/local/cuda/bin"])
LINES = 20  # of a failed build's output, recorded


class Build:
    """A build in the background, which leaving `with` ends. `failure` is the last line of its output if it fails."""

    def __init__(self, architecture: str):
        self.failure = ""
        self._start = time.monotonic()
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115  closed by __exit__
        self._process = subprocess.Popen(
            [sys.executable, "setup.py", "build_ext", "--inplace"],
            cwd=ROOT,
            env={"GALA_CUDA_ARCHITECTURES": architecture} | os.environ,
            stdout=self._log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def __enter__(self) -> "Build":
        return self

    def __exit__(self, *_) -> None:
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        self._log.close()

    def finish(self, seconds: float) -> str:
        """Waits for at most `seconds` and says what became of the build. A build that is too slow is no failure."""
        try:
            code = self._process.wait(max(0.0, seconds))
        except subprocess.TimeoutExpired:
            return f"not built: {time.monotonic() - self._start:.0f} s did not suffice"
        if code == 0:
            return f"built, in {time.monotonic() - self._start:.0f} s at most"
        self._log.seek(0)
        lines = [line for line in self._log.read().splitlines() if line.strip()] or ["no output"]
        self.failure = lines[-1]
        return "\n".join(lines[-LINES:])


def worth_building() -> bool:
    """Whether a build may bring the missing CUDA kernels: if there is nvcc, or if there is no extension at all."""
    return native.module is None or shutil.which("nvcc", path=NVCC) is not None


def architecture(capability: tuple[int, int]) -> str:
    """What to build for a GPU of this compute capability: on Hopper also its own instructions."""
    return "90a" if capability == (9, 0) else f"{capability[0]}{capability[1]}"
