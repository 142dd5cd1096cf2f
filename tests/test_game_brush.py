"""The game's brush: what a real browser makes of a pointer's path is what the rules say, bit for bit.

The path of bubbles is computed a second time here, in exact arithmetic, from the events that the browser itself logged.
"""

import json
import random
from decimal import Decimal
from fractions import Fraction
from math import floor
from typing import Any, NamedTuple

import numpy as np
import pytest
from game_browser import FakeGame, place, run_out, start_round, until, visit
from playwright.sync_api import Browser, Page

from gala_cuda.game.rules import check_points, click_map

pytestmark = pytest.mark.slow

STEP, INTERVAL, LIMIT, MOST = 7 * 16, 50, 7000, 140
LOG = """
window.logged = [];
window.arrived = false;
for (const kind of ["pointerdown", "pointermove", "pointercancel"])
  addEventListener(kind, (event) => {
    if (event.target.id !== "canvas" && event.pointerType === "touch") return;
    const { left, top, width, height } = document.getElementById("canvas").getBoundingClientRect();
    arrived = true;
    logged.push([event.timeStamp, event.clientX, event.clientY, left, top, width, height, event.isPrimary, kind]);
  }, true);
"""


class Event(NamedTuple):
    time: Fraction
    x: int  # sixteenths of an image pixel
    y: int


def sixteenths(client: float, start: float, extent: float, pixels: int) -> int:
    exact = (Fraction(client) - Fraction(start)) / Fraction(extent) * pixels * 16
    return min(max(floor(exact + Fraction(1, 2)), 0), 16 * pixels)


def read_log(rows: list[list[Any]], width: int, height: int) -> list[Event]:
    """The primary pointer's events from the press on; a cancelled pointer is a test of its own."""
    first = next(at for at, row in enumerate(rows) if row[8] == "pointerdown" and row[7])
    return [
        Event(Fraction(time), sixteenths(x, left, across, width), sixteenths(y, top, down, height))
        for time, x, y, left, top, across, down, primary, _ in rows[first:]
        if primary
    ]


def bubbles(events: list[Event]) -> list[list[int]]:
    """Slot k, 50 k ms after the press, goes from the last bubble to where the pointer was then, by 7 pixels at most."""
    start, x, y = events[0]
    points, at = [[x, y, 0]], 0
    for ms in range(INTERVAL, LIMIT, INTERVAL):
        while at + 1 < len(events) and events[at + 1].time <= start + ms:
            at += 1
        _, to_x, to_y = events[at]
        square = (to_x - x) ** 2 + (to_y - y) ** 2
        if square > STEP**2:
            share = STEP / Decimal(square).sqrt()
            to_x, to_y = (a + floor((b - a) * share + Decimal("0.5")) for a, b in ((x, to_x), (y, to_y)))
        if (to_x, to_y) != (x, y) and len(points) < MOST:
            points.append([to_x, to_y, ms])
        x, y = to_x, to_y
    return points


def painted_map(points: list[list[int]], width: int, height: int) -> np.ndarray:
    total = np.zeros((height, width), np.float32)
    for row in range(height):
        for x, y, _ in points:
            top, left = (floor(Fraction(at, 16) - 9 + Fraction(1, 2)) for at in (y, x))
            if top <= row < top + 18:
                total[row, max(left, 0) : max(left + 18, 0)] += 1
    return total / total.max()


# Shares of the picture and milliseconds between: across it, along the borders, into the corners and off the picture.
JOURNEY = (
    (0.317, 0.411, 0), (0.523, 0.377, 133), (0.641, 0.702, 401), (1.113, 0.823, 377), (1.171, 1.207, 610),
    (0.977, 0.431, 233), (0.991, -0.083, 555), (0.007, -0.041, 1013), (-0.07, 0.003, 300), (0.001, 0.517, 421),
    (-0.113, 1.103, 777), (0.403, 0.999, 1240), (0.5003, 0.4997, 411),
)  # fmt: skip


def travel(page: Page, device: str) -> None:
    """The journey by mouse, finger or pen, at times that are no multiples of a slot."""
    session = page.context.new_cdp_session(page)
    where = dict(enumerate(place(page, x, y) for x, y, _ in JOURNEY))

    def send(x: float, y: float, press: bool) -> None:
        if device == "touch":
            finger = [{"x": x, "y": y, "id": 1}]
            session.send(
                "Input.dispatchTouchEvent", {"type": "touchStart" if press else "touchMove", "touchPoints": finger}
            )
            return
        kind = "mousePressed" if press else "mouseMoved"
        pointer = {"x": x, "y": y, "button": "left", "buttons": 1, "clickCount": 1, "pointerType": device}
        session.send("Input.dispatchMouseEvent", {"type": kind} | pointer)

    for at, (_, _, wait) in enumerate(JOURNEY):
        page.clock.run_for(wait)
        page.evaluate("arrived = false")
        send(*where[at], press=at == 0)
        until(page, lambda: page.evaluate("arrived"))  # before time goes on


