"""Hostile clients: whatever they send is answered by 4xx, never 500, and honest players play on.

GALA_HOSTILE is how many fuzzed requests are sent, and how many joins; its default is for quick runs.
"""

import collections
import errno
import http.client
import os
import random
import socket
import statistics
import threading
import time
from typing import Any

import pytest
from game_play import (
    DEVICE,
    FakeView,
    LocalWorker,
    Player,
    corner,
    finished,
    free_port,
    make_game,
    running,
    stroke,
    write_study,
)

from gala_cuda.game import listen
from gala_cuda.game.access import MAX_BODY

MANY = int(os.environ.get("GALA_HOSTILE", 600))
OVERTAKEN = 150  # hostile requests answered while an honest guess waits, in the median of guesses
EVIL = "127.0.0.2"  # the address of hostile clients


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return write_study(tmp_path_factory.mktemp("hostile") / "study", per_class=30, repeats=True)


@pytest.fixture
def game(study, tmp_path):
    return make_game(study, f"sqlite:///{tmp_path / 'game.sqlite'}", LocalWorker(FakeView()))


@pytest.fixture
def port(game):
    with running(game) as port:
        yield port


BODIES = [
    b"", b"{", b"null", b"[]", b"7", b'"text"', b"\xff\xfe{\x00}\x00", b"\x80", b"{'consent': true}", b"{} {}",
    b'{"consent": NaN}', b'{"consent": Infinity}', b'{"consent": true, "consent": true}', b'{"consent": true, "x": 1}',
    b'{"\\ud800": true}', b"[" * 30_000, b'{"a":' * 6_000, b'{"points": ' + b"[" * 30_000, b"1" * 5_000,
    b'{"consent": 1' + b"0" * 4_000 + b"}", b'{"consent": 1e999}', b"x" * (MAX_BODY + 1), b"x" * 10 * MAX_BODY,
    b'{"points": [[1' + b"0" * 4_000 + b", 0, 0]]}", b'{"consent": true}' + b" " * MAX_BODY, b"\x00" * 100,
    b'{"__proto__": {}}', b'{"consent": "<script>alert(1)</script>"}', b'{"consent": true, "recruit": "\\ud800"}',
]  # fmt: skip
NUMBERS: list[Any] = [-1, 1.5, True, None, "1", 10**4000, 1e300, [], {}, "<script>", 2**63, -(2**31), [[[[[]]]]]]
PATHS = [
    "/api/rounds/../join", "/api/rounds/%2e%2e%2fjoin/guess", "/api/rounds/%00/guess", "/api/rounds/%ff%fe/guess",
    "/api/rounds/' OR 1=1 --/guess".replace(" ", "%20"), "/api/rounds/<script>/guess", "/api/rounds/" + "a" * 8000,
    "/api/rounds//guess", "/page/../../../../etc/passwd", "/page/%2e%2e/%2e%2e/access.py", "/page//etc/passwd",
    "/..%5c..%5cetc", "/api/rounds/\u00e9/guess".encode("ascii", "replace").decode(), "/nothing", "/api", "/page/",
]  # fmt: skip
COOKIES = ["clickme=", "clickme", "=;=;", "clickme=" + "a" * 4000, "clickme='; DROP TABLE round; --", "clickme=%00",
           "clickme=\xff", "clickme=a; clickme=b; clickme=c; clickme=d; clickme=e; clickme=f"]  # fmt: skip


WRONG_RATIOS: list[Any] = [0, -1, True, None, "1", 10**4000, 1e300, [], "<script>"]
WRONG_DEVICES = [
    *({"pointer": each} for each in NUMBERS),
    *({"ratio": each} for each in WRONG_RATIOS),
    *({"width": each} for each in (0, 10**9, *NUMBERS)),
    *({"height": each} for each in (0, 10**9, *NUMBERS)),
]
KINDS = ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "", "a" * 500]
JOIN = b"POST /api/join HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"


