"""Fixtures of every test file."""

import os

import pytest
import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # before the kernels are imported: they run on the CPU then

from gala_cuda import backends

RUNNABLE = ("reference", "cpu")


@pytest.fixture(autouse=True)
def _no_override(monkeypatch):
    """The caller's GALA_BACKEND must not decide which backend a test runs."""
    monkeypatch.delenv("GALA_BACKEND", raising=False)


@pytest.fixture(params=RUNNABLE)
def backend(request) -> str:
    """Each backend that runs on this machine; the others skip with their own reason."""
    reason = backends.why_not(request.param, torch.empty(1, 1, 1, 1))
    if reason:
        pytest.skip(f"backend {request.param!r}: {reason}")
    return request.param


@pytest.fixture
def cpu_backend() -> str:
    reason = backends.why_not("cpu", torch.empty(1, 1, 1, 1))
    if reason:
        pytest.skip(f"backend 'cpu': {reason}")
    return "cpu"


@pytest.fixture
def one_thread():
    """Tiny networks are slower on several, and many steps of training add up."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def picture_folder(tmp_path_factory):
    """A folder of real pictures, train/CLASS/* and val/CLASS/*; not to be changed."""
    from imagesets import write_folder  # it needs the extra "train"

    return write_folder(tmp_path_factory.mktemp("pictures"))


@pytest.fixture(scope="session")
def shard_folder(picture_folder, tmp_path_factory):
    """The same pictures as tar shards; not to be changed."""
    from imagesets import write_shards

    return write_shards(picture_folder, tmp_path_factory.mktemp("shards"))


@pytest.fixture
def user_cache(tmp_path_factory, monkeypatch):
    """A folder in place of the user's cache, which tests leave alone."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    return folder


@pytest.fixture(scope="session")
def postgres():
    """The address of a PostgreSQL server without a database's name; skips where none can be started."""
    game_services = pytest.importorskip("game_services", reason="the game's extra postgres is not installed")
    reason = game_services.why_no_postgres()
    if reason:
        pytest.skip(reason)
    with game_services.postgres_server() as address:
        yield address


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request, tmp_path):
    """The address of a new database for the game, of each kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'game.sqlite'}"
    from game_services import new_database

    return new_database(request.getfixturevalue("postgres"), "game")


@pytest.fixture(scope="session")
def browser():
    """Chromium, for the game's page."""
    from game_browser import CHROMIUM, launch  # it needs the extra "test"

    if not os.path.exists(CHROMIUM):
        pytest.skip(f"no {CHROMIUM}: tests/system.sh installs it where apt does, as root")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = launch(playwright)
        yield chromium
        chromium.close()


@pytest.fixture(scope="session")
def game_servers():
    """Starts servers of the game as processes."""
    from game_play import Servers

    made = Servers()
    yield made
    made.close()
