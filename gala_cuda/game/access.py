"""Who may ask the server what: sessions, origins, sizes of requests, and how often."""

import hashlib
import ipaddress
import json
import reprlib
import secrets
from collections import OrderedDict
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import anyio
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

MAX_BODY = 32 * 1024  # bytes
BODY_SECONDS = 10  # for a body to arrive
SESSION_SECONDS = 365 * 86_400
_UNSAFE = ("POST", "PUT", "PATCH", "DELETE")
_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' blob: data:; object-src 'none'; base-uri 'none'; "
    "frame-ancestors 'none'; form-action 'self'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}


class Refused(Exception):  # noqa: N818 - an answer, not a failure
    """A request that is answered with `status` and a message: what was given and what is expected."""

    def __init__(self, status: int, message: str, headers: dict[str, str] | None = None):
        super().__init__(message)
        self.status, self.headers = status, headers

    def response(self) -> Response:
        return JSONResponse({"error": str(self)}, self.status, self.headers)


class Buckets:
    """Token buckets by key: each has `burst` requests at once and `rate` more a second. The oldest are forgotten."""

    def __init__(self, rate: float, burst: float, most: int = 10_000):
        self.rate, self.burst, self.most = rate, burst, most
        self._left = OrderedDict[str, tuple[float, float]]()  # tokens, and when they were counted

    def take(self, key: str, now: float) -> None:
        """Raises Refused where nothing is left for `key`; `now` is in seconds of a monotonic clock."""
        tokens, before = self._left.pop(key, (self.burst, now))
        tokens = min(self.burst, tokens + self.rate * (now - before))
        self._left[key] = (max(tokens - 1, 0) if tokens >= 1 else tokens, now)
        if len(self._left) > self.most:
            self._left.popitem(last=False)
        if tokens < 1:
            wait = str(max(1, round((1 - tokens) / self.rate)))
            expected = f"at most {self.burst:g} requests at once and {self.rate:g} a second"
            raise Refused(429, f"too many requests; expected {expected}", {"Retry-After": wait})

    def __len__(self) -> int:
        return len(self._left)


def new_token() -> tuple[str, str]:
    """(a token of 256 bits, its hash, which is what is kept of it)."""
    token = secrets.token_urlsafe(32)
    return token, hash_token(token)


def hash_token(token: str) -> str:
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).hexdigest()


def session_tokens(headers: Headers, name: str) -> list[str]:
    """All values of the cookie `name`: who can plant cookies can plant another of that name before the real one."""
    pairs = (each.partition("=") for line in headers.getlist("cookie") for each in line.split(";"))
    return [value.strip() for key, _, value in pairs if key.strip() == name][:4]


def network_of(address: str | None) -> str:
    """What stands for a client's `address` where requests are counted: of IPv6 the network, which one client has."""
    try:
        parsed = ipaddress.ip_address(address or "")
    except ValueError:
        return "unknown"
    return str(parsed) if parsed.version == 4 else str(ipaddress.ip_network((parsed, 64), strict=False))


async def read_json(request: Request) -> dict[str, Any]:
    """The JSON object in a request's body.

    Raises:
        Refused: it is too large, too slow, no JSON, no object, or holds NaN or infinite numbers.
    """
    kind = request.headers.get("content-type", "none").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise Refused(415, f"Content-Type is {reprlib.repr(kind)}; expected application/json")
    body = await _read_body(request)
    try:
        value = json.loads(body.decode("utf-8"), parse_constant=_no_constant, object_pairs_hook=_once)
    except RecursionError as error:
        raise Refused(400, "the body is nested too deeply; expected a JSON object") from error
    except ValueError as error:
        raise Refused(400, f"the body is no JSON: {_printable(str(error))}") from error
    if not isinstance(value, dict):
        raise Refused(400, f"the body is {reprlib.repr(value)}; expected a JSON object")
    return value


async def _read_body(request: Request) -> bytes:
    given = request.headers.get("content-length", "0")
    if given.isdecimal() and len(given) < 20 and int(given) > MAX_BODY:
        raise Refused(413, f"the body has {given} bytes; expected at most {MAX_BODY}", {"Connection": "close"})
    body = bytearray()
    try:
        with anyio.fail_after(BODY_SECONDS):
            async for chunk in request.stream():
                body += chunk
                if len(body) > MAX_BODY:
                    message = f"the body has more than {MAX_BODY} bytes; expected at most {MAX_BODY}"
                    raise Refused(413, message, {"Connection": "close"})
    except TimeoutError as error:
        message = f"the body has not arrived within {BODY_SECONDS} s"
        raise Refused(408, message, {"Connection": "close"}) from error
    except ClientDisconnect as error:
        raise Refused(400, "the client has gone away") from error
    return bytes(body)


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no number; expected finite ones")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a field is there twice; expected each once")
    return found


def _printable(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()[:200]


def take_fields(body: dict[str, Any], **checks: tuple[Callable[[Any], bool], str, bool]) -> list[Any]:
    """The values of a body's fields, None for one that is absent; each field has (check, what is expected, required).

    Raises:
        Refused: a field is unknown, missing, or not as expected.
    """
    if unknown := [name for name in body if name not in checks]:
        raise Refused(400, f"the body has the field {reprlib.repr(unknown[0])}; expected {_listed(list(checks))}")
    for name, (check, expected, required) in checks.items():
        if name not in body:
            if required:
                raise Refused(400, f"the body has no {name}; expected {expected}")
        elif not check(body[name]):
            raise Refused(400, f"{name} is {reprlib.repr(body[name])}; expected {expected}")
    return [body.get(name) for name in checks]


def _listed(names: list[str]) -> str:
    return ", ".join(names) if names else "none"


class Guard:
    """Middleware: refuses requests that another site has a browser send, and adds headers that bind the browser.

    Args:
        public_url: the address that players open, where it is not the one that this server is asked by.
    """

    def __init__(self, app: ASGIApp, public_url: str | None = None):
        self.app, self.public = app, None if public_url is None else origin_of(public_url)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
                headers.setdefault("Cache-Control", "no-store")
            await send(message)

        problem = self._problem(scope) if scope["method"] in _UNSAFE else None
        if problem:
            return await Refused(403, problem).response()(scope, receive, send_with_headers)
        return await self.app(scope, receive, send_with_headers)

    def _problem(self, scope: Scope) -> str | None:
        """Why a request that changes something comes from another site, by what browsers say of it; or None."""
        headers = Headers(scope=scope)
        site = headers.get("sec-fetch-site")
        if site is not None:
            expected = "expected same-origin: a page of this server"
            return None if site == "same-origin" else f"Sec-Fetch-Site is {reprlib.repr(site)}; {expected}"
        origin = headers.get("origin")
        own = self.public or f"{scope.get('scheme', 'http')}://{headers.get('host', '')}".lower()
        if origin is None or origin.lower() == own:
            return None
        return f"Origin is {reprlib.repr(origin)}; expected {own} (--public-url says which address players open)"


def origin_of(url: str) -> str:
    """Scheme, host and port of `url`, as browsers write an origin. Raises ValueError where it has none."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"{url!r} was given; expected an address such as https://game.example.org")
    usual = {"http": 80, "https": 443}[parts.scheme]
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return f"{parts.scheme}://{host}" + (f":{parts.port}" if parts.port not in (None, usual) else "")
