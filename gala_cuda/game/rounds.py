"""Rounds as they are played: which image comes next, what the partner recognised, and how a round ends."""

import hashlib
import secrets
from collections.abc import Collection

from sqlalchemy import Connection, Row, Select, and_, case, func, insert, or_, select, update

from .database import Database
from .records import (
    CATCH,
    PLAY,
    PRACTICE,
    RECOGNISED,
    TIMEOUT,
    Device,
    OpenRound,
    Picture,
    points_from_text,
    points_to_text,
)
from .rules import Points, score
from .tables import image, participant
from .tables import round_ as rounds_

CLAIM_SECONDS = 180  # an open round counts as a claim on its image for so long


class Conflict(Exception):  # noqa: N818 - an answer to a player, not a failure
    """What is asked for contradicts what the database holds; the message says what was given and what is expected."""


class Rounds(Database):
    """The part of a game's database that is written while people play."""

    def start(
        self, code: str, now: float, *, untimed: bool = False, catch_every: int = 10, repeats: bool = False
    ) -> OpenRound | None:
        """A new round of the participant `code`; None where nothing is left to play.

        Practice comes first. Then come images that the player has not seen, under no other code of the same recruiter's
        id either: first those that too few people have played, of them those with the fewest finished rounds and live
        claims.

        Args:
            now: seconds of UTC.
            catch_every: one of so many rounds is a catch trial, where there are any; 0 for none.
            repeats: begin again with images that the player has seen, once all have been; such rounds score 0.
        """
        with self.writing() as connection:
            self.lock(connection)
            seen = connection.execute(_seen_by(code)).all()
            picture = self._next(connection, code, now, seen, catch_every)
            attempt = 1
            if picture is None and repeats:
                picture, attempt = self._again(connection, seen)
            if picture is None:
                return None
            number = secrets.token_urlsafe(16)
            connection.execute(
                insert(rounds_).values(
                    id=number,
                    image=picture.id,
                    participant=code,
                    attempt=attempt,
                    untimed=untimed,
                    started=now,
                    expires=now + CLAIM_SECONDS,
                )
            )
            return OpenRound(number, code, picture, attempt, untimed, now, None, (), None)

    def _next(
        self, connection: Connection, code: str, now: float, seen: Collection[Row], catch_every: int
    ) -> Picture | None:
        unseen = select(image).where(image.c.excluded.is_(None), image.c.id.not_in([row.image for row in seen]))
        kinds = [PRACTICE, PLAY]
        if _is_catch(code, sum(row.kind != PRACTICE for row in seen), catch_every):
            kinds.insert(1, CATCH)
        for kind in kinds:
            query = unseen.where(image.c.kind == kind)
            query = _fewest(query, now) if kind == PLAY else query.order_by(image.c.path)
            row = connection.execute(query.limit(1)).first()
            if row is not None:
                return Picture(**row._mapping)
        return None

    def _again(self, connection: Connection, seen: Collection[Row]) -> tuple[Picture | None, int]:
        """(the image to play again, the number of the attempt)."""
        times = {row.image: row.attempt for row in sorted(seen, key=lambda row: row.attempt)}
        query = select(image).where(image.c.excluded.is_(None), image.c.kind == PLAY).order_by(func.random())
        rows = sorted(connection.execute(query), key=lambda row: times.get(row.id, 0))
        return (Picture(**rows[0]._mapping), times[rows[0].id] + 1) if rows else (None, 0)

    def open_round(self, number: str, code: str) -> OpenRound | None:
        """The participant's round with id `number`, finished or not; None where they have none."""
        with self.reading() as connection:
            row = connection.execute(_round(number, code)).first()
            return None if row is None else _open(row)

    def recognise(self, number: str, code: str, points: Points) -> OpenRound:
        """Notes that the partner recognised the image after `points`; the round, with the first such note.

        Raises:
            Conflict: the round is over.
            KeyError: the participant has no such round any more.
        """
        with self.writing() as connection:
            connection.execute(
                update(rounds_)
                .where(rounds_.c.id == number, rounds_.c.recognised_n.is_(None), rounds_.c.finished.is_(None))
                .values(recognised_n=len(points), recognised_points=points_to_text(points))
            )
            row = connection.execute(_round(number, code)).first()
            if row is None:
                raise KeyError(number)
            if row.recognised_n is None:
                raise Conflict("the round was over before the partner answered")
            return _open(row)

    def finish(
        self, number: str, code: str, outcome: str, points: Points, device: Device, body_hash: str, now: float
    ) -> tuple[float, float]:
        """Ends a round; (its score, the player's total). The same request again gets the same answer.

        A round that the partner recognised stays recognised, whatever `outcome` says.

        Raises:
            Conflict: it has ended with another request, or contradicts what the partner recognised.
            KeyError: the participant has no such round.
        """
        with self.writing() as connection:
            # The player's row is locked, so that two rounds that end at once both count in the total.
            lock = select(participant.c.code).where(participant.c.code == code).with_for_update()
            row = connection.execute(_round(number, code)).first() if connection.execute(lock).first() else None
            if row is None:
                raise KeyError(number)
            if row.finished is not None:
                if row.body_hash != body_hash:
                    raise Conflict("the round has been finished with another body; expected the same one")
                return row.score, row.total
            played = _open(row)
            _check_recognition(played, outcome, points)
            recognised = played.recognised_n is not None
            gained = score(played.recognised_points[-1][2]) if recognised and played.scores else 0.0
            before = select(func.coalesce(func.sum(rounds_.c.score), 0.0)).where(rounds_.c.participant == code)
            total = connection.execute(before).scalar_one() + gained
            connection.execute(
                update(rounds_)
                .where(rounds_.c.id == number)
                .values(
                    finished=now,
                    outcome=RECOGNISED if recognised else outcome,
                    points=points_to_text(points),
                    score=gained,
                    total=total,
                    body_hash=body_hash,
                    pointer=device.pointer,
                    ratio=device.ratio,
                    screen_width=device.width,
                    screen_height=device.height,
                )
            )
            return gained, total


