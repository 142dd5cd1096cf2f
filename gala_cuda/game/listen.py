"""The server's socket, and its patience with slow clients."""

import asyncio
import resource
import socket
from collections.abc import Callable
from typing import Any

import h11
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from ..errors import GalaError

HEADER_SECONDS = 10  # for the headers of a request to arrive
KEEP_ALIVE_SECONDS = 75
SHUTDOWN_SECONDS = 5  # for requests to be answered


class PortError(GalaError):
    """The address cannot be listened at."""


class PatientProtocol(H11Protocol):
    """uvicorn's HTTP, which by itself would wait for the rest of a header for ever."""

    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._await_headers()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._await_headers()

    def connection_lost(self, exc: Exception | None) -> None:
        self._forget_deadline()
        super().connection_lost(exc)

    def _await_headers(self) -> None:
        """The clock runs from the connection, or from the first byte of the next request, until headers are whole."""
        if self.conn.their_state is not h11.IDLE:
            self._forget_deadline()
        elif self._deadline is None:
            self._deadline = self.loop.call_later(HEADER_SECONDS, self.transport.close)

    def _forget_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None


def allow_connections() -> None:
    """Lets this process have as many connections as the system allows, instead of the usual 1024 files."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def bind(host: str, port: int) -> socket.socket:
    """A socket at the address, not listening yet. Port 0: any free one. Raises PortError."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        bound = socket.socket(family, kind, protocol)
    except (OSError, OverflowError) as error:
        raise PortError(f"{host} cannot be listened at: {getattr(error, 'strerror', None) or error}") from error
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except OSError as error:
        bound.close()
        reason = f"port {port} of {host} cannot be listened at: {error.strerror}"
        raise PortError(f"{reason}; expected a free one, as --port 0 finds one") from error
    return bound


def address_of(bound: socket.socket) -> str:
    host, port = bound.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


class Server(uvicorn.Server):
    """What answers by `app`: ``run(sockets=[bound])`` returns after a signal, or once `should_exit` is set.

    `on_listening` is called when the first request can come.
    """

    def __init__(self, app: ASGIApp, on_listening: Callable[[], object] = lambda: None):
        super().__init__(
            uvicorn.Config(
                app, http=PatientProtocol, ws="none", lifespan="on", log_level="error", access_log=False,
                server_header=False, timeout_keep_alive=KEEP_ALIVE_SECONDS, timeout_graceful_shutdown=SHUTDOWN_SECONDS,
                backlog=2048,
            )
        )  # fmt: skip
        self._on_listening = on_listening

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._on_listening()
