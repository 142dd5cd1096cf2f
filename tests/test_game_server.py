"""The routes, to the letter, and what a player gets where something is wrong."""

import io
import json
import sqlite3
import threading
import time

import numpy as np
import pytest
from game_play import (
    DEVICE,
    HEIGHT,
    WIDTH,
    FakeView,
    LocalWorker,
    Player,
    corner,
    finished,
    generous,
    make_game,
    running,
    stroke,
    wait_for,
    write_study,
)
from PIL import Image

from gala_cuda.game.access import Buckets
from gala_cuda.game.rules import score

SCORE = score(450)


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return write_study(tmp_path_factory.mktemp("game") / "study", title="Colours")


@pytest.fixture
def game(study, tmp_path):
    return make_game(study, f"sqlite:///{tmp_path / 'game.sqlite'}", LocalWorker(FakeView()))


@pytest.fixture
def port(game):
    with running(game) as port:
        yield port


@pytest.fixture
def player(port):
    return Player(port).join()


def in_a_minute():
    return time.time() + 60


def test_a_round_from_beginning_to_end(port, study):
    player = Player(port)
    assert player.ask("GET", "/healthz")[0] == 200
    status, answer = player.ask("POST", "/api/join", {"consent": True})
    assert status == 200
    assert list(answer) == ["participant"]
    cookie = player.response.headers["Set-Cookie"]
    assert all(part in cookie for part in ("HttpOnly", "SameSite=lax", "Path=/"))
    player.cookie, code = cookie.partition(";")[0], answer["participant"]
    status, played = player.ask("POST", "/api/rounds", {})
    assert status == 200
    assert list(played) == ["round", "label", "width", "height", "rules"]
    assert (played["width"], played["height"]) == (WIDTH, HEIGHT)
    assert played["rules"] == {"bubble": 14, "step": 7, "interval_ms": 50, "limit_ms": 7000, "every": 10}
    address = f"/api/rounds/{played['round']}"
    status, data = player.ask("GET", f"{address}/image")
    assert status == 200
    assert Image.open(io.BytesIO(data)).size == (WIDTH, HEIGHT)
    status, answer = player.ask("POST", f"{address}/guess", {"points": corner()})
    assert (status, answer["n"], answer["recognised"], answer["score"]) == (200, 10, False, 0)
    assert list(answer) == ["n", "names", "recognised", "score"]
    status, answer = player.guess(played["round"], stroke())
    assert (status, answer["names"][0], answer["recognised"]) == (200, played["label"], True)
    assert answer["score"] == pytest.approx(SCORE)
    first = player.finish(played["round"], stroke(), "recognised")
    assert first == (200, {"score": pytest.approx(SCORE), "total": pytest.approx(SCORE)})
    assert player.finish(played["round"], stroke(), "recognised") == first
    assert player.finish(played["round"], stroke(), "timeout")[0] == 409
    status, board = player.ask("GET", "/api/board")
    assert status == 200
    assert [list(line) for line in board] == [["name", "score"]]
    assert player.ask("GET", "/api/study")[1] == {
        "title": "Colours", "consent": "You paint; we keep where.", "participant": code,
        "name": board[0]["name"], "total": pytest.approx(SCORE),
    }  # fmt: skip
    status, nothing = player.ask("DELETE", "/api/me")
    assert (status, nothing) == (204, b"")
    assert player.ask("POST", "/api/rounds", {})[0] == 401
    assert player.ask("GET", "/api/board")[1] == []


def test_consent_is_needed(port):
    for body in ({"consent": False}, {}, {"consent": 1}, {"consent": "true"}):
        status, answer = Player(port).ask("POST", "/api/join", body)
        assert status == 400
        assert "consent" in answer["error"]


def test_all_images_then_nothing(player):
    labels = []
    while True:
        status, played = player.ask("POST", "/api/rounds", {})
        if status != 200:
            break
        labels.append(played["label"])
        assert player.finish(played["round"], [], "skip")[0] == 200
    assert (status, played) == (204, b"")
    assert sorted(labels) == sorted(["red", "green", "blue", "yellow"] * 3)


