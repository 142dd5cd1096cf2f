"""Measures the ClickMe game's server: how long guesses and finished rounds take while people play at once.

`python -m benchmarks.bench_game` starts servers with the demo's partner and with one that takes 5 ms, has scripted
players paint at the game's pace (20 bubbles and 2 guesses a second), and prints times beside their goals. Players run
in a process beside the server, on the same machine: their own delays are in the times.
"""

import argparse
import asyncio
import io
import json
import multiprocessing
import os
import random
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.table import Table
from torch import nn

from gala_cuda.console import PlainConsole
from gala_cuda.data.preprocessing import IMAGENET
from gala_cuda.game.database import database_of
from gala_cuda.game.demo import SIDE as DEMO_SIDE
from gala_cuda.game.demo import write_demo
from gala_cuda.game.launch import Options, launch
from gala_cuda.game.listen import address_of, bind
from gala_cuda.game.rules import MOST_BUBBLES, RULES
from gala_cuda.game.store import Store
from gala_cuda.game.view import View, ViewOptions

QUICK_MS, DEMO = 5, "EfficientNet-Lite0"
PROBE_SECONDS = 0.2  # between two looks at the board while others play
SIDE = 256  # pixels of the pictures for the partner of 5 ms


class Brightness(nn.Module):
    """Answers after ``QUICK_MS``: class 0 where a picture is bright, as one is that is shown in full."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        time.sleep(QUICK_MS / 1000)
        bright = images.mean((1, 2, 3)) > 0.4
        logits = torch.zeros(len(images), 60)
        logits[:, 0] = torch.where(bright, 1.0, -1.0)
        return logits


def quick() -> View:
    """Opens the partner of 5 ms."""
    unscaled = replace(IMAGENET, mean=(0.0,) * 3, std=(1.0,) * 3)
    return View(Brightness(), ["bright", *(f"class {number}" for number in range(1, 60))], 32, unscaled)


@dataclass
class Times:
    """Seconds that requests took, by route, and what was answered."""

    taken: dict[str, list[float]] = field(default_factory=dict)
    statuses: Counter = field(default_factory=Counter)

    def add(self, route: str, status: int, seconds: float) -> None:
        self.taken.setdefault(route, []).append(seconds)
        self.statuses[route, status] += 1

    def quantile(self, share: float, *routes: str) -> float:
        """In milliseconds, of all the routes together."""
        taken = sorted(seconds for route in routes for seconds in self.taken.get(route, ()))
        return 1000 * taken[min(len(taken) - 1, int(share * len(taken)))] if taken else float("nan")


class Client:
    """A connection that stays open, with a player's cookie."""

    def __init__(self, port: int, times: Times):
        self.port, self.times, self.cookie = port, times, ""

    async def open(self) -> None:
        self.reader, self.writer = await asyncio.open_connection("127.0.0.1", self.port)

    async def ask(self, route: str, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        """The status and the answer, JSON or bytes."""
        data = b"" if body is None else json.dumps(body).encode()
        head = f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1:{self.port}\r\nCookie: {self.cookie}\r\n"
        head += f"Content-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
        began = time.perf_counter()
        self.writer.write(head.encode() + data)
        answer = await self.reader.readuntil(b"\r\n\r\n")
        lines = answer.decode("latin-1").split("\r\n")
        fields = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines[1:])}
        content = await self.reader.readexactly(int(fields.get("content-length", 0)))
        status = int(lines[0].split()[1])
        self.times.add(route, status, time.perf_counter() - began)
        if "set-cookie" in fields:
            self.cookie = fields["set-cookie"].partition(";")[0]
        return status, json.loads(content) if "json" in fields.get("content-type", "") else content


