"""Finished rounds stay in the browser until the server has them, and arrive exactly once."""

import json
from functools import partial

import pytest
from game_browser import ORIGIN, FakeGame, paint, run_out, start_round, until, visit
from playwright.sync_api import Browser, Page

pytestmark = pytest.mark.slow

KEPT = """() => new Promise((resolve, reject) => {
  const opening = indexedDB.open("clickme-outbox");
  opening.onerror = () => reject(opening.error);
  opening.onsuccess = () => {
    const all = opening.result.transaction("rounds").objectStore("rounds").getAll();
    all.onsuccess = () => { opening.result.close(); resolve(all.result); };
  };
})"""


@pytest.fixture
def game() -> FakeGame:
    return FakeGame(640, 400)


def kept(page: Page) -> list[str]:
    return [record["id"] for record in page.evaluate(KEPT)]


def play_one(page: Page) -> None:
    start_round(page)
    paint(page, 12)
    run_out(page)


def refuse(status: int):
    return lambda method, path, body: (status, {"error": "the reason"}) if method == "PUT" else None


def test_an_answered_round_is_gone(browser: Browser, game: FakeGame):
    with visit(browser, game) as page:
        play_one(page)
        until(page, lambda: page.text_content("#total") == "64")
        assert kept(page) == []
        assert page.is_hidden("#notice")


def test_offline_in_the_middle_of_a_round(browser: Browser, game: FakeGame):
    """It says so, the round can be played to its end, and arrives once when the browser is back."""
    with visit(browser, game) as page:
        start_round(page)
        paint(page, 12)
        until(page, lambda: game.guesses)
        game.down = True
        page.context.set_offline(True)
        page.clock.run_for(500)
        page.wait_for_selector("text=No connection. Paint on")
        run_out(page)
        page.wait_for_selector("#notice:not([hidden])")
        assert "1 finished round is kept on this device" in (page.text_content("#notice") or "")
        assert kept(page) == ["r1"]
        assert game.finished == {}
        page.click("#next")
        page.wait_for_selector("text=The server cannot be reached")
        game.down = False
        page.context.set_offline(False)
        until(page, lambda: game.finished and kept(page) == [])
        page.wait_for_selector("#round:not([hidden])")  # and the game goes on by itself
        page.clock.run_for(120_000)
        page.wait_for_timeout(100)
        assert len(game.finished["r1"]) == 1
        assert page.is_hidden("#notice")
    sent = json.loads(game.finished["r1"][0])
    assert sent["outcome"] == "interrupted"  # the partner had no chance with the last bubbles
    assert len(sent["points"]) > 50


def test_a_server_that_fails_is_asked_again(browser: Browser, game: FakeGame):
    """With growing pauses; the same body each time."""
    sent: list[object] = []

    def reached(tries: int) -> bool:
        return len(sent) == tries

    def fail(method: str, path: str, body: object) -> tuple[int, object] | None:
        if method != "PUT":
            return None
        sent.append(body)
        return 503, {"error": "no room left"}

    game.hook = fail
    with visit(browser, game) as page:
        play_one(page)
        for wait, tries in ((0, 1), (2000, 2), (5000, 3), (15_000, 4), (60_000, 5), (60_000, 6)):
            page.clock.run_for(wait)
            until(page, partial(reached, tries))
            page.wait_for_timeout(50)
        assert kept(page) == ["r1"]
        game.hook = lambda method, path, body: None
        page.clock.run_for(60_000)
        until(page, lambda: kept(page) == [])
        assert len(game.finished["r1"]) == 1
    assert {json.dumps(body) for body in sent} == {game.finished["r1"][0]}


def test_the_next_visit_sends_what_is_left(browser: Browser, game: FakeGame):
    game.hook = refuse(503)
    with visit(browser, game) as page:
        play_one(page)
        play_one(page)
        until(page, lambda: kept(page) == ["r1", "r2"])
        game.hook = lambda method, path, body: None
        page.goto("about:blank")
        page.goto(f"{ORIGIN}/")
        until(page, lambda: kept(page) == [])
    assert {name: len(bodies) for name, bodies in game.finished.items()} == {"r1": 1, "r2": 1}


def test_an_answer_that_got_lost(browser: Browser, game: FakeGame):
    """The server has the round, but the page does not know: it sends the same body again, and the answer ends it."""
    lost: list[str] = []

    def lose(method: str, path: str, body: object) -> tuple[int, object] | None:
        if method == "PUT" and not lost:
            lost.append(json.dumps(body))
            game.finished["r1"] = [lost[0]]
            return 502, {"error": "the proxy lost it"}
        return None

    game.hook = lose
    with visit(browser, game) as page:
        play_one(page)
        until(page, lambda: lost)
        page.wait_for_timeout(50)
        page.clock.run_for(2000)
        until(page, lambda: len(game.finished["r1"]) == 2 and kept(page) == [])
    assert game.finished["r1"] == lost * 2


@pytest.mark.parametrize("status", [404, 409, 422])
def test_what_the_server_will_never_take_is_told_and_dropped(browser: Browser, game: FakeGame, status):
    game.hook = refuse(status)
    with visit(browser, game) as page:
        play_one(page)
        page.wait_for_selector("text=The server did not take a round: the reason")
        assert kept(page) == []


@pytest.mark.parametrize("status", [401, 429, 507])
def test_what_the_server_may_take_later_is_kept(browser: Browser, game: FakeGame, status):
    game.hook = refuse(status)
    with visit(browser, game) as page:
        play_one(page)
        page.wait_for_selector("#notice:not([hidden])")
        assert kept(page) == ["r1"]


def test_forgetting_empties_it(browser: Browser, game: FakeGame):
    game.hook = refuse(503)
    with visit(browser, game) as page:
        play_one(page)
        until(page, lambda: kept(page) == ["r1"])
        page.click("#open-leave")
        page.click("#forget")
        page.wait_for_selector("text=Everything about you is deleted")
        assert kept(page) == []
        assert page.is_hidden("#notice")


def test_a_browser_without_storage(browser: Browser, game: FakeGame):
    """No round begins whose result could be lost."""
    context = browser.new_context()
    game.attach(context)
    page = context.new_page()
    page.add_init_script("IDBFactory.prototype.open = () => { throw new DOMException('not here', 'SecurityError'); }")
    page.goto(ORIGIN)
    page.wait_for_selector("text=This browser keeps nothing")
    assert ("POST", "/api/join") not in game.asked
    context.close()
