"""Plays the demo of the ClickMe game in a browser by scripted strokes, and goes on to a trained network.

`python -m benchmarks.game_path --output benchmarks/results/game-2026-11-26` starts `clickme serve --demo`, plays rounds
in Chromium by the mouse, then runs collect, check, train, eval and inspect, and writes what each said and pictures.

What a script paints is no human map. Players of the kind "gradient" follow the partner's own input gradients of the
true class, "centre" the middle of the picture, both with noise of their own: the path is shown, and nothing about
people.
"""

import argparse
import asyncio
import hashlib
import io
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from playwright.async_api import Browser, Page, async_playwright
from scipy.ndimage import gaussian_filter
from torchvision.transforms import v2

from gala_cuda.game.lite0 import open_lite0
from gala_cuda.game.rules import MOST_BUBBLES, RULES

CHROMIUM = "/usr/bin/chromium"
READY = """(label) => !document.querySelector("#round").hidden &&
    document.querySelector("#word").textContent === label &&
    document.querySelector("#hint").textContent.startsWith("Press")"""
OUTBOX = """new Promise((resolve) => {
    indexedDB.open("clickme-outbox").onsuccess = ({ target }) => {
        const counted = target.result.transaction("rounds").objectStore("rounds").count();
        counted.onsuccess = () => resolve(counted.result);
    };
})"""  # how many rounds have not been answered for
CAUTION = """\
Scripted strokes, and no people: two players follow the partner's own input gradients of the true class, one the middle
of the picture, with noise. The trial's pictures are parts of five photographs, and both splits have parts of each. So
what is shown is that the path holds; neither accuracy nor map score say anything about other pictures, or people."""
PICTURES = """\
A round, its result, and the admin's page at the end: `round.jpg`, `result.jpg`, `admin.jpg`; the training's curves and
what the network attends to: `curves.jpg`, `inspection.jpg`."""
WIDEST, QUALITY = 1000, 85  # of pictures, in pixels and as JPEG
PICTURED = (0, 2)  # the player and the round that pictures are taken of
KINDS = ("gradient", "gradient", "centre")
SMOOTHNESS, SEEN = 6.0, 9  # pixels: of where a player looks, and what a bubble has covered
TRAINING = ("--model", "gala_resnet18", "--init", "paper", "--image-size", "64", "--epochs", "6", "--batch-size", "8",
            "--workers", "0")  # fmt: skip


class Eye:
    """Where in a picture the partner's network finds a class."""

    def __init__(self) -> None:
        self.model, network = open_lite0()
        self.model.eval()
        self.classes = network.class_names
        steps = [network.preprocessing.resize(network.size), v2.CenterCrop(network.size)]
        self.prepare = v2.Compose([*steps, *network.preprocessing.normalisation()])

    def look(self, image: Image.Image, label: str) -> np.ndarray:
        """|gradient x input| of the class's logit at each pixel, [H, W], smoothed."""
        pixels = torch.from_numpy(np.asarray(image, np.float32) / 255).permute(2, 0, 1).requires_grad_()
        self.model(self.prepare(pixels)[None])[0, self.classes.index(label)].backward()
        assert pixels.grad is not None
        strength = (pixels.grad * pixels).detach().abs().sum(0).numpy()
        return gaussian_filter(strength, SMOOTHNESS)


def plan(interest: np.ndarray) -> list[tuple[float, float]]:
    """A path of ``MOST_BUBBLES`` places in pixels, each at most a step from the last, to what is of interest."""
    height, width = interest.shape
    rows, columns = np.mgrid[:height, :width]
    left = interest.copy()
    y, x = (float(each) for each in np.unravel_index(left.argmax(), left.shape))
    path = []
    for _ in range(MOST_BUBBLES):
        path.append((x, y))
        left[(abs(rows - y) <= SEEN) & (abs(columns - x) <= SEEN)] *= 0.3
        distance = np.hypot(rows - y, columns - x)
        goal_y, goal_x = np.unravel_index((left / (40 + distance)).argmax(), left.shape)
        away = max(float(np.hypot(goal_y - y, goal_x - x)), 1e-9)
        share = min(1.0, RULES.step / away)
        x, y = x + share * float(goal_x - x), y + share * float(goal_y - y)
    return path


