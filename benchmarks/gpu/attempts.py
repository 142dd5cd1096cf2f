"""Catches what a contestant raises, so that one that fails, hangs or crashes is left out and all others go on.

The name of the contestant being tried stands in a file, which the process that started the worker reads if the worker
dies. If a failure has destroyed the CUDA context, the worker ends and another one continues without that contestant.
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
    """Nothing can run on the GPU any more in this process, since `contestant` was tried."""

    def __init__(self, contestant: str, reason: str):
        super().__init__(f"{contestant}: {reason}")
        self.contestant, self.reason = contestant, reason


class Trials:
    """Keeps track of which contestant is being tried; `excluded` names those that the present step must do without."""

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
        """Begins a step that may take `seconds`."""
        self.excluded, self._end = excluded, time.monotonic() + seconds
        self.mark("")
        self.arm()

    def end(self) -> None:
        self.mark("")
        self._end = FOREVER
        faulthandler.cancel_dump_traceback_later()

    def arm(self, seconds: float = FOREVER) -> None:
        """The process ends, after a trace of where it stood, in `seconds` or when the step's time is over.

        Nothing ends it outside of a step.
        """
        if self._end != FOREVER:
            left = min(seconds * patience(self.device), max(0.01, self._end - time.monotonic()))
            faulthandler.dump_traceback_later(left, exit=True, file=sys.__stderr__ or sys.stderr)

    def mark(self, name: str) -> None:
        """Notes that `name` is tried from now on; quick enough to be part of what is timed."""
        if name is not self.current:
            self.current = name
            if self._file is not None:
                self._file[:] = name.encode()[:_BYTES].ljust(_BYTES, b"\0")

    def watched(self, name: str, call: Callable) -> Callable:
        """`call`, which first notes that it is that of `name`."""

        def watched(*arguments):
            self.mark(name)
            return call(*arguments)

        return watched

    def attempt(self, name: str | None = None, seconds: float = FOREVER) -> "Attempt":
        """`with trials.attempt(name, seconds) as attempt: ...`, then `attempt.reason` says why it failed, or None.

        Without a name it is an attempt of whoever was marked last.
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
    """By how much time limits are stretched: in a dry run the CPU may be slow, and nothing hangs there."""
    return 1.0 if device is not None and device.type == "cuda" else 20.0


def in_words(error: Exception) -> str:
    """The kind of an error and the first line of its message."""
    return f"{type(error).__name__}: {next((line for line in str(error).splitlines() if line.strip()), '')}"


def alive(device: torch.device | None) -> bool:
    """Whether the device still computes; gives unused memory back."""
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
