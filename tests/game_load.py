"""Players whose pages keep finished rounds until they are answered, and what then has to be in the database."""

import http.client
import random
import threading
import time

import pytest
from game_play import Player, corner, finished, stroke

from gala_cuda.game.rules import score
from gala_cuda.game.store import Store


class Browser(threading.Thread):
    """A player whose page keeps finished rounds in an outbox until the server has answered 200.

    Attributes:
        answered: round to (body, answer) of each PUT that was answered 200.
        recognised: round to the number of bubbles, where the server said that the partner recognises the image.
        refused: what was answered that should not have been.
    """

    def __init__(self, ports, seed):
        super().__init__()
        self.player, self.ports, self.random = Player(ports[0], 10), ports, random.Random(seed)
        self.answered, self.recognised, self.refused, self.outbox = {}, {}, [], {}
        self.enough, self.broken = threading.Event(), 0

    def ask(self, method, path, body=None):
        """(status, answer), after as many attempts as it takes, each by a server chosen anew."""
        end = time.monotonic() + 120
        while time.monotonic() < end:
            self.player.connection.close()
            self.player.connection.port = self.random.choice(self.ports)
            try:
                status, answer = self.player.ask(method, path, body)
            except (OSError, http.client.HTTPException):
                self.broken += 1
                time.sleep(0.02)
                continue
            if status < 500:
                return status, answer
            assert status == 503, (status, answer)
            time.sleep(0.02)
        raise AssertionError("the server has not come back")

    def run(self):
        _, answer = self.ask("POST", "/api/join", {"consent": True})
        self.player.cookie = self.player.response.headers["Set-Cookie"].partition(";")[0]
        self.player.code = answer["participant"]
        while not self.enough.is_set():
            self.play()
        self.send_outbox()

    def play(self):
        status, played = self.ask("POST", "/api/rounds", {})
        assert status == 200, played
        number, points = played["round"], self.random.choice((stroke, corner))()
        status, answer = self.ask("POST", f"/api/rounds/{number}/guess", {"points": points})
        if status == 200 and answer["recognised"]:
            self.recognised[number] = answer["n"]
        elif status not in (200, 202):
            self.refused.append((number, status, answer))
        # A page that got no answer says "timeout" of a round that the server may have seen recognised.
        known = number in self.recognised and self.random.random() < 0.5
        self.outbox[number] = finished(points, "recognised" if known else "timeout")
        if self.random.random() < 0.7:
            self.send_outbox()

    def send_outbox(self):
        for number, body in list(self.outbox.items()):
            status, answer = self.ask("PUT", f"/api/rounds/{number}", body)
            if status == 200:
                self.answered[number] = body, answer
                del self.outbox[number]
            else:
                self.refused.append((number, status, answer))
                return


def check(database, browsers):
    """All that was answered is there once, with what was sent; the sums are right."""
    store = Store(database)
    rounds = list(store.rounds())
    by_id = {each.id: each for each in rounds}
    assert len(by_id) == len(rounds)
    for browser in browsers:
        assert browser.refused == []
        assert browser.outbox == {}
        for number, (body, answer) in browser.answered.items():
            made = by_id[number]
            assert made.participant == browser.player.code
            assert made.points == tuple(map(tuple, body["points"]))
            assert answer["score"] == made.score
            if number in browser.recognised:
                assert (made.outcome, made.recognised_n) == ("recognised", browser.recognised[number])
                assert made.score in (score(450), 0)  # 0 where the image was had before
        own = [each for each in rounds if each.participant == browser.player.code]
        assert {each.id for each in own} == set(browser.answered)
        assert store.total(browser.player.code) == pytest.approx(sum(each.score for each in own))
        assert max(answer["total"] for _, answer in browser.answered.values()) == pytest.approx(
            store.total(browser.player.code)
        )
    first = [(each.image, each.participant, each.attempt) for each in rounds]
    assert len(set(first)) == len(first)
    store.close()
    return rounds
