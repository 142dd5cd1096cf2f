"""The page and the server together: real rounds in a real browser, and what the database then holds."""

import itertools

import numpy as np
import pytest
from game_browser import place, start_round, until
from game_play import COLOURS, HEIGHT, WIDTH, FakeView, LocalWorker, make_game, running, write_study
from playwright.sync_api import Browser, Page

from gala_cuda.game.rules import SIXTEENTHS, click_map
from gala_cuda.game.session import Game

pytestmark = pytest.mark.slow


@pytest.fixture
def game(tmp_path):
    study = write_study(tmp_path / "study", title="Colours & <b>more</b>")
    # The browser's time is the test's; the server's is always later than that of any bubble.
    clock = itertools.count(1_000_000_000, 1000).__next__
    return make_game(study, f"sqlite:///{tmp_path / 'game.sqlite'}", LocalWorker(FakeView()), clock=clock)


@pytest.fixture
def page(browser: Browser, game: Game):
    """The first page, as the server gives it; nothing may be said in the console, and all comes from the server."""
    with running(game) as port:
        context = browser.new_context(viewport={"width": 820, "height": 560}, reduced_motion="reduce")
        page, seen = context.new_page(), list[str]()
        page.on("console", lambda message: seen.append(message.text))
        page.on("pageerror", lambda error: seen.append(str(error)))
        origin = f"http://127.0.0.1:{port}/"
        page.on("request", lambda request: None if request.url.startswith(origin) else seen.append(request.url))
        page.clock.install(time=0)
        page.goto(origin)
        page.wait_for_selector("#welcome:not([hidden])")
        page.clock.pause_at(1000)
        yield page
        context.close()
        assert seen == []


def paint(page: Page, *ways: tuple[float, float]) -> None:
    """Press in the middle of the picture, and go to each of these shares of it for half a second."""
    page.mouse.move(*place(page, 0.5, 0.5))
    page.mouse.down()
    for way in [place(page, *way) for way in ways]:
        page.mouse.move(*way)
        page.clock.run_for(500)


def test_rounds_of_a_player(page: Page, game: Game):
    """One recognised, one skipped, one that is left; the board, the cookie, and then nothing of it."""
    assert page.text_content("#study-title") == "Colours & <b>more</b>"
    start_round(page)
    assert page.text_content("#word") in COLOURS
    paint(page, (0.9, 0.9), (0.5, 0.5), (0.1, 0.9), (0.1, 0.1), (0.9, 0.1))
    page.wait_for_selector("#result:not([hidden])")
    assert "your partner got it" in (page.text_content("#verdict") or "")
    until(page, lambda: page.text_content("#total") == page.text_content("#won") != "0")
    (first,) = game.store.rounds()
    assert first.outcome == "recognised"
    assert (first.width, first.height) == (WIDTH, HEIGHT)
    assert first.points[0] == (SIXTEENTHS * WIDTH // 2, SIXTEENTHS * HEIGHT // 2, 0)
    assert click_map(first.points, HEIGHT, WIDTH).max() == 1
    assert np.isfinite(first.score)

    start_round(page)
    page.click("#skip")
    until(page, lambda: [each.outcome for each in game.store.rounds()] == ["recognised", "skip"])
    page.wait_for_selector("#skip:enabled")  # the next picture is there
    paint(page, (0.9, 0.5))
    address = page.url
    page.goto("about:blank")
    until(page, lambda: [each.outcome for each in game.store.rounds()] == ["recognised", "skip", "interrupted"])
    page.goto(address)
    page.wait_for_selector("#back:not([hidden])")
    assert page.evaluate("document.cookie") == ""
    (cookie,) = page.context.cookies()
    assert (cookie["httpOnly"], cookie["sameSite"]) == (True, "Lax")
    (player,) = game.store.participants()
    assert page.text_content("#who") == f"You are {player.name} ({first.participant})"

    page.click("#open-board")
    page.wait_for_selector("#ranks li")
    page.keyboard.press("Escape")
    page.click("#open-leave")
    page.click("#forget")
    page.wait_for_selector("text=Everything about you is deleted")
    assert list(game.store.rounds()) == []
    assert page.context.cookies() == []
