"""The game's page in a real browser: from consent to the last picture, and whatever comes between."""

import json

import pytest
from game_browser import ORIGIN, FakeGame, paint, run_out, start_round, until, visit
from playwright.sync_api import Browser, Page

pytestmark = pytest.mark.slow

RIGHT = ["rings", "wall", "cloud", "lake", "snow"]


@pytest.fixture
def game() -> FakeGame:
    return FakeGame(640, 400)


def guesses(page: Page) -> list[str]:
    return page.locator("#names li").all_text_contents()


def body(game: FakeGame, name: str = "r1") -> dict:
    (sent,) = game.finished[name]
    return json.loads(sent)


def test_nothing_is_asked_for_before_consent(browser: Browser, game: FakeGame):
    game.consent = "First line.\n<b>Second</b> line."
    with visit(browser, game) as page:
        assert page.text_content("#consent") == game.consent
        page.click("#consent-form button")
        assert page.is_visible("#welcome")  # the box is not ticked
        assert {method for method, _ in game.asked} == {"GET"}
        page.check("#agree")
        page.click("#consent-form button")
        page.wait_for_selector("#round:not([hidden])")
        assert ("POST", "/api/join") in game.asked
        assert page.text_content("#who") == "You are quiet otter (k7mq2xw9ab)"
        assert page.evaluate("document.cookie") == ""


def test_a_recruiting_services_number_goes_along(browser: Browser, game: FakeGame):
    joined = []
    game.hook = lambda method, path, body: joined.append(body) if path == "/api/join" else None
    with visit(browser, game) as page:
        page.goto(f"{ORIGIN}/?recruit=5f3a%20b")
        page.check("#agree")
        page.click("#consent-form button")
        page.wait_for_selector("#round:not([hidden])")
    assert joined == [{"consent": True, "recruit": "5f3a b"}]


def test_practice_needs_no_server(browser: Browser, game: FakeGame):
    with visit(browser, game) as page:
        page.check("#agree")
        page.click("#consent-form button")
        page.wait_for_selector("#badge:not([hidden])")
        before = len(game.asked)
        paint(page, 30)
        until(page, lambda: len(guesses(page)) == 5)
        run_out(page)
        assert page.text_content("#next") == "Now with the real partner"
        assert game.asked[before:] == []


def test_a_recognised_round(browser: Browser, game: FakeGame):
    game.plan.append((20, RIGHT, True))
    with visit(browser, game) as page:
        start_round(page)
        assert page.text_content("#word") == "rings"
        paint(page, 10)
        until(page, lambda: guesses(page) == game.plan[0][1])
        page.clock.run_for(500)
        page.wait_for_selector("#result:not([hidden])")
        until(page, lambda: page.text_content("#total") == "64")
        sent = body(game)
        assert sent["outcome"] == "recognised"
        assert sent["points"][:20] == game.guesses[-1]
        assert [len(points) for points in game.guesses] == [10, 20]
        assert page.text_content("#won") == str(round(100 * (1 - 0.95 / 7) ** 3))
        assert "20 bubbles" in (page.text_content("#detail") or "")
        page.clock.run_for(3000)  # nothing goes on behind the result
        assert len(game.guesses) == 2
        assert game.finished.keys() == {"r1"}


def test_a_round_whose_time_is_over(browser: Browser, game: FakeGame):
    with visit(browser, game) as page:
        start_round(page)
        paint(page, 10)
        run_out(page)
        until(page, lambda: game.finished)
        assert body(game)["outcome"] == "timeout"
        assert "did not get" in (page.text_content("#verdict") or "")
        assert page.is_hidden("#score")


def test_answers_of_another_time_change_nothing(browser: Browser, game: FakeGame):
    """An older answer after a newer one, 202 for one that was replaced, and one for a round that is over."""
    game.plan = [(0, ["old"] * 5, False), (20, ["new"] * 5, False)]
    game.hold = lambda method, path: path.endswith("/guess")
    with visit(browser, game) as page:
        start_round(page)
        paint(page, 20)
        until(page, lambda: len(game.held) == 2)
        game.held[1]()
        until(page, lambda: guesses(page) == ["new"] * 5)
        game.held[0]()
        game.hold = lambda method, path: False
        game.hook = lambda method, path, body: (202, None) if path.endswith("/guess") else None
        page.clock.run_for(500)
        until(page, lambda: game.asked.count(("POST", "/api/rounds/r1/guess")) == 3)
        page.wait_for_timeout(100)
        assert guesses(page) == ["new"] * 5
        game.hook = lambda method, path, body: None
        game.hold = lambda method, path: path.endswith("/guess")
        game.plan = [(0, RIGHT, True)]
        page.clock.run_for(500)
        until(page, lambda: len(game.held) == 3)
        page.click("#skip")
        until(page, lambda: "r1" in game.finished)
        page.wait_for_selector("#round:not([hidden])")
        game.held[2]()
        page.wait_for_timeout(100)
        assert page.is_visible("#round")
        assert guesses(page) == []
        assert body(game)["outcome"] == "skip"
        assert "r2" not in game.finished


