"""The game's page for everybody: by keyboard, on small screens, without motion, read aloud, in both colour schemes."""

import json
from collections.abc import Iterator
from itertools import pairwise

import pytest
from game_browser import ORIGIN, FakeGame, paint, run_out, start_round, until, visit
from playwright.sync_api import Browser, Page

pytestmark = pytest.mark.slow

# What can be operated or is a picture, and is seen, without a name for those who do not see it.
NAMELESS = """() => {
  const text = (element) => (element ? element.textContent.trim() : "");
  const labelled = (element) => (element.getAttribute("aria-labelledby") ?? "").split(" ");
  const name = (element) =>
    element.getAttribute("aria-label")?.trim() ||
    labelled(element).map((id) => text(document.getElementById(id))).join("") ||
    [...(element.labels ?? [])].map(text).join("") ||
    text(element);
  return [...document.querySelectorAll("a, button, input, canvas[role], dialog, [role=region], [tabindex='0']")]
    .filter((element) => element.checkVisibility() && !name(element))
    .map((element) => element.outerHTML);
}"""
# Words whose contrast with what is behind them is below WCAG's AA: 4.5, or 3 for large ones.
PALE = """() => {
  const parse = (colour) => {
    const [r, g, b, a = 1] = colour.match(/[\\d.]+/g).map(Number);
    return { rgb: [r, g, b], a };
  };
  const over = (top, below) => top.rgb.map((value, at) => value * top.a + below[at] * (1 - top.a));
  const behind = (element) => {
    if (!element) return [255, 255, 255];
    const colour = parse(getComputedStyle(element).backgroundColor);
    return colour.a === 1 ? colour.rgb : over(colour, behind(element.parentElement));
  };
  const light = (rgb) => {
    const [r, g, b] = rgb.map((value) => (value /= 255) <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const found = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let node = walker.nextNode(); node; node = walker.nextNode()) {
    const element = node.parentElement;
    if (!node.textContent.trim() || !element.checkVisibility()) continue;
    if (element.closest(".unseen, noscript, :disabled")) continue;
    const style = getComputedStyle(element);
    const below = behind(element);
    const [one, two] = [light(over(parse(style.color), below)), light(below)];
    const contrast = (Math.max(one, two) + 0.05) / (Math.min(one, two) + 0.05);
    const size = parseFloat(style.fontSize);
    const large = size >= 24 || (size >= 18.66 && style.fontWeight >= 700);
    if (contrast < (large ? 3 : 4.5)) found.push(`${node.textContent.trim()}: ${contrast.toFixed(2)}`);
  }
  return found;
}"""
# What is wider than the window, cut off at its sides, or too small to press (24 CSS pixels, but for links in a text).
MISPLACED = """(most) => {
  const found = [];
  const wide = document.documentElement.scrollWidth;
  if (wide > most) found.push(`the page is ${wide} wide`);
  for (const element of document.querySelectorAll("canvas, button, a, input, h1, p, li, dialog")) {
    if (!element.checkVisibility() || element.closest(".unseen")) continue;
    const { left, right, width, height } = element.getBoundingClientRect();
    if (left < 0 || right > most + 0.5) found.push(`${element.outerHTML} lies from ${left} to ${right}`);
    if (element.matches("button, input") && Math.min(width, height) < 20) found.push(`${element.outerHTML} is tiny`);
  }
  return found;
}"""


@pytest.fixture
def game() -> FakeGame:
    game = FakeGame(640, 400, label="an uncommonly long-winded description, of a thing")
    game.plan = [(0, ["a first long description, of a thing", "wall", "cloud", "lake", "snow"], False),
                 (40, [game.label, "wall", "cloud", "lake", "snow"], True)]  # fmt: skip
    game.worth = 12_345
    game.board = [{"name": "quiet otter", "score": 812.4}, {"name": "amber falcon", "score": 3}]
    return game


def screens(page: Page, game: FakeGame) -> Iterator[str]:
    """Everything that the page shows, one after the other."""
    yield "welcome"
    start_round(page)
    yield "before the first press"
    paint(page, 12)
    until(page, lambda: page.locator("#names li").count())
    yield "round"
    page.clock.run_for(2000)
    page.wait_for_selector("#result:not([hidden])")
    until(page, lambda: page.text_content("#total") == "12345")
    yield "result"
    page.click("#open-board")
    page.wait_for_selector("#board[open]")
    yield "board"
    page.keyboard.press("Escape")
    page.click("#open-leave")
    yield "leave"
    page.keyboard.press("Escape")
    game.hook = lambda method, path, body: (503, {"error": "no room left on the device"}) if method != "GET" else None
    page.click("#next")
    page.wait_for_selector("#message:not([hidden])")
    yield "message"
    page.goto(f"{ORIGIN}/privacy")
    yield "privacy"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_names_contrast_and_order(browser: Browser, game: FakeGame, scheme):
    with visit(browser, game, color_scheme=scheme) as page:
        for screen in screens(page, game):
            assert page.evaluate(NAMELESS) == [], screen
            assert page.evaluate(PALE) == [], screen
            assert page.locator("h1:visible").count() == 1, screen
            ids = page.evaluate("[...document.querySelectorAll('[id]')].map((element) => element.id)")
            assert len(ids) == len(set(ids)), screen
            assert page.locator("[tabindex]:not([tabindex='0']):not([tabindex='-1'])").count() == 0
        assert page.evaluate("document.documentElement.lang") == "en"


