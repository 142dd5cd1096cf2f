"""Ends a command on Ctrl-C or SIGTERM with one line and an exit code, without a traceback."""

import os
import shlex
import shutil
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stop:
    """Whether a signal came.

    Attributes:
        number: of the first signal; None as long as there was none.
    """

    number: int | None = None

    @property
    def code(self) -> int:
        """The exit code that goes with the signal."""
        return 128 + (self.number or 0)

    def __str__(self) -> str:
        return "interrupted" if self.number == signal.SIGINT else "ended by SIGTERM"


@contextmanager
def stoppable() -> Iterator[Stop]:
    """Either signal raises KeyboardInterrupt inside, in the main thread of this process.

    A child that was forked off takes no notice of SIGINT, which a terminal sends to it too: its parent ends it. Signals
    that this process ignores, as under nohup, stay ignored. In other threads than the main one nothing changes.
    After a signal another one ends the process at once, by the system's default.
    """
    stop, owner = Stop(), os.getpid()

    def handle(number: int, _: FrameType | None) -> None:
        if os.getpid() == owner:
            stop.number = stop.number or number
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # or torch raises for workers that the signal ended too
            raise KeyboardInterrupt
        if number != signal.SIGINT:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

    before = {}
    if threading.current_thread() is threading.main_thread():
        for number in SIGNALS:
            if signal.getsignal(number) not in (signal.SIG_IGN, None):
                before[number] = signal.signal(number, handle)
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler if stop.number is None else signal.SIG_DFL)


def command_line(*added: str) -> str:
    """The shell command that started this process, with the arguments `added` unless it has them."""
    program, *given = sys.argv
    words = [*given, *(word for word in added if word not in given)]
    if "WORLD_SIZE" in os.environ:
        machines = os.environ.get("GROUP_WORLD_SIZE", "1")
        meet = (
            ["--nnodes", machines, "--rdzv-backend", "c10d", "--rdzv-endpoint", "HOST:PORT"] if machines != "1" else []
        )
        start = ["torchrun", *meet, "--nproc-per-node", os.environ["LOCAL_WORLD_SIZE"], "-m", "gala_cuda"]
    elif os.path.basename(program) == "gala-cuda":
        start = ["gala-cuda" if shutil.which("gala-cuda") == program else program]
    else:
        start = [sys.orig_argv[0], "-m", "gala_cuda"]
    return shlex.join([*start, *words])
