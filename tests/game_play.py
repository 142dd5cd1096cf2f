"""Scripted players of the game, a quick partner for them, and servers: in a thread of the test, or as a process."""

import hashlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from gala_cuda.game.access import Buckets
from gala_cuda.game.listen import Server, bind
from gala_cuda.game.partner import Answer, Knows, Partner, PartnerDown
from gala_cuda.game.rules import noise_seed, reveal
from gala_cuda.game.server import make_app
from gala_cuda.game.session import Game, Limits
from gala_cuda.game.store import Store
from gala_cuda.game.study import load_study
from gala_cuda.game.view import Request

COLOURS = {"red": (200, 30, 40), "green": (30, 180, 60), "blue": (50, 70, 210), "yellow": (220, 210, 40)}
WIDTH, HEIGHT, PATCH = 96, 64, 40  # of an image, and of the patch of its class's colour in the middle
ENOUGH = 700  # pixels of the patch that the quick partner has to see
DEVICE = {"pointer": "mouse", "ratio": 1.5, "width": 1280, "height": 720}
NO_LIMITS = (1e6, 1e6)


def write_study(folder: Path, per_class: int = 3, **settings: object) -> Path:
    """A study of patches in four colours on noise, each image another."""
    rng = np.random.default_rng(7)
    for name, colour in COLOURS.items():
        (folder / "images" / name).mkdir(parents=True)
        for number in range(per_class):
            pixels = rng.integers(90, 110, (HEIGHT, WIDTH, 3), np.uint8)
            top, left = (HEIGHT - PATCH) // 2, (WIDTH - PATCH) // 2
            pixels[top : top + PATCH, left : left + PATCH] = colour
            Image.fromarray(pixels).save(folder / "images" / name / f"{number}.png")
    (folder / "consent.txt").write_text("You paint; we keep where.\n")
    if settings:
        (folder / "study.yaml").write_text(json.dumps(settings))
    return folder