@dataclass
class Player:
    """Plays in a browser of its own.

    Attributes:
        outcomes: the verdict of each round, as the page says it.
    """

    number: int
    kind: str
    eye: Eye
    output: Path
    outcomes: list[str] = field(default_factory=list)

    async def play(self, browser: Browser, address: str, rounds: int) -> None:
        context = await browser.new_context(viewport={"width": 1280, "height": 800})
        page = await context.new_page()
        await page.goto(address)
        await page.check("#agree")
        await page.click("#consent-form button")
        await page.wait_for_selector("#round:not([hidden])")
        begin = "#skip"  # the practice on a drawing
        for number in range(rounds):
            async with page.expect_response(re.compile("/api/rounds$")) as sent:
                await page.click(begin)
            told = await (await sent.value).json()
            label, picture = told["label"], f"{address}api/rounds/{told['round']}/image"
            data = await (await context.request.get(picture)).body()
            image = Image.open(io.BytesIO(data)).convert("RGB")
            path = await asyncio.to_thread(plan, await asyncio.to_thread(self._interest, image, label, number))
            await page.wait_for_function(READY, arg=label)
            await self._round(page, image, path, number)
            await page.wait_for_selector("#result:not([hidden])", timeout=30_000)
            self.outcomes.append(await page.inner_text("#verdict"))
            if (self.number, number) == PICTURED:
                await page.wait_for_timeout(1000)
                await page.screenshot(path=self.output / "result.jpg", type="jpeg", quality=QUALITY)
            begin = "#next"
        await page.wait_for_timeout(1000)
        waiting = await page.evaluate(OUTBOX)
        assert waiting == 0, f"{waiting} rounds are still in the outbox"
        await context.close()

    async def _round(self, page: Page, image: Image.Image, path: Sequence[tuple[float, float]], number: int) -> None:
        """Presses at the first place of ``path``, and follows it until the round is over."""
        box = await page.locator("#canvas").bounding_box()
        assert box is not None
        scale_x, scale_y = box["width"] / image.width, box["height"] / image.height
        places = [(box["x"] + x * scale_x, box["y"] + y * scale_y) for x, y in path]
        await page.mouse.move(*places[0])
        await page.mouse.down()
        await page.mouse.up()
        began = time.monotonic()
        for step, place in enumerate(places):
            await asyncio.sleep(max(0.0, began + step * RULES.interval_ms / 1000 - time.monotonic()))
            if not await page.is_visible("#round"):
                return
            await page.mouse.move(*place)
            if (self.number, number, step) == (*PICTURED, 15):
                await page.screenshot(path=self.output / "round.jpg", type="jpeg", quality=QUALITY)

    def _interest(self, image: Image.Image, label: str, number: int) -> np.ndarray:
        """Where this player would like to paint, [H, W]."""
        seed = hashlib.blake2b(f"{self.number} {number}".encode(), digest_size=8).digest()
        noise = np.random.default_rng(int.from_bytes(seed, "big")).random((image.height, image.width))
        if self.kind == "gradient":
            interest = self.eye.look(image, label)
        else:
            rows, columns = np.mgrid[: image.height, : image.width]
            away = np.hypot(rows / image.height - 0.5, columns / image.width - 0.5)
            interest = np.exp(-((away / 0.2) ** 2) / 2)
        return interest / interest.max() * (0.7 + 0.3 * gaussian_filter(noise, SMOOTHNESS) / 0.5)


