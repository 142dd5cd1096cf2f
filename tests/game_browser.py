"""A real browser for the game's page, and a small stand-in for the game's server behind it."""

import json
import mimetypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from PIL import Image
from playwright.sync_api import Browser, BrowserContext, Page, Playwright, Route

PAGE = Path(__file__).resolve().parents[1] / "gala_cuda" / "game" / "page"
CHROMIUM = "/usr/bin/chromium"
QUIET = (  # nothing but the page's own requests; root needs no sandbox, a machine without a GPU no GPU process
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-default-apps",
    "--disable-domain-reliability",
    "--disable-sync",
    "--no-first-run",
    "--no-pings",
)
ORIGIN = "http://game.test"
POLICY = "default-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'self'"
RULES = {"bubble": 14, "step": 7, "interval_ms": 50, "limit_ms": 7000, "every": 10}


def launch(playwright: Playwright) -> Browser:
    return playwright.chromium.launch(executable_path=CHROMIUM, args=list(QUIET))


def picture(width: int, height: int) -> Image.Image:
    """Something to look at: rings of colour on a slope."""
    rows, columns = np.mgrid[0:height, 0:width]
    distance = np.hypot(rows - 0.45 * height, columns - 0.55 * width)
    layers = (128 + 100 * np.cos(distance / 14), 90 + 120 * rows / height, 200 - 120 * columns / width)
    return Image.fromarray(np.stack(layers, -1).clip(0, 255).astype(np.uint8))


class FakeGame:
    """What the server answers, by the wire's table, from memory.

    `plan` are the answers to guesses: (n, names, recognised), each from n bubbles on. What the page sent is in
    `guesses` and, as bodies by round, in `finished`. `down` cuts every connection; `hook` may answer first; what
    `hold` chooses is answered only when the test calls it from `held`; `errors` are the page's own.
    """

    def __init__(self, width: int = 256, height: int = 256, label: str = "rings", image: Image.Image | None = None):
        self.image = image or picture(width, height)
        self.label = label
        self.plan: list[tuple[int, list[str], bool]] = [(0, ["wall", "cloud", "lake", "snow", "tent"], False)]
        self.left = 100
        self.worth = 64.0  # of each round
        self.board: list[dict[str, Any]] = []
        self.consent = "You paint on pictures.\nWe keep where you painted, and nothing else about you."
        self.joined: str | None = None
        self.down = False
        self.errors: list[str] = []
        self.held: list[Callable[[], None]] = []
        self.hold: Callable[[str, str], bool] = lambda method, path: False
        self.hook: Callable[[str, str, Any], tuple[int, Any] | None] = lambda method, path, body: None
        self.asked: list[tuple[str, str]] = []
        self.guesses: list[list[list[int]]] = []
        self.finished: dict[str, list[str]] = {}

    def attach(self, context: BrowserContext) -> None:
        context.route("**/*", self.handle)

    def handle(self, route: Route) -> None:
        request = route.request
        address = urlsplit(request.url)
        if self.down or f"{address.scheme}://{address.netloc}" != ORIGIN:
            return route.abort("internetdisconnected")
        method, path = request.method, address.path
        self.asked.append((method, path))
        if not path.startswith("/api/"):
            return self._file(route, path)
        body = json.loads(request.post_data) if request.post_data else None
        if self.hold(method, path):
            self.held.append(lambda: self._reply(route, method, path, body))
        else:
            self._reply(route, method, path, body)

    def _reply(self, route: Route, method: str, path: str, body: Any) -> None:
        status, answer = self.hook(method, path, body) or self._answer(method, path.removeprefix("/api/"), body)
        if isinstance(answer, bytes):
            return route.fulfill(status=status, body=answer, content_type="image/png")
        text = "" if answer is None else json.dumps(answer)
        route.fulfill(status=status, body=text, content_type="application/json")

    def _file(self, route: Route, path: str) -> None:
        file = PAGE / {"/": "index.html", "/privacy": "privacy.html"}.get(path, path.removeprefix("/page/"))
        if not file.is_file():
            return route.fulfill(status=404, body="")
        kind = mimetypes.guess_type(file.name)[0]
        route.fulfill(body=file.read_bytes(), content_type=kind, headers={"Content-Security-Policy": POLICY})

    def _answer(self, method: str, path: str, body: Any) -> tuple[int, Any]:
        match method, path.split("/"):
            case "GET", ["study"]:
                player = (
                    {"participant": self.joined, "name": "quiet otter", "total": self.total()} if self.joined else {}
                )
                return 200, {"title": "Rings and things", "consent": self.consent} | player
            case "POST", ["join"]:
                self.joined = "k7mq2xw9ab"
                return 200, {"participant": self.joined}
            case "POST", ["rounds"]:
                if not self.left:
                    return 204, None
                self.left -= 1
                rules = RULES | ({"limit_ms": 600_000} if body.get("untimed") else {})
                name = f"r{100 - self.left}"
                width, height = self.image.size
                return 200, {"round": name, "label": self.label, "width": width, "height": height, "rules": rules}
            case "GET", ["rounds", _, "image"]:
                stream = BytesIO()
                self.image.save(stream, "PNG")
                return 200, stream.getvalue()
            case "POST", ["rounds", _, "guess"]:
                self.guesses.append(body["points"])
                return 200, self._guess(body["points"])
            case "PUT", ["rounds", name]:
                self.finished.setdefault(name, []).append(json.dumps(body))
                return 200, {"score": 0, "total": self.total()}
            case "GET", ["board"]:
                return 200, self.board
            case "DELETE", ["me"]:
                self.joined = None
                return 204, None
        return 404, {"error": f"{method} {path} is no route"}

    def _guess(self, points: list[list[int]]) -> dict[str, Any]:
        n = len(points)
        _, names, recognised = [row for row in self.plan if row[0] <= n][-1]
        score = 100 * max(0.0, 1 - points[-1][2] / 7000) ** 3
        return {"n": n, "names": names, "recognised": recognised, "score": score}

    def total(self) -> float:
        return self.worth * len(self.finished)