async def play(client: Client, until: float, seed: int, finished: list[str]) -> None:
    """Plays round after round, at the game's pace, and begins none after ``until``."""
    rng = random.Random(seed)
    await client.open()
    assert (await client.ask("join", "POST", "/api/join", {"consent": True}))[0] == 200
    await asyncio.sleep(rng.random() * RULES.limit_ms / 1000)  # players do not start together
    while time.monotonic() < until:
        status, told = await client.ask("round", "POST", "/api/rounds", {})
        assert status == 200, told
        await client.ask("image", "GET", f"/api/rounds/{told['round']}/image")
        points, number = path(rng, told["width"], told["height"]), 0
        began, won = time.monotonic(), False
        for number in range(RULES.every, MOST_BUBBLES + 1, RULES.every):
            await asyncio.sleep(max(0.0, began + points[number - 1][2] / 1000 - time.monotonic()))
            body = {"points": points[:number]}
            status, answer = await client.ask("guess", "POST", f"/api/rounds/{told['round']}/guess", body)
            if status == 200 and answer["recognised"]:
                won = True
                break
        device = {"pointer": "mouse", "ratio": 1, "width": 1280, "height": 800}
        result = {"outcome": "recognised" if won else "timeout", "points": points[:number], "device": device}
        status, answer = await client.ask("finish", "PUT", f"/api/rounds/{told['round']}", result)
        assert status == 200, answer
        finished.append(told["round"])
    client.writer.close()


def path(rng: random.Random, width: int, height: int) -> list[tuple[int, int, int]]:
    """A walk of ``MOST_BUBBLES`` within the rules, from the middle of an image."""
    points, x, y = [], 8 * width, 8 * height
    for number in range(MOST_BUBBLES):
        points.append((x, y, RULES.interval_ms * number))
        step = 75  # sixteenths of a pixel, at most, along each axis
        while (x, y) == points[-1][:2]:
            x = min(max(x + rng.randint(-step, step), 0), 16 * width)
            y = min(max(y + rng.randint(-step, step), 0), 16 * height)
    return points


async def probe(client: Client, until: float) -> None:
    """Looks at the board while others play."""
    await client.open()
    while time.monotonic() < until:
        await client.ask("board", "GET", "/api/board")
        await client.ask("healthz", "GET", "/healthz")
        await asyncio.sleep(PROBE_SECONDS)
    client.writer.close()


async def measure(port: int, players: int, seconds: float) -> tuple[Times, list[str], float]:
    """(times, rounds that were answered for, how long it took)."""
    times, finished = Times(), list[str]()
    began = time.monotonic()
    until = began + seconds
    await asyncio.gather(
        probe(Client(port, times), until),
        *(play(Client(port, times), until, number, finished) for number in range(players)),
    )
    return times, finished, time.monotonic() - began


def write_study(folder: Path) -> None:
    """Bright pictures for the partner of 5 ms."""
    place, rng = folder / "images" / "bright", np.random.default_rng(0)
    place.mkdir(parents=True)
    for number in range(50):
        Image.fromarray(rng.integers(100, 256, (SIDE, SIDE, 3), np.uint8)).save(place / f"{number}.jpg")
    (folder / "consent.txt").write_text("A measurement.")
    (folder / "study.yaml").write_text("people: 1000\nceiling_share: 0\nrepeats: true\n")


def serve(study: Path, database: str | None, view: Callable[[], View], top: int, said: Any) -> None:
    """A server in a process of its own, which tells its port."""
    bound = bind("127.0.0.1", 0)
    said.put(int(address_of(bound).rsplit(":", 1)[1]))
    launch(Options(study, False, database, view, top), bound, PlainConsole(file=io.StringIO()))


def memory(process: int) -> float:
    """MiB that a process and those that it started have in memory, what they share counted once for each."""
    children = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    own = next(line for line in Path(f"/proc/{process}/status").read_text().splitlines() if line.startswith("VmRSS"))
    return int(own.split()[1]) / 1024 + sum(memory(int(child)) for child in children)


def forward_ms(batch: int) -> float:
    """The median time in which the demo's partner names ``batch`` pictures, on one thread."""
    torch.set_num_threads(1)
    view = ViewOptions(None)()
    pictures = [np.random.default_rng(0).random((DEMO_SIDE, DEMO_SIDE, 3), np.float32)] * batch
    taken = []
    for _ in range(8):
        began = time.perf_counter()
        view.names(pictures)
        taken.append(time.perf_counter() - began)
    return 1000 * statistics.median(taken[2:])


