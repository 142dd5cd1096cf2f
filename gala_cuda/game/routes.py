"""The routes by which the page and scripts play."""

import contextlib
import hashlib
import json
import math
import time
from collections.abc import Callable
from typing import Any, TypeVar

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from ..data.errors import UnreadableError
from .access import SESSION_SECONDS, Refused, network_of, new_token, read_json, session_tokens, take_fields
from .partner import PartnerDown
from .records import OUTCOMES, POINTERS, PRACTICE, Device, OpenRound
from .rules import RULES, UNTIMED, Points, PointsError, check_points, score
from .session import Game, game_of, player, round_of, stored
from .view import NAMED

CLOCK_SLACK = 0.5  # seconds by which a player's clock may be ahead of the server's
RECRUIT_LENGTH = 128  # characters of a recruiter's id at most

T = TypeVar("T")


async def healthz(request: Request) -> Response:
    game = game_of(request)
    await stored(request, game.store.ping)
    if not game.partner.ready:
        raise PartnerDown("the partner is starting")
    return PlainTextResponse("ok\n")


async def study(request: Request) -> Response:
    """What the page shows before a player joins, and who has joined already."""
    game = game_of(request)
    answer: dict[str, Any] = {"title": game.study.title, "consent": game.study.consent}
    if session_tokens(request.headers, game.cookie):
        with contextlib.suppress(Refused):
            answer["participant"] = code = await player(request)
            answer["name"] = await stored(request, game.store.name_of, code)
            answer["total"] = await stored(request, game.store.total, code)
    return JSONResponse(answer)


async def join(request: Request) -> Response:
    game, address, now = game_of(request), network_of(request.client and request.client.host), time.monotonic()
    game.limits.joins.take(address, now)
    game.limits.all_joins.take("all", now)
    _, recruit = take_fields(
        await read_json(request),
        consent=(lambda value: value is True, "true: without consent nobody plays", True),
        recruit=(_is_recruit, f"a text of 1 to {RECRUIT_LENGTH} characters", False),
    )
    token, hashed = new_token()
    code = await stored(request, game.store.join, hashed, game.study.consent_hash, recruit)
    response = JSONResponse({"participant": code})
    response.set_cookie(
        game.cookie, token, max_age=SESSION_SECONDS, path="/", secure=game.secure, httponly=True, samesite="lax"
    )
    return response


def _is_recruit(value: Any) -> bool:
    return isinstance(value, str) and 0 < len(value) <= RECRUIT_LENGTH and value.isprintable()


async def start_round(request: Request) -> Response:
    game, code = game_of(request), await player(request)
    expected = "true for a round without a timer, or false"
    (untimed,) = take_fields(await read_json(request), untimed=(lambda value: isinstance(value, bool), expected, False))
    settings = game.study.settings
    played = await stored(
        request, game.store.start, code, game.clock(), untimed=bool(untimed), catch_every=settings.catch_every,
        repeats=settings.repeats,
    )  # fmt: skip
    if played is None:
        return Response(status_code=204)
    picture, rules = played.picture, UNTIMED if played.untimed else RULES
    answer = {"round": played.id, "label": picture.label, "width": picture.width, "height": picture.height}
    practice = {"practice": True} if picture.kind == PRACTICE else {}
    return JSONResponse({**answer, "rules": rules._asdict(), **practice})


async def image(request: Request) -> Response:
    game, played = game_of(request), await round_of(request)
    try:
        data = await run_in_threadpool(game.image, str(game.study.file(played.picture)))
    except (OSError, UnreadableError) as error:
        raise Refused(503, f"the image cannot be read: {getattr(error, 'strerror', None) or error}") from error
    return Response(data, media_type="image/jpeg", headers={"Cache-Control": "private, max-age=3600"})