@pytest.mark.parametrize(
    "size", [(320, 568), (390, 844), (844, 390), (1280, 720)], ids=lambda size: f"{size[0]}x{size[1]}"
)
def test_nothing_is_cut_off(browser: Browser, game: FakeGame, size):
    width, height = size
    mobile = min(size) < 500
    with visit(browser, game, width=width, height=height, is_mobile=mobile, has_touch=mobile) as page:
        for screen in screens(page, game):
            assert page.evaluate(MISPLACED, width) == [], screen
            if page.is_visible("#canvas"):
                box = page.locator("#canvas").bounding_box()
                assert box
                assert box["width"] / box["height"] == pytest.approx(640 / 400, rel=0.01)
                assert 0 <= box["y"] <= box["y"] + box["height"] <= height  # all of the picture at once


def test_a_round_by_keyboard(browser: Browser, game: FakeGame):
    """From the first page on nothing but keys; the brush starts at the cursor and goes while an arrow is held."""
    with visit(browser, game) as page:
        page.focus("#agree")
        page.keyboard.press("Space")
        page.keyboard.press("Tab")
        page.keyboard.press("Enter")
        page.wait_for_selector("#badge:not([hidden])")
        page.focus("#skip")
        page.keyboard.press("Enter")
        page.wait_for_selector("#badge", state="hidden")
        until(page, lambda: page.evaluate("document.activeElement.id") == "canvas")
        for _ in range(10):
            page.keyboard.press("ArrowLeft")
        page.keyboard.press("ArrowUp")
        page.keyboard.down("Space")
        page.clock.run_for(500)  # nothing is held
        page.keyboard.down("ArrowRight")
        page.clock.run_for(500)
        page.keyboard.down("ArrowDown")
        page.clock.run_for(500)
        page.keyboard.up("ArrowRight")
        page.keyboard.up("ArrowDown")
        run_out(page)
        until(page, lambda: page.evaluate("document.activeElement.id") == "next")
        until(page, lambda: game.finished)
        page.keyboard.press("Enter")
        page.wait_for_selector("#round:not([hidden])")
    sent = json.loads(game.finished["r1"][0])
    points = sent["points"]
    assert sent["device"]["pointer"] == "keyboard"
    x, y = 16 * (320 - 70), 16 * (200 - 7)
    assert points[0] == [x, y, 0]
    straight = [point for point in points if point[1] == y]
    assert 9 <= len(straight) - 1 <= 11
    assert [px for px, _, _ in straight] == [x + 112 * k for k in range(len(straight))]
    assert straight[1][2] >= 500
    slanted = points[len(straight) :]
    assert 9 <= len(slanted) <= 11
    assert {(b[0] - a[0], b[1] - a[1]) for a, b in pairwise(slanted)} == {(79, 79)}


def test_without_motion(browser: Browser, game: FakeGame):
    """The example stands still at its end, the score is there at once, and nothing is animated; else it is."""
    for motion in ("reduce", "no-preference"):
        with visit(browser, game, reduced_motion=motion) as page:
            still = motion == "reduce"
            picture = "document.getElementById('example').toDataURL()"
            page.clock.run_for(100)
            before = page.evaluate(picture)
            assert (page.text_content("#example-says") == "sailing boat!") == still
            page.clock.run_for(3000)
            assert (page.evaluate(picture) == before) == still
            start_round(page)
            paint(page, 45)
            page.wait_for_selector("#result:not([hidden])")
            assert (page.evaluate("document.getAnimations().length") == 0) == still
            score = round(100 * (1 - 1.95 / 7) ** 3)
            assert (page.text_content("#won") == str(score)) == still
            page.clock.run_for(700)
            assert page.text_content("#won") == str(score)


def test_what_is_said_aloud(browser: Browser, game: FakeGame):
    with visit(browser, game) as page:
        assert page.get_attribute("#say", "aria-live") == "polite"
        start_round(page)
        assert game.label in (page.get_attribute("#canvas", "aria-label") or "")
        paint(page, 12)
        until(page, lambda: page.text_content("#say") == "Your partner guesses: a first long description, of a thing")
        page.clock.run_for(2000)
        page.wait_for_selector("#result:not([hidden])")
        assert "your partner got it! 3" in (page.text_content("#say") or "")


def test_a_finger_scrolls_everywhere_but_on_the_picture(browser: Browser, game: FakeGame):
    with visit(browser, game) as page:
        start_round(page)
        action = "(id) => getComputedStyle(document.getElementById(id)).touchAction"
        assert page.evaluate(action, "canvas") == "none"
        everywhere = (
            "[...document.querySelectorAll('*')].filter((e) => getComputedStyle(e).touchAction !== 'auto').length"
        )
        assert page.evaluate(everywhere) == 1