def run(
    database: str | None, partner: str, counts: Sequence[int], seconds: float, table: Table, goals: Sequence[str]
) -> None:
    """Starts a server, and adds a row to the table for each number of players."""
    with tempfile.TemporaryDirectory() as place:
        study, context = Path(place, "study"), multiprocessing.get_context("spawn")
        view: Callable[[], View] = quick
        if partner == DEMO:
            view = ViewOptions(None)
            write_demo(study)
        else:
            write_study(study)
        said = context.Queue()
        server = context.Process(target=serve, args=(study, database, view, 5 if partner == DEMO else 1, said))
        server.start()
        port = said.get()
        asyncio.run(wait_until_ready(port))
        known = set(rounds_of(study, database))
        for players, goal in zip(counts, goals, strict=True):
            times, finished, lasted = asyncio.run(measure(port, players, seconds))
            kept = [number for number in rounds_of(study, database) if number not in known]
            known.update(kept)
            cells = [
                "SQLite" if database is None else "PostgreSQL", partner, str(players),
                *row(times, finished, kept, lasted, goal), f"{memory(server.pid or 0):.0f}",
            ]  # fmt: skip
            table.add_row(*cells)
            print("measured:", *cells, file=sys.stderr, flush=True)
        server.terminate()
        server.join()


def row(times: Times, finished: Sequence[str], kept: Sequence[str], lasted: float, goal: str) -> list[str]:
    """The columns of a measurement, from guesses a second on."""
    wrong = (Counter(kept) - Counter(finished)) + (Counter(finished) - Counter(kept))
    refused = sum(count for (_, status), count in times.statuses.items() if status >= 400)
    others = times.quantile(0.95, "round", "image", "board", "healthz")
    return [
        f"{len(times.taken['guess']) / lasted:.1f}", f"{times.quantile(0.5, 'guess'):.0f}",
        f"{times.quantile(0.95, 'guess'):.0f}", goal, f"{others:.0f}", f"{times.quantile(0.95, 'finish'):.0f}",
        f"{len(finished) / lasted:.2f}", str(times.statuses["guess", 202]), str(refused), str(wrong.total()),
    ]  # fmt: skip


async def wait_until_ready(port: int) -> None:
    client = Client(port, Times())
    while True:
        try:
            await client.open()
            if (await client.ask("healthz", "GET", "/healthz"))[0] == 200:
                return
        except OSError:
            pass
        await asyncio.sleep(0.5)


def rounds_of(study: Path, database: str | None) -> list[str]:
    store = Store(database or database_of(study), create=False)
    try:
        return [round.id for round in store.rounds()]
    finally:
        store.close()


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=30, help="for which rounds are begun (default: %(default)s)")
    parser.add_argument("--database", metavar="URL", help="of PostgreSQL, an empty one; measured beside SQLite")
    options = parser.parse_args(arguments)
    console = Console(width=200)
    forwards = {batch: forward_ms(batch) for batch in (1, 4, 8)}
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    console.print(f"{os.cpu_count()} cores; load average before: {load}; goals: other routes and finish 50 ms, wrong 0")
    console.print(
        "the partner names "
        + ", ".join(f"{batch} picture{'s' * (batch > 1)} in {taken:.0f} ms" for batch, taken in forwards.items())
    )
    table = Table(
        "database", "partner", "players", "guesses/s", "guess p50", "p95", "goal", "other p95",
        "finish p95", "rounds/s", "replaced", "refused", "lost or doubled", "MiB", title="times in ms", box=None,
    )  # fmt: skip
    for database in dict.fromkeys((None, options.database)):
        goals = ("-", f"{3 * forwards[4] + 50:.0f}", "1200")
        run(database, DEMO, (1, 4, 16), options.seconds, table, goals)
        run(database, f"{QUICK_MS} ms", (100,), options.seconds, table, ("100",))
    console.print(table)
    console.print(f"load average after: {', '.join(f'{value:.1f}' for value in os.getloadavg())}")


if __name__ == "__main__":
    main()
