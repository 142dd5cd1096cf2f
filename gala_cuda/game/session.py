"""What a server plays, and who asks it: the sessions of players and their rounds."""

import functools
import io
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import anyio
from PIL import Image
from starlette.requests import Request

from ..data.picture_decoding import decode_picture
from ..data.picture_files import read_file
from .access import Buckets, Refused, hash_token, network_of, session_tokens
from .partner import Partner
from .records import OpenRound
from .store import Store
from .study import Study

JPEG_QUALITY = 95
_KEPT = 64  # encoded images
_CONNECTIONS = 8  # to the database, each in a thread

T = TypeVar("T")


@dataclass
class Limits:
    """How often who may ask: sessions by themselves, so that a classroom behind one address can play.

    Attributes:
        session: all requests of a session.
        guesses: of a session; a player makes two a second.
        address: requests without a session, by address.
        joins, all_joins: by address, and of everybody.
    """

    session: Buckets = field(default_factory=lambda: Buckets(20, 100))
    guesses: Buckets = field(default_factory=lambda: Buckets(4, 20))
    address: Buckets = field(default_factory=lambda: Buckets(50, 500))
    joins: Buckets = field(default_factory=lambda: Buckets(1, 100))
    all_joins: Buckets = field(default_factory=lambda: Buckets(5, 500))


@dataclass
class Game:
    """What a server plays.

    Attributes:
        top: how many of the partner's names may hold the true one.
        public_url: the address that players open, where it is another than the server's.
        clock: seconds of UTC.
    """

    study: Study
    store: Store
    partner: Partner
    top: int
    public_url: str | None = None
    limits: Limits = field(default_factory=Limits)
    clock: Callable[[], float] = time.time

    def __post_init__(self) -> None:
        self.secure = (self.public_url or "").startswith("https:")
        # A browser takes a cookie with the prefix from this host over HTTPS alone, so that none can be planted.
        self.cookie = "__Host-clickme" if self.secure else "clickme"
        self.database = anyio.CapacityLimiter(_CONNECTIONS)
        self.image = functools.lru_cache(_KEPT)(_encode)


def _encode(path: str) -> bytes:
    """The picture as JPEG, without what its file says besides."""
    encoded = io.BytesIO()
    picture = decode_picture(read_file(path))
    Image.frombytes("RGB", picture.size, picture.tobytes()).save(encoded, "JPEG", quality=JPEG_QUALITY, subsampling=0)
    return encoded.getvalue()


def game_of(request: Request) -> Game:
    return request.app.state.game


async def stored(request: Request, function: Callable[..., T], *args: Any, **options: Any) -> T:
    """What a method of the store returns, which waits for the disk in a thread."""
    limiter = game_of(request).database
    return await anyio.to_thread.run_sync(functools.partial(function, *args, **options), limiter=limiter)


async def player(request: Request) -> str:
    """The code of the participant whose session the request has. Raises Refused."""
    game = game_of(request)
    tokens = session_tokens(request.headers, game.cookie)
    codes = {await stored(request, game.store.participant_of, hash_token(token)) for token in tokens} - {None}
    if len(codes) != 1:
        game.limits.address.take(network_of(request.client and request.client.host), time.monotonic())
        raise Refused(401, "there is no session; expected the cookie that POST api/join gives")
    (code,) = codes
    assert code is not None
    game.limits.session.take(code, time.monotonic())
    return code


async def round_of(request: Request) -> OpenRound:
    code = await player(request)
    number = request.path_params["id"]
    found = await stored(request, game_of(request).store.open_round, number, code) if _is_id(number) else None
    if found is None:
        raise Refused(404, "there is no such round; expected the id of one of your own, as POST api/rounds gives it")
    return found


def _is_id(text: str) -> bool:
    return len(text) <= 32 and text.isascii() and text.replace("-", "").replace("_", "").isalnum()