def _check_recognition(played: OpenRound, outcome: str, points: Points) -> None:
    if played.recognised_n is None:
        if outcome == RECOGNISED:
            raise Conflict(
                "outcome is 'recognised', but the partner has not recognised the image in this round; expected "
                "'timeout', 'skip' or 'interrupted'"
            )
    elif points[: played.recognised_n] != played.recognised_points:
        raise Conflict(
            f"points are others than those after which the partner recognised the image; expected its first "
            f"{played.recognised_n} to be the same"
        )


def _seen_by(code: str) -> Select:
    """(image, kind, attempt) of all rounds of a person: of one code, or of all codes with its recruiter's id."""
    own = select(participant.c.recruit).where(participant.c.code == code).scalar_subquery()
    person = select(participant.c.code).where(or_(participant.c.code == code, participant.c.recruit == own))
    columns = (rounds_.c.image, image.c.kind, rounds_.c.attempt)
    return select(*columns).join_from(rounds_, image).where(rounds_.c.participant.in_(person))


def _fewest(query: Select, now: float) -> Select:
    """`query` of images, the most wanted first: by finished rounds and live claims, then by chance."""
    counts = and_(rounds_.c.outcome.in_((RECOGNISED, TIMEOUT)), rounds_.c.attempt == 1)
    live = or_(counts, and_(rounds_.c.finished.is_(None), rounds_.c.expires > now))
    count = func.count(case((live, rounds_.c.id)))
    query = query.outerjoin(rounds_, rounds_.c.image == image.c.id).group_by(image.c.id)
    return query.order_by(case((count < image.c.people, 0), else_=1), count, func.random())


def _is_catch(code: str, played: int, every: int) -> bool:
    """Whether a player's next round after `played` ones is a catch trial: one of `every`, at a place hard to guess."""
    if not every:
        return False
    block, place = divmod(played, every)
    return int(hashlib.sha256(f"{code} {block}".encode()).hexdigest(), 16) % every == place


def _round(number: str, code: str) -> Select:
    columns = (*rounds_.c, *(image.c[name].label(f"image_{name}") for name in Picture.__dataclass_fields__))
    return select(*columns).join_from(rounds_, image).where(rounds_.c.id == number, rounds_.c.participant == code)


def _open(row: Row) -> OpenRound:
    picture = Picture(*(row._mapping[f"image_{name}"] for name in Picture.__dataclass_fields__))
    return OpenRound(
        row.id, row.participant, picture, row.attempt, row.untimed, row.started, row.recognised_n,
        points_from_text(row.recognised_points), row.finished,
    )  # fmt: skip