class Fuzzer:
    """Makes requests that each have something wrong."""

    def __init__(self, seed, own, foreign, done):
        self.random, self.own, self.foreign, self.done = random.Random(seed), own, foreign, done

    def request(self):
        """(method, path, body, headers)."""
        make = self.random.choice([self.raw, self.points, self.ends, self.path, self.site, self.cookie, self.kind])
        return make()

    def raw(self):
        path = self.random.choice(["/api/join", f"/api/rounds/{self.own}/guess"])
        body = self.random.choice(BODIES)
        if self.random.random() < 0.3:
            body = self.random.randbytes(self.random.randrange(2000))
        return "POST", path, body, {}

    def points(self):
        points = stroke(self.random.randrange(1, 11))
        k, what = self.random.randrange(len(points)), self.random.randrange(7)
        if what == 0:
            points[k][self.random.randrange(3)] = self.random.choice(NUMBERS)
        elif what == 1:
            points[k] = self.random.choice([[], [1, 2], [1, 2, 3, 4], *NUMBERS])
        elif what == 2:
            points[k] = [16 * 97 + self.random.randrange(10**6), 0, 50 * k]
        elif what == 3:
            points += [[200 * k, 0, 50 * k] for k in range(len(points), 200)]
        elif what == 4:
            points[k][2] += self.random.choice([1, 49, -50, 7_001, 10**7]) if k else 1
            points += [[points[-1][0] + 999, 0, points[-1][2] + 1]]
        elif what == 5:
            points = self.random.choice([[], *NUMBERS])
        else:
            return "POST", f"/api/rounds/{self.foreign}/guess", {"points": stroke()}, {}
        if self.random.random() < 0.5:
            return "PUT", f"/api/rounds/{self.own}", finished(points, "skip") | ({} if points else {"n": 1}), {}
        return "POST", f"/api/rounds/{self.own}/guess", {"points": points}, {}

    def ends(self):
        body = finished(corner(), "timeout")
        what = self.random.randrange(7)
        number = self.own
        if what == 0:
            body["outcome"] = self.random.choice([*NUMBERS, "won", "<script>", "recognised"])
        elif what == 1:
            body[self.random.choice(["score", "total", "recognised_n", "participant", "x" * 1000])] = 100
        elif what == 2:
            del body[self.random.choice(list(body))]
        elif what == 3:
            body["device"] = self.random.choice([*NUMBERS, DEVICE | {"agent": "x"}, {"pointer": "mouse"}])
        elif what == 4:
            body["device"] = DEVICE | self.random.choice(WRONG_DEVICES)
        elif what == 5:
            number = self.foreign
        else:
            number, body = self.done, finished(corner(7), "skip")
        return "PUT", f"/api/rounds/{number}", body, {}

    def path(self):
        method = self.random.choice(["GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS"])
        return method, self.random.choice(PATHS), {"points": stroke()}, {}

    def site(self):
        headers = self.random.choice([
            {"Origin": "https://evil.example"}, {"Origin": "null"}, {"Origin": "http://127.0.0.1:1"},
            {"Sec_Fetch_Site": "cross-site"}, {"Sec_Fetch_Site": "same-site"}, {"Sec_Fetch_Site": "none"},
            {"Sec_Fetch_Site": ""}, {"Sec_Fetch_Site": "cross-site", "Origin": "http://127.0.0.1"},
        ])  # fmt: skip
        method, path, body = self.random.choice([
            ("POST", "/api/join", {"consent": True}), ("POST", "/api/rounds", {}), ("DELETE", "/api/me", None),
            ("PUT", f"/api/rounds/{self.own}", finished(corner())),
        ])  # fmt: skip
        return method, path, body, headers

    def cookie(self):
        return "POST", "/api/rounds", {}, {"Cookie": self.random.choice(COOKIES)}

    def kind(self):
        kind = self.random.choice(KINDS)
        return "POST", "/api/join", b'{"consent": true}', {"Content_Type": kind}


def test_whatever_is_sent_is_answered_by_4xx(port, game):
    honest = Player(port).join()
    foreign = honest.start()["round"]
    player = Player(port, address=EVIL).join()
    own, done = player.start()["round"], player.start()["round"]
    assert player.finish(done, corner())[0] == 200
    fuzzer, statuses = Fuzzer(1, own, foreign, done), collections.Counter()
    for _ in range(MANY):
        method, path, body, headers = fuzzer.request()
        try:
            status, answer = player.ask(method, path, body, **headers)
        except (http.client.HTTPException, OSError):  # it closed the connection before all of a large body was sent
            statuses["closed"] += 1
            continue
        assert 400 <= status < 500, (method, path[:80], str(body)[:300], headers, status, answer)
        statuses[status] += 1
        if method != "OPTIONS" and isinstance(answer, dict):
            assert len(answer["error"]) < 700
    print(f"{MANY} hostile requests: {dict(statuses)}")
    assert {400, 401, 403, 404, 409, 413, 415, 422} <= statuses.keys()
    assert statuses["closed"] <= MANY / 10
    assert [each.id for each in game.store.rounds()] == [done]
    assert honest.guess(foreign, stroke())[1]["recognised"]
    assert honest.finish(foreign, stroke(), "recognised")[0] == 200
    assert player.finish(own, corner())[0] == 200