@pytest.mark.parametrize(
    ("device", "ratio", "size"),
    [
        ("mouse", 1, (96, 96)), ("mouse", 1.5, (113, 71)), ("mouse", 3, (51, 141)),
        ("touch", 1, (113, 71)), ("touch", 1.5, (51, 141)), ("touch", 3, (96, 96)),
        ("pen", 1, (51, 141)), ("pen", 1.5, (96, 96)), ("pen", 3, (113, 71)),
    ],
)  # fmt: skip
def test_bubbles_of_a_real_browser_are_those_of_the_logged_pointer(browser: Browser, device, ratio, size):
    game = FakeGame(*size)
    with visit(browser, game, width=613, height=487, device_scale_factor=ratio, has_touch=True) as page:
        start_round(page)
        page.evaluate(LOG)
        travel(page, device)
        run_out(page)
        until(page, lambda: game.finished)
        expected = bubbles(read_log(page.evaluate("logged"), *size))
    body = json.loads(game.finished["r1"][0])
    assert body["points"] == expected
    assert body["device"] == {"pointer": device, "ratio": ratio, "width": 613, "height": 487}
    width, height = size
    xs, ys = {x for x, _, _ in expected}, {y for _, y, _ in expected}
    assert {0, 16 * width} <= xs  # it went to the borders
    assert {0, 16 * height} <= ys
    stored = check_points(body["points"], width, height)
    assert np.array_equal(click_map(stored, height, width), painted_map(expected, width, height))
    assert game.guesses == [expected[:n] for n in range(10, len(expected) + 1, 10)]


def test_random_paths_through_the_module(browser: Browser):
    """Jumps, rests, events at the very time of a slot, gaps longer than the round: 150 paths, whole."""
    generator = random.Random(7)
    paths = []
    for _ in range(150):
        time = generator.choice([0, 1000, 123456.75])
        events: list[tuple[float, int, int]] = []
        for _ in range(generator.randint(1, 60)):
            events.append((time, generator.randint(0, 200 * 16), generator.randint(0, 90 * 16)))
            time += generator.choice([0, 1, 16.625, 50, 50, 100, 333.3, 2500])
        paths.append(events)
    run = """async (paths) => {
      const { Brush } = await import("/page/brush.js");
      return paths.map((events) => {
        const brush = new Brush(200, 90, { bubble: 14, step: 7, interval_ms: 50, limit_ms: 7000, every: 10 });
        events.forEach((event, at) => brush[at ? "move" : "press"](...event));
        brush.advance(events[0][0] + 10_000);
        return brush.points;
      });
    }"""
    with visit(browser, FakeGame()) as page:
        made = page.evaluate(run, paths)
    for events, points in zip(paths, made, strict=True):
        check_points(points, 200, 90)
        assert points == bubbles([Event(Fraction(time), x, y) for time, x, y in events])


def test_steering_stays_inside_and_within_a_step(browser: Browser):
    run = """async () => {
      const { Brush } = await import("/page/brush.js");
      const brush = new Brush(60, 40, { bubble: 14, step: 7, interval_ms: 50, limit_ms: 7000, every: 10 });
      brush.press(0, 480, 320);
      const ways = [[1, 0], [1, 1], [0, 1], [-1, 1], [-1, -1], [0, -1], [0, 0], [1, -1]];
      ways.forEach(([dx, dy], at) => brush.steer(1 + 700 * at, dx, dy));
      brush.advance(8000);
      return brush.points;
    }"""
    with visit(browser, FakeGame()) as page:
        points = page.evaluate(run)
    assert len(points) > 20
    check_points(points, 60, 40)
    assert {x for x, _, _ in points} >= {0, 960}


def test_a_second_finger_and_a_cancelled_one(browser: Browser):
    """Only the first finger paints; where the system takes it away, the brush stops at once."""
    game = FakeGame(200, 200)
    with visit(browser, game, has_touch=True) as page:
        start_round(page)
        session = page.context.new_cdp_session(page)
        (x0, y0), (x1, y1), (x2, y2) = place(page, 0.5, 0.5), place(page, 0.1, 0.1), place(page, 0.9, 0.5)
        first, second = {"x": x0, "y": y0, "id": 1}, {"x": x1, "y": y1, "id": 2}

        def touch(kind: str, *fingers: dict[str, float]) -> None:
            session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": list(fingers)})
            page.wait_for_timeout(50)

        touch("touchStart", first)
        touch("touchStart", first, second)
        touch("touchMove", first, second | {"x": x1 + 9})
        page.clock.run_for(500)
        assert page.text_content("#hint") == ""  # it has started, and rests
        touch("touchMove", first | {"x": x2, "y": y2}, second)
        page.clock.run_for(220)
        touch("touchCancel")
        run_out(page)
        until(page, lambda: game.finished)
    points = json.loads(game.finished["r1"][0])["points"]
    assert {y for _, y, _ in points} == {1600}
    assert [x for x, _, _ in points] == [1600 + STEP * k for k in range(len(points))]
    assert 4 <= len(points) <= 6  # and not the eleven that it would take to where the finger was
    assert points[1][2] >= 500


def test_mouse_on_the_way_does_not_move_a_pen_round(browser: Browser):
    game = FakeGame(200, 200)
    with visit(browser, game) as page:
        start_round(page)
        x, y = place(page, 0.5, 0.5)
        session = page.context.new_cdp_session(page)
        pen = {"x": x, "y": y, "button": "left", "buttons": 1, "clickCount": 1, "pointerType": "pen"}
        session.send("Input.dispatchMouseEvent", {"type": "mousePressed"} | pen)
        page.mouse.move(*place(page, 0.9, 0.9))
        run_out(page)
        until(page, lambda: game.finished)
    assert json.loads(game.finished["r1"][0])["points"] == [[1600, 1600, 0]]