def stroke(count: int = 10) -> list[list[int]]:
    """Bubbles through the middle, to and fro: after 10 the quick partner has seen enough."""
    line = [(16 * (WIDTH // 2 - 18 + 7 * (k % 6)), 16 * (HEIGHT // 2 - 12 + 7 * (k // 6))) for k in range(count)]
    turned = [(x, y) if (y // 112) % 2 == (line[0][1] // 112) % 2 else (line[5 - k % 6][0], y) for k, (x, y) in
              enumerate(line)]  # fmt: skip
    return [[x, y, 50 * k] for k, (x, y) in enumerate(turned)]


def corner(count: int = 10) -> list[list[int]]:
    """Bubbles in a corner, where the partner sees nothing of the patch."""
    return [[16 * (k % 2), 0, 50 * k] for k in range(count)]


class FakeView:
    """Knows a colour by counting pixels that have exactly it; hidden pixels never do. It names what it saw, too."""

    classes = (*COLOURS, "nothing")

    def __init__(self, seconds: float = 0.0):
        self.seconds = seconds

    def fingerprint(self) -> str:
        return "fake"

    def guess(self, batch: Sequence[Request]) -> Iterator[tuple[tuple[str, ...], str | None]]:
        time.sleep(self.seconds)
        for request in batch:
            if not Path(request.path).exists():
                yield (), f"{Path(request.path).name} is gone"
                continue
            view = seen(Path(request.path), request.points, request.seed)
            counts = {name: _count(view, colour) for name, colour in COLOURS.items()}
            best = max(counts, key=lambda name: counts[name])
            yield (best if counts[best] >= ENOUGH else "nothing", digest(view), f"batch of {len(batch)}"), None


def seen(path: Path, points: Any, seed: int) -> np.ndarray:
    """What the partner sees, by the rules alone."""
    image = np.array(Image.open(path).convert("RGB"))
    return image.astype(np.float32) / np.float32(255) if points is None else reveal(image, points, seed)


def _count(view: np.ndarray, colour: tuple[int, int, int]) -> int:
    return int((view == np.array(colour, np.float32) / np.float32(255)).all(-1).sum())


def digest(view: np.ndarray) -> str:
    return hashlib.sha256(view.tobytes()).hexdigest()


def expected_digest(study: Path, image: str, round_id: str, points: Sequence[Sequence[int]]) -> str:
    """That of what the partner has to see of `image` in the round after all `points`."""
    given = tuple((x, y, ms) for x, y, ms in points)
    return digest(seen(study / "images" / image, given, noise_seed(round_id, len(points))))


@dataclass(frozen=True)
class OpenFake:
    """Opens a `FakeView`, in another process too."""

    seconds: float = 0.0

    def __call__(self) -> FakeView:
        return FakeView(self.seconds)


class LocalWorker:
    """A `Worker` in this process, of a `FakeView` or a `View`; tests replace `ask` and set `broken`."""

    def __init__(self, view: Any):
        self.view, self.batches, self.broken = view, list[list[Request]](), False

    def start(self) -> Knows:
        if self.broken:
            raise PartnerDown("still broken")
        return Knows(self.view.classes, "fake")

    def ask(self, batch: Sequence[Request]) -> list[Answer]:
        if self.broken:
            raise PartnerDown("the partner has ended unexpectedly")
        self.batches.append(list(batch))
        return [Answer(*each) for each in self.view.guess(batch)]

    def stop(self) -> None:
        pass


def make_game(study: Path, database: str, worker: Any, **options: Any) -> Game:
    """A game whose images have not been checked."""
    store = Store(database)
    loaded = load_study(study)
    store.add_images(loaded.pictures)
    options.setdefault("limits", generous())
    return Game(loaded, store, Partner(worker), 1, **options)


def generous() -> Limits:
    """Limits that scripts do not reach."""
    return Limits(*(Buckets(*NO_LIMITS) for _ in range(5)))


@contextmanager
def running(game: Game) -> Iterator[int]:
    """The port of a server of `game` in a thread."""
    bound = bind("127.0.0.1", 0)
    server = Server(make_app(game))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]})
    thread.start()
    try:
        wait_for(lambda: server.started)
        yield bound.getsockname()[1]
    finally:
        server.should_exit = True
        thread.join()


def wait_for(holds: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, f"it has not come true within {seconds} s"
        time.sleep(0.005)


class Player:
    """A client with a cookie jar of one."""

    def __init__(self, port: int, seconds: float = 60, address: str = "127.0.0.1"):
        """`address` is the client's own: each of 127.0.0.0/8 is this machine's."""
        self.cookie, self.code = "", ""
        self.connection = http.client.HTTPConnection("127.0.0.1", port, timeout=seconds, source_address=(address, 0))

    def ask(self, method: str, path: str, body: object = None, **headers: str) -> tuple[int, Any]:
        """(status, JSON, or bytes where it is none) of a request; bytes and text are sent as they are."""
        data = body if isinstance(body, bytes | str | None) else json.dumps(body)
        headers = {"Content-Type": "application/json"} | {key.replace("_", "-"): text for key, text in headers.items()}
        if self.cookie:
            headers.setdefault("Cookie", self.cookie)
        try:
            self.connection.request(method, path, data, headers)
            self.response = self.connection.getresponse()
            answer = self.response.read()
        except (OSError, http.client.HTTPException):
            self.connection.close()
            raise
        kind = self.response.headers.get("Content-Type", "")
        return self.response.status, json.loads(answer) if kind == "application/json" else answer

    def join(self, **more: object) -> "Player":
        status, answer = self.ask("POST", "/api/join", {"consent": True, **more})
        assert status == 200, answer
        self.cookie = self.response.headers["Set-Cookie"].partition(";")[0]
        self.code = answer["participant"]
        return self

    def start(self, **body: object) -> dict[str, Any]:
        status, answer = self.ask("POST", "/api/rounds", body)
        assert status == 200, (status, answer)
        return answer

    def guess(self, round_id: str, points: Sequence[Sequence[int]]) -> tuple[int, Any]:
        return self.ask("POST", f"/api/rounds/{round_id}/guess", {"points": points})

    def finish(self, round_id: str, points: Sequence[Sequence[int]], outcome: str = "timeout") -> tuple[int, Any]:
        return self.ask("PUT", f"/api/rounds/{round_id}", finished(points, outcome))


def finished(points: Sequence[Sequence[int]], outcome: str = "timeout") -> dict[str, object]:
    """The body that ends a round."""
    return {"outcome": outcome, "points": points, "device": DEVICE}


class Servers:
    """Servers with a process each, forked from one that has imported all of the game: they start in a moment."""

    def __init__(self) -> None:
        root = str(Path(__file__).resolve().parents[1])
        self._parent = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env=os.environ | {"PYTHONPATH": root, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip

    def start(self, study: Path, database: str, port: int, seconds: float = 0.0, limited: bool = False) -> int:
        """The process id of a new server at `port`, which answers. A batch takes the partner `seconds`."""
        assert self._parent.stdin is not None
        assert self._parent.stdout is not None
        print(json.dumps([str(study), database, port, seconds, limited]), file=self._parent.stdin, flush=True)
        pid = int(self._parent.stdout.readline())
        wait_for(lambda: is_healthy(port))
        return pid

    def kill(self, pid: int) -> None:
        """Kills a server; its port is free when this returns."""
        os.kill(pid, signal.SIGKILL)
        wait_for(lambda: not _is_there(pid))

    def close(self) -> None:
        self._parent.communicate()  # the end of its input is its own


def _is_there(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def is_healthy(port: int) -> bool:
    try:
        return Player(port, 5).ask("GET", "/healthz")[0] == 200
    except (OSError, http.client.HTTPException):
        return False


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


def _fork_servers() -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # no one waits for them
    for line in sys.stdin:
        study, database, port, seconds, limited = json.loads(line)
        pid = os.fork()
        if pid == 0:
            os.close(0)
            bound = bind("127.0.0.1", port)
            limits = Limits() if limited else generous()
            game = make_game(Path(study), database, LocalWorker(FakeView(seconds)), limits=limits)
            Server(make_app(game)).run(sockets=[bound])
            os._exit(0)
        print(pid, flush=True)


if __name__ == "__main__":
    _fork_servers()
