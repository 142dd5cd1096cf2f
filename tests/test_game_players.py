"""Many players at once: nobody gets another's answer or waits for many batches. Two servers on one database."""

import math
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
    wait_for,
    write_study,
)

from gala_cuda.game.partner import MAX_BATCH

pytestmark = pytest.mark.slow
PLAYERS, ROUNDS = 12, 5
FORWARD = 0.05  # seconds of the partner for a batch, whatever its size


def play(player, study, game, chance):
    """Rounds with a guess at every few bubbles, each of which has to be the partner's answer to this very view."""
    for _ in range(ROUNDS):
        played = player.start()
        image = game.store.open_round(played["round"], player.code).picture.path
        points = chance.choice((stroke, corner))()
        for n in range(2, len(points) + 1, 4):
            status, answer = player.guess(played["round"], points[:n])
            assert status == 200, answer
            assert answer["n"] == n
            assert answer["names"][1] == expected_digest(study, image, played["round"], points[:n])
            assert answer["recognised"] == (answer["names"][0] == played["label"])
            time.sleep(chance.uniform(0, 0.1))
        assert player.finish(played["round"], points)[0] == 200


def test_nobody_gets_anothers_answer_or_waits_for_many_batches(tmp_path):
    """Beside the batch at work a guess waits for one more at most and its own; a further one may begin meanwhile."""
    study = write_study(tmp_path / "study", per_class=15)
    worker, waited = LocalWorker(FakeView(FORWARD)), list[int]()
    game = make_game(study, f"sqlite:///{tmp_path / 'game.sqlite'}", worker)
    guess = game.partner.guess

    async def watched(*arguments):
        before = len(worker.batches)
        answer = await guess(*arguments)
        waited.append(len(worker.batches) - before)
        return answer

    game.partner.guess = watched
    with running(game) as port, ThreadPoolExecutor(PLAYERS) as pool:
        list(pool.map(lambda seed: play(Player(port).join(), study, game, random.Random(seed)), range(PLAYERS)))
        rounds = list(game.store.rounds())
    assert len(rounds) == PLAYERS * ROUNDS
    assert len(waited) == 3 * len(rounds)
    assert max(len(batch) for batch in worker.batches) > 1
    assert max(waited) <= math.ceil(PLAYERS / MAX_BATCH) + 1


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
    study = write_study(tmp_path / "study", per_class=40, repeats=True)
    ports = [free_port(), free_port()]
    pids = [game_servers.start(study, database, port) for port in ports]
    browsers = [Browser(ports, seed) for seed in range(6)]
    for browser in browsers:
        browser.start()
    wait_for(lambda: all(len(browser.answered) >= 3 for browser in browsers), 180)
    game_servers.kill(pids[0])
    before = [len(browser.answered) for browser in browsers]
    wait_for(lambda: all(len(each.answered) >= count + 3 for each, count in zip(browsers, before, strict=True)), 180)
    wait_for(lambda: sum(browser.broken for browser in browsers) > 0, 180)
    for browser in browsers:
        browser.enough.set()
    for browser in browsers:
        browser.join(180)
    game_servers.kill(pids[1])
    rounds = check(database, browsers)
    assert all(each.attempt == 1 for each in rounds)
    assert {each.participant for each in rounds} == {browser.player.code for browser in browsers}
    print(f"{len(rounds)} rounds by two servers, {sum(browser.broken for browser in browsers)} unanswered requests")