def start(study: Path) -> tuple[subprocess.Popen, str, str]:
    """(the server's process, its address, the admin's)."""
    command = [sys.executable, "-u", "-m", "gala_cuda", "clickme", "serve", str(study), "--demo", "--port", "0"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    found: list[str] = []
    for line in server.stdout:
        print(line, end="", flush=True)
        found += re.findall(r"http://\S+", line)
        if len(found) == 2:
            return server, found[0], found[1]
    raise SystemExit(f"the server ended with code {server.wait()}")


async def play(study: Path, output: Path, rounds: int) -> list[Player]:
    """All players at once; the server is ended then."""
    server, address, admin = start(study)
    eye = Eye()
    players = [Player(number, kind, eye, output) for number, kind in enumerate(KINDS)]
    try:
        async with async_playwright() as playwright:
            browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
            await asyncio.gather(*(player.play(browser, address, rounds) for player in players))
            page = await browser.new_page(viewport={"width": 1280, "height": 900})
            await page.goto(admin)
            await page.wait_for_selector("#images li")
            await page.wait_for_load_state("networkidle")
            await page.screenshot(path=output / "admin.jpg", type="jpeg", quality=QUALITY, full_page=True)
            await browser.close()
    finally:
        server.terminate()
        print(f"the server ended with code {server.wait()}")
    return players


def run(work: Path, *words: str) -> str:
    """What `gala-cuda` with these words says in the folder ``work``."""
    print("$ gala-cuda", *words, flush=True)
    command = [sys.executable, "-m", "gala_cuda", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=work)
    print(done.stdout, done.stderr, flush=True)
    if done.returncode:
        raise SystemExit(f"exit code {done.returncode}")
    return f"$ gala-cuda {' '.join(words)}\n{done.stdout}".replace(f"{work.resolve()}/", "")


def go_on(work: Path, output: Path) -> list[str]:
    """From the rounds to a trained network: what each command says."""
    said = [
        run(work, "clickme", "collect", "study", "maps"),
        run(work, "clickme", "check", "maps"),
        run(work, "train", "--clickme", "maps", *TRAINING, "--output", "network"),
        run(work, "eval", "network", "--clickme", "maps", "--maps"),
        run(work, "inspect", "network", "maps", "--split", "train", "--limit", "8", "--output", "inspect"),
    ]
    for drawn in (work / "inspect" / "inspection.png", work / "network" / "curves.png"):
        picture = Image.open(drawn).convert("RGB")
        picture.thumbnail((WIDEST, 2 * WIDEST))
        picture.save(output / f"{drawn.stem}.jpg", quality=QUALITY)
    return said


def told(players: Sequence[Player], seconds: float, said: Sequence[str], command: str) -> str:
    """The record, in Markdown."""
    rows = [
        f"| {player.number} | {player.kind} | {len(player.outcomes)} | "
        f"{sum('got it' in outcome for outcome in player.outcomes)} |"
        for player in players
    ]
    rounds = sum(len(player.outcomes) for player in players)
    return "\n".join([
        "# From the game to a trained network", "", f"`{command}`", "",
        CAUTION, "",
        f"{rounds} rounds in {seconds:.0f} s, by {len(players)} players at once; all are in the database, once each.",
        "",
        f"{os.cpu_count()} cores, load average {', '.join(f'{load:.1f}' for load in os.getloadavg())}, torch "
        f"{torch.__version__}.", "",
        "| player | follows | rounds | recognised |", "|---|---|---|---|", *rows, "",
        *(f"```\n{text.rstrip()}\n```\n" for text in said),
        PICTURES, "",
    ])  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, required=True, help="folder for the record")
    parser.add_argument("--rounds", type=int, default=24, help="of each player (default: %(default)s)")
    parser.add_argument("--work", type=Path, help="folder for study, maps and network (default: a temporary one)")
    options = parser.parse_args(arguments)
    options.output.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as draft:
        work = options.work or Path(draft)
        began = time.monotonic()
        players = asyncio.run(play(work / "study", options.output, options.rounds))
        seconds = time.monotonic() - began
        said = go_on(work, options.output)
        kept = len((work / "maps" / "rounds.jsonl").read_text().splitlines())
        played = sum(len(player.outcomes) for player in players)
        assert kept == played, f"{kept} rounds are in the database, and {played} were played"
    command = f"python -m benchmarks.game_path --output {options.output} --rounds {options.rounds}"
    (options.output / "path.md").write_text(told(players, seconds, said, command))


if __name__ == "__main__":
    main()
