"""Servers that are killed under load: what has been answered is there, once, and what has not is sent again.

GALA_KILLS is how often a server is killed, at random moments; its default is for quick runs.
"""

import os
import random
import time

import pytest
from game_load import Browser, check
from game_play import free_port, write_study

pytestmark = pytest.mark.slow
KILLS = int(os.environ.get("GALA_KILLS", 5))
PLAYERS = 5


def test_killed_servers_lose_nothing(game_servers, database, tmp_path):
    study = write_study(tmp_path / "study", per_class=30, repeats=True)
    port, when = free_port(), random.Random(KILLS)
    pid = game_servers.start(study, database, port)
    browsers = [Browser([port], seed) for seed in range(PLAYERS)]
    for browser in browsers:
        browser.start()
    for _ in range(KILLS):
        time.sleep(when.uniform(0, 0.4))
        game_servers.kill(pid)
        pid = game_servers.start(study, database, port)
    for browser in browsers:
        browser.enough.set()
    for browser in browsers:
        browser.join(180)
    game_servers.kill(pid)
    rounds = check(database, browsers)
    broken = sum(browser.broken for browser in browsers)
    assert broken > 0
    print(f"{KILLS} kills, {len(rounds)} rounds, {broken} requests without an answer")