@contextmanager
def visit(
    browser: Browser, game: FakeGame, *, width: int = 820, height: int = 560, clock: bool = True, **options: Any
) -> Iterator[Page]:
    """The game's first page in a fresh browser; its time stands still but for `page.clock`, unless `clock` is False."""
    options = {"viewport": {"width": width, "height": height}, "reduced_motion": "reduce"} | options
    context = browser.new_context(**options)
    try:
        game.attach(context)
        page = context.new_page()
        page.set_default_timeout(10_000)
        page.on("pageerror", lambda error: game.errors.append(str(error)))
        if clock:
            page.clock.install(time=0)
        page.goto(f"{ORIGIN}/")
        page.wait_for_selector("#welcome:not([hidden]), #message:not([hidden])")
        if clock:
            page.clock.pause_at(1000)
        yield page
    finally:
        context.close()
    assert not game.errors


def start_round(page: Page) -> None:
    """From the first page, or from a result, to a picture, past consent and practice."""
    if page.is_visible("#consent-form"):
        page.check("#agree")
        page.click("#consent-form button")
        page.click("#skip")
        page.wait_for_selector("#badge", state="hidden")
    else:
        page.click("#play" if page.is_visible("#play") else "#next")
    page.wait_for_selector("#round:not([hidden])")


def until(page: Page, holds: Callable[[], Any]) -> None:
    """Let the browser go on until it holds; AssertionError after ten seconds."""
    for _ in range(1000):
        if holds():
            return
        page.wait_for_timeout(10)
    raise AssertionError("it did not come to hold within ten seconds")


def place(page: Page, x: float, y: float) -> tuple[float, float]:
    """Where the shares (x, y) of the round's picture are on the page."""
    box = page.locator("#canvas").bounding_box()
    assert box
    return box["x"] + x * box["width"], box["y"] + y * box["height"]


def paint(page: Page, bubbles: int) -> None:
    """Press and move the mouse, so that after so many bubbles the clock stands still within the slot of the last."""
    page.mouse.move(*place(page, 0.2, 0.3))
    page.mouse.down()
    page.mouse.move(*place(page, 0.9, 0.6))
    page.clock.run_for(50 * (bubbles - 1) + 20)


def run_out(page: Page) -> None:
    """The rest of the round's time, and its result."""
    for _ in range(80):
        if not page.is_visible("#round") or page.text_content(
            "#hint"
        ):  # with the partner's last look time stands still
            break
        page.clock.run_for(100)
    page.wait_for_selector("#result:not([hidden])")
