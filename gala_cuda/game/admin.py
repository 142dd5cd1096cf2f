"""The admin's routes: how a study goes, what counts, and the maps as a download.

Whoever has the token that is printed at start is let in; the database keeps its hash, as of players' tokens.
"""

import asyncio
import multiprocessing
import os
import shutil
import tempfile
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from starlette.background import BackgroundTask
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route

from ..console import numbered
from ..data.errors import UnreadableError
from ..errors import GalaError
from .access import Buckets, Refused, hash_token, network_of, new_token, read_json, session_tokens, take_fields
from .dashboard import ORDERS, Dashboard
from .export import collect
from .quality import Filters
from .records import Round
from .server import page
from .store import Store

COOKIE = "clickme_admin"
MAX_REASON = 200  # characters
_UNKNOWN = "there is no such image or participant in the study"
NICE = 10  # an export leaves the processor to the game

Answer = Callable[[Request], Awaitable[Response]]


class Admin:
    """The admin of a study, with ``routes`` for the server.

    Attributes:
        token: to be printed; new at each start. Those of earlier starts stay good for a month.
    """

    def __init__(self, store: Store, study: Path, masks: Mapping[str, np.ndarray], secure: bool = False):
        """``masks`` are as for ``Dashboard``; ``secure`` says whether the page is opened over HTTPS."""
        self.token, hashed = new_token()
        self._store, self._study, self._secure = store, study, secure
        self._dashboard, self._attempts = Dashboard(store, study, masks), Buckets(1, 20)
        self._exporting = asyncio.Lock()
        store.add_admin(hashed, time.time())

    @property
    def routes(self) -> list[Route]:
        return [
            Route("/admin", page("admin.html")),
            Route("/admin/login", self._log_in, methods=["POST"]),
            Route("/admin/data", self._only(self._data)),
            Route("/admin/images", self._only(self._images)),
            Route("/admin/images/{number:int}/map.png", self._only(self._map)),
            Route("/admin/images/{number:int}", self._only(self._decide_image), methods=["POST"]),
            Route("/admin/people/{code}", self._only(self._decide_person), methods=["POST"]),
            Route("/admin/maps.zip", self._only(self._export)),
        ]

    def _only(self, answer: Answer) -> Answer:
        """``answer`` for the admin alone."""

        async def checked(request: Request) -> Response:
            for token in session_tokens(request.headers, COOKIE):
                if await self._is_admin(token):
                    return await answer(request)
            raise Refused(403, "not logged in; expected the token that `gala-cuda clickme serve` printed")

        return checked

    async def _is_admin(self, token: str) -> bool:
        return await run_in_threadpool(self._store.is_admin, hash_token(token), time.time())

    async def _log_in(self, request: Request) -> Response:
        self._attempts.take(network_of(request.client.host if request.client else None), time.monotonic())
        (token,) = take_fields(await read_json(request), token=(lambda value: isinstance(value, str), "a text", True))
        if not await self._is_admin(token):
            raise Refused(403, "token is another one; expected the one that `gala-cuda clickme serve` printed")
        response = Response(status_code=204)
        response.set_cookie(COOKIE, token, path="/admin", httponly=True, samesite="strict", secure=self._secure)
        return response

    async def _data(self, request: Request) -> Response:
        return JSONResponse(await run_in_threadpool(self._dashboard.summary))

    async def _images(self, request: Request) -> Response:
        order, page = request.query_params.get("order", "rounds"), request.query_params.get("page", "0")
        if order not in ORDERS:
            raise Refused(400, f"order is {order[:40]!r}; expected one of {', '.join(ORDERS)}")
        if not (page.isascii() and page.isdigit() and len(page) < 7):
            raise Refused(400, f"page is {page[:40]!r}; expected a whole number of at least 0")
        return JSONResponse(await run_in_threadpool(self._dashboard.pictures, order, int(page)))

    async def _map(self, request: Request) -> Response:
        number = _image_id(request)
        try:
            png = await run_in_threadpool(self._dashboard.map_of, number)
        except (UnreadableError, OSError) as error:
            raise Refused(409, f"the image cannot be read: {error}") from error
        if png is None:
            raise Refused(404, _UNKNOWN)
        return Response(png, media_type="image/png", headers={"Cache-Control": "private, max-age=600"})

    async def _decide_image(self, request: Request) -> Response:
        number, reason = _image_id(request), await _reason(request)
        decide = (self._store.include, number) if reason is None else (self._store.exclude, number, reason)
        return await self._decide(*decide)

    async def _decide_person(self, request: Request) -> Response:
        code = request.path_params["code"]
        if not (code.isascii() and code.isalnum()):
            raise Refused(404, _UNKNOWN)
        return await self._decide(self._store.exclude_person, code, await _reason(request))

    async def _decide(self, change: Callable[..., None], *values: Any) -> Response:
        try:
            await run_in_threadpool(change, *values)
        except KeyError as error:
            raise Refused(404, _UNKNOWN) from error
        self._dashboard.forget()
        return Response(status_code=204)

    async def _export(self, request: Request) -> Response:
        """What ``clickme collect`` makes without any flags, in a ZIP file."""
        if self._exporting.locked():
            raise Refused(409, "another download is being made; expected one at a time")
        async with self._exporting:
            rounds = await run_in_threadpool(lambda: list(self._store.rounds()))
            filters = await run_in_threadpool(self._dashboard.filters)
            draft = tempfile.mkdtemp(prefix="clickme-")
            pool = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))
            try:
                work = pool.submit(_write_zip, self._study / "images", Path(draft), rounds, filters)
                archive = await asyncio.wrap_future(work)
            except (GalaError, OSError, ValueError) as error:
                shutil.rmtree(draft)
                raise Refused(409, str(error)) from error
            finally:
                pool.shutdown(wait=False)
        return FileResponse(archive, filename="maps.zip", background=BackgroundTask(shutil.rmtree, draft))


def _write_zip(images: Path, draft: Path, rounds: Sequence[Round], filters: Filters) -> str:
    """The path of a ZIP file of the folder maps, made in a process of its own."""
    os.nice(NICE)
    collect(images, draft / "maps", rounds, numbered, filters)
    return shutil.make_archive(str(draft / "maps"), "zip", draft, "maps")


async def _reason(request: Request) -> str | None:
    """Why something is excluded; None where it is included again."""
    expected = f"null, or a reason of 1 to {MAX_REASON} printable characters"
    (reason,) = take_fields(await read_json(request), excluded=(_is_reason, expected, True))
    return reason


def _is_reason(value: Any) -> bool:
    return value is None or (isinstance(value, str) and value.isprintable() and 1 <= len(value.strip()) <= MAX_REASON)


def _image_id(request: Request) -> int:
    number = request.path_params["number"]
    if number >= 2**31:  # larger than any in the database
        raise Refused(404, _UNKNOWN)
    return number
