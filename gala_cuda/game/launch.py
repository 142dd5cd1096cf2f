"""Starts a game: study, database, partner and the check at import, then the server."""

import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ..console import PlainConsole
from .admin import Admin
from .check import check_images, check_labels
from .database import database_of
from .demo import write_demo
from .listen import Server, address_of, allow_connections
from .partner import Knows, Partner, Worker
from .records import PLAY
from .server import make_app
from .session import Game
from .store import Store
from .study import Study, StudyError, load_study
from .view import View, ViewOptions, top_of

_LISTED = 10  # excluded images that are told one by one


@dataclass(frozen=True)
class Options:
    """What to play.

    Attributes:
        study: the folder; with `demo` it is made where it is not there.
        database: URL, or None for a file in the study's folder.
        view: opens the partner's network.
        top: see `ViewOptions`.
        public_url: origin of the address that players open, or None.
    """

    study: Path
    demo: bool
    database: str | None
    view: Callable[[], View]
    top: int | None = None
    public_url: str | None = None


def launch(options: Options, bound: socket.socket, console: PlainConsole) -> None:
    """Plays until a signal comes.

    Raises:
        StudyError: the study cannot be played, or not with this partner.
        StoreError: the database cannot be used.
        GalaError: the partner cannot be opened.
    """
    if options.demo:
        write_demo(options.study)
    load_study(options.study)  # before a database is made for what is none
    store, worker = Store(options.database or database_of(options.study)), Worker(options.view)
    try:
        study = load_study(options.study, store.images(), console.print_line)
        console.print_line("opening the partner")
        knows = worker.start()
        top = top_of(len(knows.classes), options.top)
        check_labels(study, knows.classes, _name(options.view))
        _check(study, store, worker, knows, top, console)
        game = Game(study, store, Partner(worker), top, options.public_url)
        admin = Admin(store, study.folder, study.masks(), game.secure)
        app = make_app(game, admin.routes)
        address = options.public_url or address_of(bound)

        def tell() -> None:
            console.print_line(f"ClickMe is played at {address}/")
            console.print_line(f"how it goes, for the admin: {address}/admin#token={admin.token}")

        allow_connections()
        Server(app, tell).run(sockets=[bound])
    finally:
        worker.stop()
        store.close()


def _name(view: Callable[[], View]) -> str:
    return (
        view.weights or "EfficientNet-Lite0, which knows ImageNet's classes" if isinstance(view, ViewOptions) else "?"
    )


def _check(study: Study, store: Store, worker: Worker, knows: Knows, top: int, console: PlainConsole) -> None:
    """Shows the partner the images that it has not seen yet, and tells which are excluded, and why."""
    for number, left in enumerate(check_images(study, store, worker.ask, knows, top)):
        if number % 16 == 0:
            console.print_line(f"checking images: {left:,} to go")
    images = [each for each in store.images() if each.kind == PLAY]
    excluded = [each for each in images if each.excluded is not None]
    for each in excluded[:_LISTED]:
        console.print_line(f"excluded: {each.path}: {each.excluded}")
    if len(excluded) > _LISTED:
        console.print_line(f"excluded: {len(excluded) - _LISTED:,} more, which the admin's page lists")
    if len(excluded) == len(images):
        raise StudyError(f"none of the {len(images):,} images in {study.folder / 'images'} can be played, see above")
    console.print_line(f"images: {len(images) - len(excluded):,} of {len(images):,} are played, in {study.folder}")