def test_another_ones_round_is_not_there(port, player):
    played, other = player.start(), Player(port).join()
    address = f"/api/rounds/{played['round']}"
    for method, path, body in [
        ("GET", f"{address}/image", None),
        ("POST", f"{address}/guess", {"points": stroke()}),
        ("PUT", address, finished(stroke())),
        ("PUT", "/api/rounds/none", finished(stroke())),
        ("GET", "/api/rounds/%2e%2e%2f/image", None),
    ]:
        status, answer = other.ask(method, path, body)
        assert status == 404, path
        assert answer["error"]
    assert player.finish(played["round"], stroke())[0] == 200


def test_a_recognition_cannot_be_claimed(player, game):
    played = player.start()
    game.clock = in_a_minute
    status, answer = player.finish(played["round"], stroke(), "recognised")
    assert status == 409
    assert "the partner has not recognised" in answer["error"]
    assert player.guess(played["round"], stroke())[1]["recognised"]
    status, answer = player.finish(played["round"], corner(), "recognised")
    assert status == 409
    assert "first 10" in answer["error"]
    assert player.finish(played["round"], stroke(20), "timeout") == (200, {"score": SCORE, "total": SCORE})


def test_score_is_by_the_first_recognised_bubble(player, game):
    played = player.start()
    game.clock = in_a_minute
    assert player.guess(played["round"], stroke(10))[1]["score"] == SCORE
    assert player.guess(played["round"], stroke(20))[1]["score"] == SCORE
    assert player.finish(played["round"], stroke(20), "recognised")[1]["score"] == SCORE
    assert player.guess(played["round"], stroke(20))[0] == 409


def test_strokes_faster_than_the_servers_clock_are_refused(player):
    played = player.start()
    status, answer = player.guess(played["round"], stroke(40))
    assert status == 422
    assert "points ends at 1950 ms; expected at most" in answer["error"]
    assert player.finish(played["round"], stroke(40))[0] == 422


def test_untimed_rounds_last_and_are_flagged(player, game):
    played = player.start(untimed=True)
    assert played["rules"]["limit_ms"] == 600_000
    game.clock = in_a_minute
    late = [[x, y, 6 * ms] for x, y, ms in stroke(30)]
    assert player.guess(played["round"], late)[1] == {
        "n": 30, "names": [played["label"], *player_names(player)], "recognised": True, "score": 0,
    }  # fmt: skip
    assert player.finish(played["round"], late, "recognised")[1]["score"] == 0
    (made,) = game.store.rounds()
    assert made.untimed
    timed = player.start()
    assert player.guess(timed["round"], late)[0] == 422


def player_names(player):
    class Any:
        def __eq__(self, other):
            return isinstance(other, str)

        __hash__ = None

    return [Any(), Any()]


def test_practice_is_said_and_scores_nothing(tmp_path):
    study = write_study(tmp_path / "study")
    (study / "practice" / "red").mkdir(parents=True)
    (study / "images" / "red" / "0.png").rename(study / "practice" / "red" / "0.png")
    with running(make_game(study, f"sqlite:///{tmp_path / 'game.sqlite'}", LocalWorker(FakeView()))) as port:
        player = Player(port).join()
        played = player.start()
        assert played["practice"] is True
        assert player.guess(played["round"], stroke())[1]["recognised"]
        assert player.finish(played["round"], stroke(), "recognised") == (200, {"score": 0, "total": 0})
        assert "practice" not in player.start()


def test_newer_guess_takes_the_place_of_one_that_waits(study, tmp_path):
    worker, gate = LocalWorker(FakeView()), threading.Semaphore(0)
    asked, ask = threading.Event(), worker.ask

    def slow(batch):
        asked.set()
        assert gate.acquire(timeout=60)
        return ask(batch)

    worker.ask = slow
    game = make_game(study, f"sqlite:///{tmp_path / 'game.sqlite'}", worker)
    with running(game) as port:
        player = Player(port).join()
        played, found = player.start(), {}

        def guess(name, points):
            other = Player(port)
            other.cookie = player.cookie
            found[name] = other.guess(played["round"], points)

        threads = [threading.Thread(target=guess, args=(n, corner(n))) for n in (1, 2, 3)]
        threads[0].start()
        assert asked.wait(60)
        threads[1].start()
        wait_for(lambda: len(game.partner._waiting) == 1)
        threads[2].start()
        threads[1].join(60)
        assert found[2] == (202, b"")
        gate.release(10)
        for thread in threads:
            thread.join(60)
        assert [found[n][1]["n"] for n in (1, 3)] == [1, 3]
        assert [len(batch) for batch in worker.batches] == [1, 1]