RAW = [
    b"GET / HTTP/9.9\r\n\r\n", b"\x00" * 100, b"GET\r\n\r\n", b"POST /api/join HTTP/1.1\r\n\r\n",
    b"\x16\x03\x01\x02\x00",
    b"POST /api/join HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
    b"POST /api/join HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\nContent-Length: 3\r\n\r\n{}",
    JOIN + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
    JOIN + b"Content-Length: 99999999999999999999\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 200_000 + b"\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: x\r\n" + b"X: a\r\n" * 20_000 + b"\r\n",
    b"GET /%zz%ff HTTP/1.1\r\nHost: x\r\n\r\n", b"GET /\xff HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET * HTTP/1.1\r\nHost: x\r\n\r\n",
]  # fmt: skip


@pytest.mark.parametrize("data", RAW, ids=range(len(RAW)))
def test_broken_http(port, data):
    with socket.create_connection(("127.0.0.1", port), timeout=30) as client:
        try:
            client.sendall(data)
            client.shutdown(socket.SHUT_WR)
            answer = client.recv(1000)
        except ConnectionError:
            answer = b""
        except OSError as error:
            if error.errno != errno.ENOTCONN:  # of shutdown, where the server has closed it by then
                raise
            answer = b""
    assert not answer or answer.startswith(b"HTTP/1.1 4"), answer
    assert Player(port).ask("GET", "/healthz")[0] == 200


def test_chunked_body_without_a_length_is_cut(port):
    """More than a body may have, bit by bit: refused before all of it has come."""
    player = Player(port)
    sent = 0

    def endless():
        nonlocal sent
        for _ in range(10_000):
            sent += 1024
            yield b"x" * 1024

    try:
        player.connection.request("POST", "/api/join", endless(), {"Content-Type": "application/json"},
                                  encode_chunked=True)  # fmt: skip
    except ConnectionError:
        pass
    else:
        assert player.connection.getresponse().status == 413
    assert sent < 10_000 * 1024 or player.connection.sock is not None


def test_slow_headers_are_not_waited_for(port, monkeypatch):
    monkeypatch.setattr(listen, "HEADER_SECONDS", 0.5)
    slow = [socket.create_connection(("127.0.0.1", port), timeout=60) for _ in range(50)]
    for number, client in enumerate(slow):
        client.sendall([b"", b"POST /api/jo", b"GET / HTTP/1.1\r\nHost: x\r\nX-"][number % 3])
    honest = Player(port).join()
    assert honest.guess(honest.start()["round"], stroke())[0] == 200
    assert all(client.recv(100) == b"" for client in slow)  # closed by the server
    for client in slow:
        client.close()


def test_slow_bodies_are_not_waited_for(port, monkeypatch):
    from gala_cuda.game import access

    monkeypatch.setattr(access, "BODY_SECONDS", 0.3)
    with socket.create_connection(("127.0.0.1", port), timeout=60) as client:
        client.sendall(
            b"POST /api/join HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 17\r\n\r\n{"
        )
        assert client.recv(1000).startswith(b"HTTP/1.1 408")


def test_planted_cookies_give_nobody_anothers_session(port):
    """Who plants a cookie of one's own before the victim's has the victim play under neither."""
    victim, attacker = Player(port).join(), Player(port).join()
    own = victim.cookie
    for planted in (f"{attacker.cookie}; {own}", f"{own}; {attacker.cookie}"):
        victim.cookie = planted
        assert victim.ask("POST", "/api/rounds", {})[0] == 401
    victim.cookie = f"clickme=planted; {own}"
    assert victim.ask("POST", "/api/rounds", {})[0] == 200


def test_cookie_of_a_public_address_cannot_be_planted(study, tmp_path):
    url = f"sqlite:///{tmp_path / 'game.sqlite'}"
    game = make_game(study, url, LocalWorker(FakeView()), public_url="https://game.example.org")
    with running(game) as port:
        player = Player(port)
        status, answer = player.ask("POST", "/api/join", {"consent": True}, Origin="http://127.0.0.1:8000")
        assert status == 403
        assert "expected https://game.example.org (--public-url says which address players open)" in answer["error"]
        status, _ = player.ask("POST", "/api/join", {"consent": True}, Origin="https://game.example.org")
        assert status == 200
        cookie = player.response.headers["Set-Cookie"]
        assert cookie.startswith("__Host-clickme=")
        assert "Secure" in cookie