def test_a_late_answer_still_wins_its_own_round(browser: Browser, game: FakeGame):
    """The points are those of the painted time: waiting for the partner costs nothing."""
    game.hold = lambda method, path: path.endswith("/guess")
    with visit(browser, game) as page:
        start_round(page)
        paint(page, 30)
        run_to_the_look(page)
        page.clock.run_for(3000)
        assert page.is_visible("#round")
        game.plan = [(0, ["wall"] * 5, False), (30, RIGHT, True)]
        for answer in game.held[:3]:
            answer()
        page.wait_for_selector("#result:not([hidden])")
        until(page, lambda: game.finished)
        assert body(game)["outcome"] == "recognised"
        assert page.text_content("#won") == str(round(100 * (1 - 1.45 / 7) ** 3))


def run_to_the_look(page: Page) -> None:
    while not page.text_content("#hint"):
        page.clock.run_for(100)


def test_a_partner_that_never_answers(browser: Browser, game: FakeGame):
    """It has not failed to recognise the picture: the round is kept as interrupted."""
    game.hold = lambda method, path: path.endswith("/guess")
    with visit(browser, game) as page:
        start_round(page)
        paint(page, 15)
        run_to_the_look(page)
        page.clock.run_for(5100)
        page.wait_for_selector("#result:not([hidden])")
        until(page, lambda: game.finished)
        assert body(game)["outcome"] == "interrupted"


def test_a_last_guess_that_got_lost_is_asked_for_once_more(browser: Browser):
    game = FakeGame(100, 60)  # so small that the brush arrives after twelve bubbles, and one guess
    lost: list[object] = []

    def lose_the_first(method: str, path: str, body: object) -> tuple[int, object] | None:
        if path.endswith("/guess") and not lost:
            lost.append(body)
            return 429, {"error": "too many guesses: 9 a second; expected at most 4"}
        return None

    game.hook = lose_the_first
    with visit(browser, game) as page:
        start_round(page)
        paint(page, 15)
        run_out(page)
        until(page, lambda: game.finished)
        assert body(game)["outcome"] == "timeout"
        assert [{"points": points} for points in game.guesses] == lost


def test_another_tab_ends_the_round(browser: Browser, game: FakeGame):
    with visit(browser, game) as page:
        start_round(page)
        page.evaluate("Object.defineProperty(document, 'hidden', {value: true})")
        hide = "document.dispatchEvent(new Event('visibilitychange'))"
        page.evaluate(hide)
        assert page.is_visible("#round")  # it had not begun
        paint(page, 25)
        page.evaluate(hide)
        page.wait_for_selector("#result:not([hidden])")
        until(page, lambda: game.finished)
        assert body(game)["outcome"] == "interrupted"


def test_a_round_that_has_not_begun_is_not_sent(browser: Browser, game: FakeGame):
    with visit(browser, game) as page:
        start_round(page)
        page.goto("about:blank")
        page.wait_for_timeout(200)
    assert game.finished == {}


def test_skipping(browser: Browser, game: FakeGame):
    with visit(browser, game) as page:
        start_round(page)
        page.click("#skip")
        page.wait_for_selector("#skip:enabled")  # with the next picture
        assert body(game)["outcome"] == "skip"
        assert body(game)["points"] == []
        assert body(game)["device"]["pointer"] == "mouse"