def test_what_queues_meanwhile_is_one_batch(study, tmp_path):
    worker, gate, asked = LocalWorker(FakeView()), threading.Event(), threading.Event()
    ask = worker.ask

    def slow(batch):
        asked.set()
        assert gate.wait(60)
        return ask(batch)

    worker.ask = slow
    game = make_game(study, f"sqlite:///{tmp_path / 'game.sqlite'}", worker)
    with running(game) as port:
        players = [Player(port).join() for _ in range(11)]
        rounds = [player.start()["round"] for player in players]
        threads = [
            threading.Thread(target=player.guess, args=(number, corner()))
            for player, number in zip(players, rounds, strict=True)
        ]
        threads[0].start()
        assert asked.wait(60)
        for thread in threads[1:]:
            thread.start()
        wait_for(lambda: len(game.partner._waiting) == 10)
        gate.set()
        for thread in threads:
            thread.join(60)
    assert [len(batch) for batch in worker.batches] == [1, 8, 2]


def test_a_client_that_goes_away_leaves_the_partner_at_work(player, port, game):
    """What the partner recognised for it is kept."""
    worker, gate, asked = game.partner._worker, threading.Event(), threading.Event()
    ask = worker.ask

    def slow(batch):
        asked.set()
        assert gate.wait(60)
        return ask(batch)

    worker.ask = slow
    first = player.start()
    leaving = Player(port)
    leaving.connection.request(
        "POST", f"/api/rounds/{first['round']}/guess", json.dumps({"points": stroke()}),
        {"Content-Type": "application/json", "Cookie": player.cookie},
    )  # fmt: skip
    assert asked.wait(60)
    leaving.connection.close()
    gate.set()
    wait_for(lambda: game.store.open_round(first["round"], player.code).recognised_n == 10)
    assert player.finish(first["round"], stroke(), "recognised")[0] == 200
    assert player.guess(player.start()["round"], stroke())[0] == 200


def test_partner_that_ends_is_said_so_and_started_again(player, game):
    worker = game.partner._worker
    worker.broken = True
    played = player.start()
    status, answer = player.guess(played["round"], stroke())
    assert status == 503
    assert "partner" in answer["error"]
    assert player.response.headers["Retry-After"]
    assert player.ask("GET", "/healthz")[0] == 503
    assert player.guess(played["round"], stroke())[0] == 503
    worker.broken = False
    wait_for(lambda: player.ask("GET", "/healthz")[0] == 200)
    assert player.guess(played["round"], stroke())[1]["recognised"]


def test_image_that_is_gone(tmp_path):
    study = write_study(tmp_path / "study")
    with running(make_game(study, f"sqlite:///{tmp_path / 'game.sqlite'}", LocalWorker(FakeView()))) as port:
        player = Player(port).join()
        played = player.start()
        for path in (study / "images").rglob("*.png"):
            path.unlink()
        for answer in (
            player.ask("GET", f"/api/rounds/{played['round']}/image"),
            player.guess(played["round"], stroke()),
        ):
            assert answer[0] == 503
            assert "No such file" in answer[1]["error"] or "is gone" in answer[1]["error"]


def test_image_is_sent_without_metadata(tmp_path):
    study = write_study(tmp_path / "study")
    exif = Image.Exif()
    exif[0x010E] = "taken at home"
    for path in (study / "images").rglob("*.png"):
        Image.open(path).save(path, exif=exif, pnginfo=None)
    with running(make_game(study, f"sqlite:///{tmp_path / 'game.sqlite'}", LocalWorker(FakeView()))) as port:
        player = Player(port).join()
        played = player.start()
        data = player.ask("GET", f"/api/rounds/{played['round']}/image")[1]
    sent = Image.open(io.BytesIO(data))
    assert not sent.getexif()
    assert b"taken at home" not in data
    shown = np.asarray(sent.convert("RGB"), float)
    originals = [np.asarray(Image.open(path), float) for path in (study / "images" / played["label"]).iterdir()]
    assert min(abs(shown - original).mean() for original in originals) < 4  # of other images: more than 5


