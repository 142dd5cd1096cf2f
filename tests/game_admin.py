"""A study with a few players, and a server of the admin's routes alone."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import uvicorn
from game_rounds import line, write_images
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.routing import Mount
from starlette.staticfiles import StaticFiles
from starlette.testclient import TestClient

from gala_cuda.game.access import Guard, Refused
from gala_cuda.game.admin import Admin
from gala_cuda.game.listen import address_of, bind
from gala_cuda.game.records import Device, Picture
from gala_cuda.game.server import PAGE
from gala_cuda.game.store import Store

NOW = 1000.0
DEVICE = Device("mouse", 1.0, 1280, 720)


class ServedStudy:
    """Two images each of cats and dogs, a catch image, and three players."""

    def __init__(self, folder):
        images = write_images(folder / "images", 2)
        paths = sorted(path.relative_to(images).as_posix() for path in images.rglob("*.png"))
        self.folder, self.store = folder, Store(f"sqlite:///{folder / 'game.sqlite'}")
        pictures = [Picture(0, "play", path, path.split("/")[0], 64, 48, "d", people=2) for path in paths]
        catch = Picture(0, "catch", "cat/c.png", "cat", 64, 48, "d")
        self.store.add_images([*pictures, catch])
        self.codes = [self.store.join(f"token {number}", "consent") for number in range(3)]
        mask = np.zeros((48, 64), bool)
        mask[:, :32] = True
        self.admin = Admin(self.store, folder, {"cat/c.png": mask})
        answer = {Refused: lambda _, error: error.response()}
        self.app = Starlette(
            routes=[*self.admin.routes, Mount("/page", StaticFiles(directory=PAGE))],
            middleware=[Middleware(Guard)], exception_handlers=answer,
        )  # fmt: skip
        self.client = TestClient(self.app)

    def play(self, code, points=None, outcome="timeout"):
        found = self.store.start(code, NOW, catch_every=0)
        drawn = line(10, 10) if points is None else points
        if outcome == "recognised":
            self.store.recognise(found.id, code, drawn[:10])
        self.store.finish(found.id, code, outcome, drawn, DEVICE, "body", NOW + 1)
        return found.picture

    def log_in(self):
        assert self.client.post("/admin/login", json={"token": self.admin.token}).status_code == 204
        return self.client

    @contextmanager
    def listening(self) -> Iterator[str]:
        """Its address, while it answers there."""
        bound = bind("127.0.0.1", 0)
        server = uvicorn.Server(uvicorn.Config(self.app, log_level="error", ws="none"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]})
        thread.start()
        try:
            while not server.started:
                time.sleep(0.01)
            yield address_of(bound)
        finally:
            server.should_exit = True
            thread.join()
            bound.close()
