"""Many players at once: nobody gets another's answer, and nobody waits long. Two servers on one database."""

import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from game_load import Browser, check
from game_play import (
    FakeView,
    LocalWorker,
    Player,
    corner,
    expected_digest,
    free_port,
    make_game,
    running,
    stroke,
    write_study,
)

pytestmark = pytest.mark.slow
PLAYERS, ROUNDS = 12, 5
FORWARD = 0.05  # seconds of the partner for a batch, whatever its size


def p95(times):
    return sorted(times)[int(0.95 * len(times))]


def play(player, study, game, chance, taken, plain):
    """Rounds with a guess at every few bubbles, each of which has to be the partner's answer to this very view."""
    for _ in range(ROUNDS):
        before = time.perf_counter()
        played = player.start()
        plain.append(time.perf_counter() - before)
        image = game.store.open_round(played["round"], player.code).picture.path
        points = chance.choice((stroke, corner))()
        for n in range(2, len(points) + 1, 4):
            before = time.perf_counter()
            status, answer = player.guess(played["round"], points[:n])
            taken.append(time.perf_counter() - before)
            assert status == 200, answer
            assert answer["n"] == n
            assert answer["names"][1] == expected_digest(study, image, played["round"], points[:n])
            assert answer["recognised"] == (answer["names"][0] == played["label"])
            time.sleep(chance.uniform(0, 0.1))
        assert player.finish(played["round"], points)[0] == 200


def test_nobody_gets_anothers_answer_or_waits_long(tmp_path):
    """A guess waits for the batch at work, one more and its own, and is a request like another beside."""
    study = write_study(tmp_path / "study", per_class=15)
    worker = LocalWorker(FakeView(FORWARD))
    game = make_game(study, f"sqlite:///{tmp_path / 'game.sqlite'}", worker)
    taken, plain, forwards, ask = [], [], [], worker.ask

    def timed(batch):
        before = time.perf_counter()
        answers = ask(batch)
        forwards.append(time.perf_counter() - before)
        return answers

    worker.ask = timed

    def one(seed):
        play(Player(port).join(), study, game, random.Random(seed), taken, plain)

    with running(game) as port, ThreadPoolExecutor(PLAYERS) as pool:
        list(pool.map(one, range(PLAYERS)))
        rounds = list(game.store.rounds())
    assert len(rounds) == PLAYERS * ROUNDS
    sizes = [len(batch) for batch in worker.batches]
    assert max(sizes) > 1
    guess, batch, other = (1000 * p95(each) for each in (taken, forwards, plain))
    print(f"{len(taken)} guesses in {len(sizes)} batches; p95 {guess:.0f} ms, a batch {batch:.0f}, a round {other:.0f}")
    assert p95(taken) < 2 * (3 * p95(forwards) + 2 * p95(plain))


def test_other_routes_do_not_wait_for_the_partner(tmp_path):
    """While a batch takes as long as it likes, rounds are given out and finished."""
    study = write_study(tmp_path / "study")
    worker, gate, asked = LocalWorker(FakeView()), threading.Event(), threading.Event()
    ask = worker.ask

    def stuck(batch):
        asked.set()
        assert gate.wait(120)
        return ask(batch)

    worker.ask = stuck
    with running(make_game(study, f"sqlite:///{tmp_path / 'game.sqlite'}", worker)) as port:
        waiting, other = Player(port).join(), Player(port).join()
        played = waiting.start()
        thread = threading.Thread(target=waiting.guess, args=(played["round"], stroke()))
        thread.start()
        try:
            assert asked.wait(60)
            for _ in range(3):
                given = other.start()
                assert other.ask("GET", f"/api/rounds/{given['round']}/image")[0] == 200
                assert other.finish(given["round"], corner())[0] == 200
            assert other.ask("GET", "/healthz")[0] == 200
        finally:
            gate.set()
            thread.join()


def test_two_servers_on_one_database(game_servers, postgres, tmp_path):
    """Players alternate between them, one is killed and not started again: nothing is lost or there twice."""
    from game_services import new_database

    database = new_database(postgres, "two_servers")
    study = write_study(tmp_path / "study", per_class=40)
    ports = [free_port(), free_port()]
    pids = [game_servers.start(study, database, port) for port in ports]
    browsers = [Browser(ports, seed) for seed in range(6)]
    for browser in browsers:
        browser.start()
    time.sleep(4)
    game_servers.kill(pids[0])
    time.sleep(3)
    for browser in browsers:
        browser.enough.set()
    for browser in browsers:
        browser.join(180)
    game_servers.kill(pids[1])
    rounds = check(database, browsers)
    assert all(each.attempt == 1 for each in rounds)
    assert sum(browser.broken for browser in browsers) > 0
    assert {each.participant for each in rounds} == {browser.player.code for browser in browsers}
    print(f"{len(rounds)} rounds by two servers, {sum(browser.broken for browser in browsers)} unanswered requests")