def test_full_disk_answers_507_and_loses_nothing(tmp_path):
    """What the browser's outbox then keeps can be sent again."""
    study, file = write_study(tmp_path / "study", per_class=20), tmp_path / "game.sqlite"
    game = make_game(study, f"sqlite:///{file}", LocalWorker(FakeView()))
    with running(game) as port:
        player = Player(port).join()
        rounds = [player.start()["round"] for _ in range(40)]
        game.clock = in_a_minute
        with game.store.reading() as connection:
            pages = connection.exec_driver_sql("PRAGMA page_count").scalar()
        _limit_pages(game.store, pages)
        answers = dict(zip(rounds, (player.finish(number, corner(140)) for number in rounds), strict=True))
        full = [answer for status, answer in answers.values() if status == 507]
        assert len(full) > 10
        assert all("no room left" in answer["error"] for answer in full)
        done = {number for number, (status, _) in answers.items() if status == 200}
        assert {each.id for each in game.store.rounds()} == done
        assert player.ask("GET", "/healthz")[0] == 200
        _limit_pages(game.store, pages + 1000)
        assert all(player.finish(number, corner(140))[0] == 200 for number in rounds)
        assert {each.id for each in game.store.rounds()} == set(rounds)
    assert sqlite3.connect(file).execute("PRAGMA integrity_check").fetchone() == ("ok",)


def _limit_pages(store, pages):
    """SQLite's own limit, of every connection from now on."""
    from sqlalchemy import event

    def limit(connection, *_):
        connection.execute(f"PRAGMA max_page_count = {pages}")

    store._engine.dispose()
    event.listen(store._engine, "connect", limit)


def test_sessions_are_limited_each_by_itself(study, tmp_path):
    limits = generous()
    limits.guesses = Buckets(0.001, 3)
    game = make_game(study, f"sqlite:///{tmp_path / 'game.sqlite'}", LocalWorker(FakeView()), limits=limits)
    with running(game) as port:
        greedy, other = Player(port).join(), Player(port).join()
        rounds = greedy.start()["round"], other.start()["round"]
        statuses = [greedy.guess(rounds[0], corner())[0] for _ in range(5)]
        assert statuses == [200, 200, 200, 429, 429]
        assert "expected at most 3 requests at once" in greedy.guess(rounds[0], corner())[1]["error"]
        assert int(greedy.response.headers["Retry-After"]) > 0
        assert other.guess(rounds[1], corner())[0] == 200


def test_a_classroom_may_join_behind_one_address(study, tmp_path):
    database = f"sqlite:///{tmp_path / 'game.sqlite'}"
    game = make_game(study, database, LocalWorker(FakeView()), limits=None)
    from gala_cuda.game.session import Limits

    game.limits = Limits()
    with running(game) as port:
        statuses = [Player(port).ask("POST", "/api/join", {"consent": True})[0] for _ in range(300)]
    assert statuses[:40] == [200] * 40
    assert 429 in statuses
    assert len(game.limits.joins) == 1


def test_recruiters_id_is_a_field_of_joining(port, game):
    Player(port).join(recruit="prolific 77")
    (person,) = game.store.participants()
    assert person.recruit is not None
    for wrong in ("", "x" * 129, 7, None, "a\nb"):
        assert Player(port).ask("POST", "/api/join", {"consent": True, "recruit": wrong})[0] == 400


def test_headers_bind_the_browser(port):
    player = Player(port)
    player.ask("GET", "/")
    headers = player.response.headers
    assert player.response.status == 200
    assert headers["Content-Security-Policy"].startswith("default-src 'self'")
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert "Server" not in headers
    assert player.ask("GET", "/page/game.js")[0] == 200
    assert player.response.headers["Content-Type"].startswith("text/javascript")
    assert player.ask("GET", "/privacy")[0] == 200
    for path in ("/page/../server.py", "/page/%2e%2e/server.py", "/page/..%2fserver.py", "/nothing"):
        assert player.ask("GET", path)[0] == 404
    assert player.ask("PATCH", "/api/join")[0] == 405


def test_device_is_kept(player, game):
    played = player.start()
    player.finish(played["round"], corner(), "interrupted")
    (made,) = game.store.rounds()
    assert (made.pointer, made.ratio, made.screen_width, made.screen_height) == tuple(DEVICE.values())
    assert made.outcome == "interrupted"
    assert made.points == tuple(map(tuple, corner()))