def test_own_pages_and_scripts_may_ask(port):
    for headers in ({}, {"Sec_Fetch_Site": "same-origin"}, {"Origin": f"http://127.0.0.1:{port}"}):
        assert Player(port).ask("POST", "/api/join", {"consent": True}, **headers)[0] == 200


def test_class_named_as_a_script(tmp_path):
    """The name goes through JSON, of a type that browsers do not take for a page."""
    study = write_study(tmp_path / "study")
    (study / "images" / "red").rename(study / "images" / "<script>alert(1)")
    (study / "study.yaml").write_text('labels: {green: "../../etc/passwd"}')
    with running(make_game(study, f"sqlite:///{tmp_path / 'game.sqlite'}", LocalWorker(FakeView()))) as port:
        player = Player(port).join()
        labels = collections.Counter()
        for _ in range(12):
            played = player.start()
            assert player.response.headers["Content-Type"] == "application/json"
            assert player.response.headers["X-Content-Type-Options"] == "nosniff"
            assert player.ask("GET", f"/api/rounds/{played['round']}/image")[0] == 200
            assert player.finish(played["round"], corner(), "skip")[0] == 200
            labels[played["label"]] += 1
    assert labels == {"<script>alert(1)": 3, "../../etc/passwd": 3, "blue": 3, "yellow": 3}


def test_replayed_and_forged_rounds(port, game):
    player, other = Player(port).join(), Player(port).join()
    played = player.start()
    assert player.guess(played["round"], stroke())[1]["recognised"]
    for body in (
        finished(stroke(), "recognised") | {"score": 100},
        finished(stroke(), "recognised") | {"recognised_n": 1},
        finished(corner(), "recognised"),
        finished(stroke(9), "recognised"),
    ):
        assert player.ask("PUT", f"/api/rounds/{played['round']}", body)[0] in (400, 409)
    assert other.ask("PUT", f"/api/rounds/{played['round']}", finished(stroke(), "recognised"))[0] == 404
    assert player.finish(played["round"], stroke(), "recognised")[0] == 200
    assert other.finish(played["round"], stroke(), "recognised")[0] == 404
    assert [total for _, total in game.store.board()] == [game.store.total(player.code)]


def rss(pid):
    """Resident memory of a process, MB."""
    with open(f"/proc/{pid}/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmRSS")) / 1024


def overtaken(player, count, others):
    """By how many of the requests counted in `others` each of the player's guesses is overtaken."""
    found = []
    for _ in range(count):
        played = player.start()
        before = others.total()
        status, answer = player.guess(played["round"], stroke())
        found.append(others.total() - before)
        assert status == 200, answer
        assert player.finish(played["round"], stroke(), "recognised")[0] == 200
        time.sleep(0.25)
    return found


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="memory is read from /proc, which Linux has")
def test_flood_of_joins_and_of_rubbish(game_servers, study, tmp_path):
    """Memory stays bounded, an honest player plays on, and joining stays possible from other addresses."""
    port = free_port()
    pid = game_servers.start(study, f"sqlite:///{tmp_path / 'game.sqlite'}", port, 0.0, True)
    try:
        honest = Player(port).join()
        statuses, stop = collections.Counter(), threading.Event()
        overtaken(honest, 12, statuses)
        before = rss(pid)

        def flood(seed):
            client, chance = Player(port, address=EVIL), random.Random(seed)
            while not stop.is_set() or statuses.total() < MANY + 100:
                body = chance.choice([{"consent": True}, b"x" * 20_000, b"[" * 20_000])
                try:
                    statuses[client.ask("POST", "/api/join", body)[0]] += 1
                except (http.client.HTTPException, OSError):
                    statuses["closed"] += 1

        threads = [threading.Thread(target=flood, args=(seed,)) for seed in range(4)]
        for thread in threads:
            thread.start()
        try:
            by = overtaken(honest, 12, statuses)
            assert Player(port).join().start()["round"]
        finally:
            stop.set()
        for thread in threads:
            thread.join()
        grown = rss(pid) - before
    finally:
        game_servers.kill(pid)
    print(f"{dict(statuses)}; memory +{grown:.0f} MB; a guess was overtaken by {sorted(by)} of them")
    assert statuses.keys() <= {200, 400, 413, 429, "closed"}
    assert statuses[429] > 0
    assert statuses[200] < 600
    assert grown < 60
    assert statistics.median(by) < OVERTAKEN
