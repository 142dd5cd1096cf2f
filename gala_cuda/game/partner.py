"""The partner that guesses: a network in a process of its own, and the queue of guesses before it.

A process of its own, with a thread fewer than there are cores, leaves the server quick while the network runs.
"""

import asyncio
import logging
import multiprocessing
import os
import signal
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import NamedTuple

import torch

from ..errors import GalaError
from .rules import Points, noise_seed
from .view import Request, View

MAX_BATCH = 8
MAX_PENDING = 512  # guesses that wait
OPEN_SECONDS, ANSWER_SECONDS = 300, 60  # to open the network; for a batch, before the process counts as stuck
_RETRY_SECONDS = (1, 2, 5, 10, 30)  # between attempts to start it again

_log = logging.getLogger(__name__)


class PartnerDown(GalaError):  # noqa: N818 - what it says is more than that there is an error
    """The partner does not answer now; it is being started again."""


@dataclass(frozen=True)
class Knows:
    """What a partner's network is.

    Attributes:
        classes: names of its classes.
        fingerprint: a digest of its weights and of how pictures are shown to it.
    """

    classes: tuple[str, ...]
    fingerprint: str


class Answer(NamedTuple):
    """The partner's guess: the likeliest classes, the likeliest first; `error` says why it could not see the image."""

    names: tuple[str, ...]
    error: str | None = None


class Worker:
    """The process with the network. Its methods block, and are for one thread at a time.

    Args:
        open_view: makes the network; it is called in the process, and has to be known by its module's name.
        threads: of the network; a thread fewer than cores unless given.
    """

    def __init__(self, open_view: Callable[[], View], threads: int | None = None):
        self._open_view, self._threads = open_view, threads or max(1, len(os.sched_getaffinity(0)) - 1)
        self._process: multiprocessing.process.BaseProcess | None = None
        self._connection: Connection | None = None

    @property
    def pid(self) -> int | None:
        return None if self._process is None else self._process.pid

    def start(self) -> Knows:
        """Starts the process, or starts it again. Raises GalaError where the network cannot be opened."""
        self.stop()
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(
            target=_run, args=(theirs, self._open_view, self._threads), name="clickme-partner", daemon=True
        )
        self._process.start()
        theirs.close()  # or its end would not be seen
        opened = self._receive(OPEN_SECONDS)
        if isinstance(opened, str):
            raise GalaError(opened)
        return opened

    def ask(self, batch: Sequence[Request]) -> list[Answer]:
        """The answers to up to ``MAX_BATCH`` requests. Raises PartnerDown where the process has ended or is stuck."""
        if self._connection is None:
            raise PartnerDown("the partner is not running")
        try:
            self._connection.send(list(batch))
        except OSError as error:
            raise PartnerDown("the partner has ended unexpectedly") from error
        return self._receive(ANSWER_SECONDS)

    def _receive(self, seconds: float):
        assert self._connection is not None
        try:
            if self._connection.poll(seconds):
                return self._connection.recv()
        except (EOFError, OSError) as error:
            raise PartnerDown("the partner has ended unexpectedly") from error
        raise PartnerDown(f"the partner has not answered within {seconds:g} s")

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.join()
        if self._connection is not None:
            self._connection.close()
        self._process = self._connection = None


def _run(connection: Connection, open_view: Callable[[], View], threads: int) -> None:
    """What the process does until the other end of `connection` is closed, as it is when the server is killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it here too; the server ends this process
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    torch.set_num_threads(threads)
    try:
        view = open_view()
    except GalaError as error:
        connection.send(str(error))
        return
    connection.send(Knows(view.classes, view.fingerprint()))
    while True:
        try:
            batch = connection.recv()
            connection.send([Answer(*each) for each in view.guess(batch)])
        except (EOFError, BrokenPipeError):
            return


@dataclass
class _Waiting:
    request: Request
    answer: "asyncio.Future[Answer | None]"


class Partner:
    """The queue of guesses before a `Worker`, for a server's event loop.

    What queued while the network was busy is its next batch. A round has one guess that waits: a newer one takes its
    place.
    """

    def __init__(self, worker: Worker):
        self._worker = worker
        self._waiting = dict[str, _Waiting]()
        self._queued = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, "clickme-partner")
        self.ready = True

    async def guess(self, round_id: str, path: str, points: Points) -> Answer | None:
        """The answer to the image at `path` seen through `points`; None where a newer guess took this one's place.

        Raises:
            PartnerDown: the process has ended; it is being started again.
        """
        if not self.ready or len(self._waiting) >= MAX_PENDING:
            raise PartnerDown("the partner is starting" if not self.ready else "the partner has too much to do")
        waiting = _Waiting(
            Request(path, points, noise_seed(round_id, len(points))), asyncio.get_running_loop().create_future()
        )
        former = self._waiting.get(round_id)
        self._waiting[round_id] = waiting  # in the former one's place in the queue
        if former is not None:
            _resolve(former, None)
        self._queued.set()
        return await waiting.answer

    async def run(self) -> None:
        """Answers guesses until it is cancelled, and starts a process that has ended again."""
        loop = asyncio.get_running_loop()
        while True:
            await self._queued.wait()
            batch = [self._waiting.pop(key) for key in list(self._waiting)[:MAX_BATCH]]
            batch = [each for each in batch if not each.answer.done()]  # whose client has gone away
            if not self._waiting:
                self._queued.clear()
            if not batch:
                continue
            try:
                answers = await loop.run_in_executor(self._thread, self._worker.ask, [each.request for each in batch])
            except PartnerDown as error:
                await self._restart(error, batch)
                continue
            for each, answer in zip(batch, answers, strict=True):
                _resolve(each, answer)

    async def _restart(self, error: PartnerDown, batch: Sequence[_Waiting]) -> None:
        self.ready = False
        _log.error("%s; it is being started again", error)
        for each in (*batch, *self._waiting.values()):
            _resolve(each, error)
        self._waiting.clear()
        self._queued.clear()
        loop, attempt = asyncio.get_running_loop(), 0
        while not self.ready:
            try:
                await loop.run_in_executor(self._thread, self._worker.start)
                self.ready = True
            except GalaError as problem:
                _log.error("the partner does not start: %s", problem)
                await asyncio.sleep(_RETRY_SECONDS[min(attempt, len(_RETRY_SECONDS) - 1)])
                attempt += 1

    def close(self) -> None:
        """Ends the process."""
        self._worker.stop()
        self._thread.shutdown(wait=False, cancel_futures=True)


def _resolve(waiting: _Waiting, answer: Answer | PartnerDown | None) -> None:
    if waiting.answer.done():
        return
    if isinstance(answer, PartnerDown):
        waiting.answer.set_exception(answer)
    else:
        waiting.answer.set_result(answer)
