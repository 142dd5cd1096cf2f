"""A contestant that fails costs only itself: what each one raises is caught, and a hang or a crash is told from it.

Who is being tried stands in a file, which the process that started the worker reads after a death. Where a failure has
taken the CUDA context along, the worker ends and another one goes on without that contestant.
"""

import faulthandler
import gc
import mmap
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

TIMED_OUT = "timed out"  # how the reason begins where a contestant did not finish
FOREVER = float("inf")
_BYTES = 256  # of the file; longer names are cut


class ContextLostError(RuntimeError):
    """Nothing can run on the GPU any more in this process, since ``contestant`` was tried."""

    def __init__(self, contestant: str, reason: str):
        super().__init__(f"{contestant}: {reason}")
        self.contestant, self.reason = contestant, reason


class Trials:
    """The contestants of one step after another. ``excluded``: whom the step under way must do without, and why."""

    def __init__(self, device: torch.device | None = None, marker: Path | None = None):
        self.device, self.current = device, ""
        self.excluded: dict[str, str] = {}
        self._end = FOREVER
        self._file = None
        if marker is not None:
            marker.parent.mkdir(parents=True, exist_ok=True)
            marker.write_bytes(bytes(_BYTES))
            with marker.open("r+b") as file:
                self._file = mmap.mmap(file.fileno(), _BYTES)

    def begin(self, excluded: dict[str, str], seconds: float) -> None:
        """Of a step, which may take so many seconds."""
        self.excluded, self._end = excluded, time.monotonic() + seconds
        self.mark("")
        self.arm()

    def end(self) -> None:
        self.mark("")
        self._end = FOREVER
        faulthandler.cancel_dump_traceback_later()

    def arm(self, seconds: float = FOREVER) -> None:
        """The process ends, after a trace of where it stood, in ``seconds`` or when the step's time is over.

        Nothing ends it outside of a step.
        """
        if self._end != FOREVER:
            left = min(seconds * patience(self.device), max(0.01, self._end - time.monotonic()))
            faulthandler.dump_traceback_later(left, exit=True, file=sys.__stderr__ or sys.stderr)

    def mark(self, name: str) -> None:
        """``name`` is tried from now on. Quick enough to be part of what is timed."""
        if name is not self.current:
            self.current = name
            if self._file is not None:
                self._file[:] = name.encode()[:_BYTES].ljust(_BYTES, b"\0")

    def watched(self, name: str, call: Callable) -> Callable:
        """``call`` that says whose it is."""

        def watched(*arguments):
            self.mark(name)
            return call(*arguments)

        return watched

    def attempt(self, name: str | None = None, seconds: float = FOREVER) -> "Attempt":
        """``with trials.attempt(name, seconds) as attempt: ...``, then ``attempt.reason`` says why it failed, or None.

        Without a name, of whoever was marked last.
        """
        return Attempt(self, name, seconds)


class Attempt:
    def __init__(self, trials: Trials, name: str | None, seconds: float):
        self._trials, self.name, self._seconds = trials, name, seconds
        self.reason: str | None = None

    def __enter__(self) -> "Attempt":
        if self.name is not None:
            self._trials.mark(self.name)
        if self._seconds != FOREVER:
            self._trials.arm(self._seconds)
        return self

    def __exit__(self, kind, error, traceback) -> bool:
        """Absorbs every error of a contestant, whatever it is: what went wrong in it is a result."""
        trials, name = self._trials, self._trials.current
        if self._seconds != FOREVER:
            trials.arm()
        trials.mark("")
        if not isinstance(error, Exception) or not name:
            return False
        self.name, self.reason = name, in_words(error)
        if not alive(trials.device):
            raise ContextLostError(name, f"{self.reason}; the CUDA context was lost") from error
        return True


def patience(device: torch.device | None) -> float:
    """By how much the seconds of limits are stretched: the CPU of a dry run may be slow, and nothing hangs there."""
    return 1.0 if device is not None and device.type == "cuda" else 20.0


def in_words(error: Exception) -> str:
    """Its kind and the first line of what it says."""
    return f"{type(error).__name__}: {next((line for line in str(error).splitlines() if line.strip()), '')}"


def alive(device: torch.device | None) -> bool:
    """Whether the device still computes; memory that nobody uses is given back."""
    if device is None or device.type != "cuda":
        return True
    try:
        torch.cuda.synchronize(device)
        gc.collect()
        torch.cuda.empty_cache()
        return torch.ones(1, device=device).item() == 1
    except RuntimeError:
        return False


def tried(marker: Path) -> str:
    """The contestant that a dead process was trying, or nothing."""
    return marker.read_bytes().rstrip(b"\0").decode(errors="replace") if marker.exists() else ""
