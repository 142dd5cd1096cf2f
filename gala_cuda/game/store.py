"""A game's database: every statement of SQL is here, and each method is one transaction.

SQLite and PostgreSQL alike. What a method has returned from is on the disk (``synchronous=FULL``), whatever happens
to the process then; what it raises from has not happened.
"""

import hashlib
import hmac
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict

from sqlalchemy import Connection, delete, func, insert, select, update

from . import names
from .database import StoreError, StoreFull
from .records import PLAY, OpenRound, Participant, Picture, Round, points_from_text
from .rounds import Conflict, Rounds
from .tables import admin, image, participant, recruit
from .tables import round_ as rounds_

__all__ = ["Conflict", "OpenRound", "Participant", "Picture", "Round", "Store", "StoreError", "StoreFull"]

ADMIN = "admin"  # what has checked an image where a person has decided
BOARD = 10  # names on the board
ADMIN_SECONDS = 30 * 86_400  # that an admin's token is good for


class Store(Rounds):
    """The database of a game: its images and players, the rounds that they play, and those that are finished."""

    # Images

    def add_images(self, pictures: Sequence[Picture]) -> None:
        """Makes the images of the study those of `pictures`; earlier ones stay with their rounds, excluded.

        Raises:
            StoreError: a file has changed since rounds were played on it.
        """
        with self.writing() as connection:
            self.lock(connection)
            known = {(row.kind, row.path): row for row in connection.execute(select(image))}
            played = set(connection.execute(select(rounds_.c.image).distinct()).scalars())
            for each in pictures:
                values = {name: value for name, value in asdict(each).items() if name != "id"}
                row = known.pop((each.kind, each.path), None)
                if row is None:
                    connection.execute(insert(image).values(values))
                    continue
                if row.digest != each.digest and row.id in played:
                    raise StoreError(
                        f"{each.path} has changed since rounds were played on it; expected the same file, or another "
                        "name for another image"
                    )
                connection.execute(update(image).where(image.c.id == row.id).values(values))
            for row in known.values():
                gone = {"excluded": "no longer in the study's folder"}
                connection.execute(update(image).where(image.c.id == row.id).values(gone))

    def images(self) -> list[Picture]:
        """All images, excluded ones too."""
        with self.reading() as connection:
            return [Picture(**row._mapping) for row in connection.execute(select(image).order_by(image.c.id))]

    def picture(self, number: int) -> Picture | None:
        """The image with id `number`."""
        with self.reading() as connection:
            row = connection.execute(select(image).where(image.c.id == number)).first()
        return None if row is None else Picture(**row._mapping)

    def exclude(self, number: int, reason: str) -> None:
        """Takes the image with id `number` out of the game; its rounds stay. Raises KeyError where there is none."""
        self._decide(number, reason)

    def include(self, number: int) -> None:
        """Has the image played, whatever excluded it. Raises KeyError where there is none."""
        self._decide(number, None)

    def _decide(self, number: int, reason: str | None) -> None:
        values = {"excluded": reason, "checked_by": ADMIN}
        with self.writing() as connection:
            if not connection.execute(update(image).where(image.c.id == number).values(values)).rowcount:
                raise KeyError(number)

    # Players

    def join(self, token_hash: str, consent_hash: str, recruit_id: str | None = None) -> str:
        """A new participant; the code. A recruiter's id is kept behind an HMAC alone."""
        with self.writing() as connection:
            number = None if recruit_id is None else self._recruit(connection, recruit_id)
            while True:
                code = names.code()
                if not connection.execute(select(participant.c.code).where(participant.c.code == code)).first():
                    break
            connection.execute(
                insert(participant).values(
                    code=code,
                    name=names.name(),
                    token_hash=token_hash,
                    consent_hash=consent_hash,
                    joined=time.time(),
                    recruit=number,
                )
            )
            return code

    def _recruit(self, connection: Connection, recruit_id: str) -> int:
        self.lock(connection)
        hashed = hmac.digest(self.secret, recruit_id.encode(), hashlib.sha256).hex()
        number = connection.execute(select(recruit.c.id).where(recruit.c.hashed == hashed)).scalar()
        if number is None:
            number = connection.execute(insert(recruit).values(hashed=hashed).returning(recruit.c.id)).scalar_one()
        return number

    def participant_of(self, token_hash: str) -> str | None:
        """The code of the participant with this session."""
        with self.reading() as connection:
            query = select(participant.c.code).where(participant.c.token_hash == token_hash)
            return connection.execute(query).scalar()

    def name_of(self, code: str) -> str | None:
        """The name by which the participant `code` is on the board."""
        with self.reading() as connection:
            return connection.execute(select(participant.c.name).where(participant.c.code == code)).scalar()

    def participants(self) -> list[Participant]:
        with self.reading() as connection:
            columns = [participant.c[name] for name in Participant.__dataclass_fields__]
            return [Participant(*row) for row in connection.execute(select(*columns).order_by(participant.c.joined))]

    def exclude_person(self, code: str, reason: str | None) -> None:
        """Has no round of a participant count, for `reason`; None has them count again.

        Raises KeyError where there is no such participant.
        """
        with self.writing() as connection:
            done = connection.execute(update(participant).where(participant.c.code == code).values(excluded=reason))
            if not done.rowcount:
                raise KeyError(code)

    def excluded(self) -> tuple[frozenset[str], frozenset[str]]:
        """(codes of participants, paths of images) whose rounds do not count."""
        people = select(participant.c.code).where(participant.c.excluded.is_not(None))
        images = select(image.c.path).where(image.c.excluded.is_not(None), image.c.kind == PLAY)
        with self.reading() as connection:
            return frozenset(connection.execute(people).scalars()), frozenset(connection.execute(images).scalars())

    def forget(self, code: str) -> bool:
        """Deletes a participant and all that is known of them; whether there was one."""
        with self.writing() as connection:
            self.lock(connection)
            number = connection.execute(select(participant.c.recruit).where(participant.c.code == code)).first()
            if number is None:
                return False
            connection.execute(delete(rounds_).where(rounds_.c.participant == code))
            connection.execute(delete(participant).where(participant.c.code == code))
            others = select(participant.c.code).where(participant.c.recruit == number.recruit)
            if number.recruit is not None and connection.execute(others).first() is None:
                connection.execute(delete(recruit).where(recruit.c.id == number.recruit))
            return True

    def total(self, code: str) -> float:
        """The sum of a participant's scores."""
        query = select(func.coalesce(func.sum(rounds_.c.score), 0.0)).where(rounds_.c.participant == code)
        with self.reading() as connection:
            return connection.execute(query).scalar_one()

    def board(self) -> list[tuple[str, float]]:
        """(name, sum of scores) of the best."""
        total = func.sum(rounds_.c.score).label("total")
        query = (
            select(participant.c.name, total).join_from(participant, rounds_).where(rounds_.c.finished.is_not(None))
            .group_by(participant.c.code, participant.c.name, participant.c.joined)
            .having(total > 0).order_by(total.desc(), participant.c.joined).limit(BOARD)
        )  # fmt: skip
        with self.reading() as connection:
            return [(row.name, row.total) for row in connection.execute(query)]

    def rounds(self, number: int | None = None) -> Iterator[Round]:
        """All finished rounds, or those of the image with id `number`, the earliest first."""
        columns = [image.c[name] for name in ("label", "kind", "width", "height")]
        own = ("id", "participant", "attempt", "started", "finished", "outcome", "recognised_n", "score", "points",
               "untimed", "pointer", "ratio", "screen_width", "screen_height")  # fmt: skip
        query = (
            select(*(rounds_.c[name] for name in own), image.c.path.label("image"), *columns)
            .join_from(rounds_, image).where(rounds_.c.finished.is_not(None)).order_by(rounds_.c.finished, rounds_.c.id)
        )  # fmt: skip
        if number is not None:
            query = query.where(rounds_.c.image == number)
        with self.reading() as connection:
            for row in connection.execution_options(yield_per=500).execute(query):
                yield Round(**{**row._mapping, "points": points_from_text(row.points)})

    # The admin

    def add_admin(self, token_hash: str, now: float) -> None:
        """Lets the admin in who has the token with this hash; old ones no more."""
        with self.writing() as connection:
            connection.execute(delete(admin).where(admin.c.created < now - ADMIN_SECONDS))
            connection.execute(insert(admin).values(token_hash=token_hash, created=now))

    def is_admin(self, token_hash: str, now: float) -> bool:
        query = select(admin.c.token_hash).where(
            admin.c.token_hash == token_hash, admin.c.created >= now - ADMIN_SECONDS
        )
        with self.reading() as connection:
            return connection.execute(query).first() is not None
