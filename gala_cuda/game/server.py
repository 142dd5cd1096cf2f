"""The game's server: its routes, its pages, and what it answers where something goes wrong."""

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path

import anyio
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles

from .access import Guard, Refused
from .partner import PartnerDown
from .routes import ROUTES
from .rules import PointsError
from .session import Game
from .store import Conflict, StoreError, StoreFull

PAGE = Path(__file__).parent / "page"


def make_app(game: Game, more: Sequence[BaseRoute] = ()) -> Starlette:
    """The server of `game`, whose partner has been started, with `more` routes; partner and store end with it."""

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(game.partner.run)
            try:
                yield
            finally:
                tasks.cancel_scope.cancel()
                game.partner.close()
                game.store.close()

    routes = [
        *ROUTES,
        *more,
        Route("/", page("index.html")),
        Route("/privacy", page("privacy.html")),
        Mount("/page", StaticFiles(directory=PAGE)),
    ]
    app = Starlette(
        routes=routes, lifespan=lifespan, middleware=[Middleware(Guard, public_url=game.public_url)],
        exception_handlers={
            Refused: lambda _, error: error.response(),
            PointsError: _answer(422), Conflict: _answer(409), StoreFull: _answer(507), StoreError: _answer(503),
            PartnerDown: _answer(503), HTTPException: _http_error, Exception: _failed,
        },
    )  # fmt: skip
    app.router.redirect_slashes = False
    app.state.game = game
    return app


def page(name: str) -> Callable[[Request], Awaitable[Response]]:
    async def respond(_: Request) -> Response:
        return FileResponse(PAGE / name, headers={"Cache-Control": "no-cache"})

    return respond


def _answer(status: int) -> Callable[[Request, Exception], Response]:
    headers = {"Retry-After": "2"} if status == 503 else None
    return lambda _, error: Refused(status, str(error), headers).response()


def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    given = f"{request.method} {request.url.path[:100]}"
    return JSONResponse({"error": f"{given}: {error.detail}; expected another"}, error.status_code, error.headers)


def _failed(_: Request, error: Exception) -> Response:
    """Starlette logs the error itself after this."""
    return JSONResponse({"error": "the server has failed; its log says how"}, 500)
