"""Writes the documentation's pictures of the game to docs/assets: `python -m tools.game_pictures`.

A browser plays the trial study with its real partner until a round is won, which takes a minute or two. It needs
Chromium (tests/system.sh) and the extras game and test.
"""

import io
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright

CHROMIUM = "/usr/bin/chromium"
ASSETS = Path(__file__).resolve().parents[1] / "docs" / "assets"
GAP = 24  # pixels between pictures beside each other
MOST_ROUNDS = 20
SPEED, ACROSS, LINE = 0.8, 0.7, 0.125  # of the brush, in shares of a picture: a second, a line's length, between lines


@contextmanager
def trial() -> Iterator[str]:
    """The address of a server of the trial study."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-u", "-m", "gala_cuda", "clickme", "serve", folder, "--demo", "--port", "0"]
        server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        try:
            assert server.stdout is not None
            for line in server.stdout:
                if line.startswith("ClickMe is played at "):
                    yield line.split()[-1]
                    return
            raise SystemExit(f"{' '.join(command)} ended before it could be played")
        finally:
            server.terminate()
            server.wait()


def seen(page: Page) -> Image.Image:
    """What the window shows."""
    return Image.open(io.BytesIO(page.screenshot())).convert("RGB")


def save(path: Path, pictures: list[Image.Image], width: int) -> None:
    """The pictures beside each other, in so many pixels."""
    across = sum(each.width for each in pictures) + GAP * (len(pictures) - 1)
    sheet = Image.new("RGB", (across, pictures[0].height), "white")
    left = 0
    for each in pictures:
        sheet.paste(each, (left, 0))
        left += each.width + GAP
    sheet = sheet.resize((width, round(sheet.height * width / across)), Image.Resampling.LANCZOS)
    sheet.save(path, quality=85, optimize=True)
    print(f"{path}: {path.stat().st_size / 1000:.0f} kB")


def at(seconds: float) -> tuple[float, float]:
    """Where the brush of a careful player is by then, in shares of the picture: line by line over its middle."""
    line, along = divmod(SPEED * seconds, ACROSS)
    return 0.5 + (along - ACROSS / 2) * (1 if line % 2 == 0 else -1), 0.22 + LINE * line


def paint(page: Page, since: float, until: float) -> None:
    """Paint from one second of a round to another, or to its end; from 0 on it begins with the press."""
    box = page.locator("#canvas").bounding_box()
    assert box is not None
    began, seconds = time.monotonic() - since, since
    while seconds < until and page.is_visible("#round"):
        x, y = at(seconds)
        page.mouse.move(box["x"] + box["width"] * x, box["y"] + box["height"] * y)
        if since == seconds == 0:
            page.mouse.down()
            began = time.monotonic()
        page.wait_for_timeout(15)
        seconds = time.monotonic() - began


def play(browser: Browser, address: str, size: tuple[int, int], **options: Any) -> list[Image.Image]:
    """The first page once its example has been played, a round, and its result when it is won."""
    width, height = size
    page = browser.new_page(viewport={"width": width, "height": height}, device_scale_factor=1.5, **options)
    page.goto(address)
    page.wait_for_selector("#example-says.right")
    start = seen(page)
    page.check("#agree")
    page.click("#consent-form button")
    page.click("#skip")
    page.wait_for_selector("#badge", state="hidden")
    for _ in range(MOST_ROUNDS):
        page.wait_for_selector("#round:not([hidden])")
        page.wait_for_timeout(500)
        paint(page, 0, 1.3)
        middle = seen(page)
        paint(page, 1.5, 8)
        page.mouse.up()
        page.wait_for_selector("#result:not([hidden])")
        page.wait_for_timeout(1000)  # the score has been counted up
        if page.is_visible("#score"):
            return [start, middle, seen(page)]
        page.click("#next")
    raise SystemExit(f"no round of {MOST_ROUNDS} was won")


def main(folder: Path = ASSETS) -> None:
    """Writes the pictures into `folder`."""
    with trial() as address, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        for name, picture in zip(("start", "round", "result"), play(browser, address, (1280, 720)), strict=True):
            save(folder / f"game-{name}.jpg", [picture], 960)
        phone = play(browser, address, (390, 844), color_scheme="dark", has_touch=True, is_mobile=True)
        save(folder / "game-phone.jpg", phone, 960)
        browser.close()


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