async def guess(request: Request) -> Response:
    game, played = game_of(request), await round_of(request)
    game.limits.guesses.take(played.participant, time.monotonic())
    (given,) = take_fields(await read_json(request), points=_POINTS)
    points = _played(game, played, given)
    if not points:
        raise Refused(422, "points is []; expected at least one bubble")
    if played.finished is not None:
        raise Refused(409, "the round is over; expected guesses while it is played")
    picture = str(game.study.file(played.picture))
    answer = await game.partner.guess(played.id, picture, points)
    if answer is None:
        return Response(status_code=202)
    if answer.error:
        raise Refused(503, f"the partner cannot see the image: {answer.error}")
    recognised = played.picture.label in answer.names[: game.top]
    if recognised:
        played = await stored(request, _or_gone, game.store.recognise, played.id, played.participant, points)
    gained = score(played.recognised_points[-1][2]) if recognised and played.scores else 0.0
    found = {"n": len(points), "names": list(answer.names[:NAMED]), "recognised": recognised, "score": gained}
    return JSONResponse(found)


async def finish_round(request: Request) -> Response:
    game, played = game_of(request), await round_of(request)
    outcomes = ", ".join(OUTCOMES)
    outcome, given, device = take_fields(
        await read_json(request),
        outcome=(lambda value: isinstance(value, str) and value in OUTCOMES, f"one of {outcomes}", True),
        points=_POINTS,
        device=(lambda value: isinstance(value, dict), "an object", True),
    )
    points, made_on = _played(game, played, given), _device(device)
    body = json.dumps([outcome, points, made_on.__dict__], separators=(",", ":"))
    gained, total = await stored(
        request, _or_gone, game.store.finish, played.id, played.participant, outcome, points, made_on,
        hashlib.sha256(body.encode()).hexdigest(), game.clock(),
    )  # fmt: skip
    return JSONResponse({"score": gained, "total": total})


async def board(request: Request) -> Response:
    game = game_of(request)
    game.limits.address.take(network_of(request.client and request.client.host), time.monotonic())
    best = await stored(request, game.store.board)
    return JSONResponse([{"name": name, "score": total} for name, total in best])


async def forget_me(request: Request) -> Response:
    game, code = game_of(request), await player(request)
    await stored(request, game.store.forget, code)
    response = Response(status_code=204)
    response.delete_cookie(game.cookie, path="/", secure=game.secure, httponly=True, samesite="lax")
    return response


_POINTS = (lambda value: isinstance(value, list), "a list of [x16, y16, ms]", True)


def _played(game: Game, played: OpenRound, points: list[Any]) -> Points:
    """The bubbles as the rules allow them, not later than the server's clock. Raises PointsError."""
    rules = UNTIMED if played.untimed else RULES
    checked = check_points(points, played.picture.width, played.picture.height, rules)
    passed = game.clock() - played.started + CLOCK_SLACK
    if checked and checked[-1][2] > 1000 * passed:
        raise PointsError(
            f"points ends at {checked[-1][2]} ms; expected at most {max(0, math.floor(1000 * passed))}, for the round "
            "began no earlier"
        )
    return checked


def _device(given: dict[str, Any]) -> Device:
    side = (lambda value: type(value) is int and 0 < value <= 100_000, "a whole number of pixels", True)
    pointer, ratio, width, height = take_fields(
        given,
        pointer=(lambda value: isinstance(value, str) and value in POINTERS, f"one of {', '.join(POINTERS)}", True),
        ratio=(lambda value: type(value) in (int, float) and 0 < value <= 100, "a number from 0 to 100", True),
        width=side,
        height=side,
    )
    return Device(pointer, float(ratio), width, height)


def _or_gone(function: Callable[..., T], *args: Any) -> T:
    """What the store's `function` returns; a round that was deleted meanwhile is not there."""
    try:
        return function(*args)
    except KeyError as error:
        raise Refused(404, "there is no such round any more") from error


ROUTES = [
    Route("/healthz", healthz),
    Route("/api/study", study),
    Route("/api/join", join, methods=["POST"]),
    Route("/api/rounds", start_round, methods=["POST"]),
    Route("/api/rounds/{id}/image", image),
    Route("/api/rounds/{id}/guess", guess, methods=["POST"]),
    Route("/api/rounds/{id}", finish_round, methods=["PUT"]),
    Route("/api/board", board),
    Route("/api/me", forget_me, methods=["DELETE"]),
]