def test_without_the_clock(browser: Browser, game: FakeGame):
    """Flagged when the round is asked for; it ends with the bubbles, and the choice is kept."""
    asked = []
    game.hook = lambda method, path, body: asked.append(body) if path == "/api/rounds" else None
    with visit(browser, game) as page:
        page.check("#untimed")
        start_round(page)
        assert asked == [{"untimed": True}]
        assert page.text_content("#worth") == "140 left"
        paint(page, 3)
        page.clock.run_for(60_000)  # the pointer rests
        assert page.is_visible("#round")
        assert page.is_disabled("#untimed")
        page.click("#skip")
        page.wait_for_selector("#skip:enabled")  # with the next picture; before it the round would be sent again
        page.reload()
        page.wait_for_selector("#welcome:not([hidden])")
        assert page.is_checked("#untimed")
    points = body(game)["points"]
    assert len(points) > 10


def test_words_from_the_server_are_only_words(browser: Browser, game: FakeGame):
    evil = "<img src=x onerror=\"document.title='hit'\">"
    game.label, game.consent = evil, evil
    game.plan = [(0, [evil] * 5, False), (20, [evil, "a", "b", "c", "d"], True)]
    game.board = [{"name": evil, "score": 3}]
    with visit(browser, game) as page:
        start_round(page)
        assert page.text_content("#word") == evil
        paint(page, 20)
        page.wait_for_selector("#result:not([hidden])")
        page.click("#open-board")
        assert page.locator("#ranks li").first.text_content() == f"{evil}3"
        assert page.locator("main img, dialog img").count() == 0
        assert page.title() == "ClickMe"


def test_the_board(browser: Browser, game: FakeGame):
    with visit(browser, game) as page:
        page.click("#open-board")
        page.wait_for_selector("text=Nobody has scored yet")
        page.keyboard.press("Escape")
        start_round(page)
        game.board = [{"name": "brave teapot", "score": 99.6}, {"name": "quiet otter", "score": 3.2}]
        page.click("#open-board")
        until(page, lambda: page.locator("#ranks li").all_text_contents() == ["brave teapot100", "quiet otter3"])
        assert page.locator("#ranks [aria-current]").all_text_contents() == ["quiet otter3"]


def test_the_last_picture(browser: Browser, game: FakeGame):
    game.left = 1
    with visit(browser, game) as page:
        start_round(page)
        page.click("#skip")
        page.wait_for_selector("#message:not([hidden])")
        assert page.text_content("#message-title") == "You have seen every picture"
        assert page.is_hidden("#again")


def test_forget_my_data(browser: Browser, game: FakeGame):
    with visit(browser, game) as page:
        start_round(page)
        page.click("#skip")
        page.wait_for_selector("#round:not([hidden])")
        page.click("#open-leave")
        page.click("#leave .primary")
        assert ("DELETE", "/api/me") not in game.asked
        page.click("#open-leave")
        page.click("#forget")
        page.wait_for_selector("#message:not([hidden])")
        assert ("DELETE", "/api/me") in game.asked
        assert page.is_hidden("#who")
        assert page.evaluate("localStorage.length") == 0
        page.click("#again")
        page.wait_for_selector("#consent-form:not([hidden])")


def test_a_session_that_the_server_has_lost(browser: Browser, game: FakeGame):
    game.joined = "k7mq2xw9ab"
    with visit(browser, game) as page:
        assert page.is_hidden("#consent-form")
        game.joined = None
        game.hook = lambda method, path, body: (401, {"error": "no session"}) if path == "/api/rounds" else None
        page.click("#play")
        page.wait_for_selector("#consent-form:not([hidden])")


def test_the_servers_reason_is_shown(browser: Browser, game: FakeGame):
    game.joined = "k7mq2xw9ab"
    game.hook = lambda method, path, body: (503, {"error": "no room left"}) if path == "/api/rounds" else None
    with visit(browser, game) as page:
        page.click("#play")
        page.wait_for_selector("#message:not([hidden])")
        assert page.text_content("#message-text") == "no room left"
        game.hook = lambda method, path, body: None
        page.click("#again")
        page.wait_for_selector("#round:not([hidden])")


def test_nothing_comes_from_elsewhere(browser: Browser, game: FakeGame):
    """Under the policy that the server sends, without inline scripts or styles; also the privacy page."""
    with visit(browser, game) as page:
        seen: list[str] = []
        page.on("console", lambda message: seen.append(message.text))
        page.on("request", lambda request: seen.append(request.url) if not request.url.startswith(ORIGIN) else None)
        start_round(page)
        paint(page, 12)
        page.click("#skip")
        page.goto(f"{ORIGIN}/privacy")
        assert "What is not kept" in (page.text_content("main") or "")
        page.click("main a")
        page.wait_for_selector("#welcome:not([hidden])")
    assert seen == []
