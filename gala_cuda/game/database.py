"""How a game's database is opened, on SQLite and on PostgreSQL, and what its transactions raise."""

import secrets
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event, insert, inspect, select, text, true
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from ..errors import GalaError
from .tables import SCHEMA, metadata, study

FILE = "game.sqlite"  # in the study's folder
LOCK_WAIT = 10  # seconds that a transaction waits for another one
CONNECTIONS = 8
_LOCK = 0x434C4943  # of PostgreSQL's advisory locks: one assignment, or one change of the tables, at a time
_FULL = "53100"  # PostgreSQL's code for a full disk
# Others of its codes: connections lost or refused, too many of them, shut down, starting, waited for a lock too long,
# no such user or database, no right to write.
_UNAVAILABLE = ("08000", "08003", "08006", "53300", "57P01", "57P02", "57P03", "55P03", "57014", "28P01", "28000",
                "3D000", "25006", "42501")  # fmt: skip
_EXPECTED = "sqlite:///FILE or postgresql+psycopg://USER@HOST/NAME"


class StoreError(GalaError):
    """The database cannot be opened, is of another version, or does not answer."""


class StoreFull(StoreError):  # noqa: N818 - what it says is more than that there is an error
    """There is no room on the disk of the database; nothing of what was being written is there."""


class Database:
    """The database at `url`.

    Args:
        url: "sqlite:///FILE" or "postgresql+psycopg://USER@HOST/NAME".
        create: make file and tables where there are none.

    Raises:
        StoreError: it cannot be opened, is of another version, holds other tables, or none and ``create`` is False.
    """

    def __init__(self, url: str, create: bool = True):
        self._engine = open_engine(url)
        self.where = self._engine.url.render_as_string(hide_password=True)
        file = self._engine.url.database if self._engine.dialect.name == "sqlite" else None
        if file and not create and not Path(file).exists():
            raise StoreError(f"there is no database {file}; expected one that `gala-cuda clickme serve` has made")
        with self.writing() as connection:
            self.secret = self._prepare(connection, create)

    def close(self) -> None:
        self._engine.dispose()

    def _prepare(self, connection: Connection, create: bool) -> bytes:
        """Makes the tables, or checks their version; the secret of the study."""
        self.lock(connection)
        present = set(inspect(connection).get_table_names())
        if not present & metadata.tables.keys():
            if not create:
                raise StoreError(f"{self.where} has no game; expected one that `gala-cuda clickme serve` has made")
            metadata.create_all(connection)
            made = {"schema": SCHEMA, "secret": secrets.token_bytes(32), "created": time.time()}
            connection.execute(insert(study).values(made))
        columns = {each["name"] for each in inspect(connection).get_columns("study")} if "study" in present else None
        if present and (columns is None or "schema" not in columns):
            raise StoreError(f"{self.where} holds other tables than a game's; expected an empty database, or a game's")
        row = connection.execute(select(study)).one()
        if row.schema != SCHEMA:
            raise StoreError(
                f"{self.where} is a database of version {row.schema}; expected version {SCHEMA}: take the gala_cuda "
                "that wrote it, or another --database"
            )
        return row.secret

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        with store_errors(self.where), self._engine.connect() as connection:
            connection = connection.execution_options(writes=True)
            with connection.begin():
                yield connection

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        with store_errors(self.where), self._engine.connect() as connection, connection.begin():
            yield connection

    def lock(self, connection: Connection) -> None:
        """Until the transaction's end no other one passes here. SQLite has one writer anyway."""
        if self._engine.dialect.name == "postgresql":
            connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK})

    def ping(self) -> None:
        """Raises StoreError where the database does not answer."""
        with self.reading() as connection:
            connection.execute(select(true())).one()


@contextmanager
def store_errors(where: str) -> Iterator[None]:
    """What the database `where` raises because of its disk, lock or connection, as StoreError."""
    try:
        yield
    except PoolTimeout as error:
        raise StoreError(f"{where} does not answer: all {CONNECTIONS} connections are busy") from error
    except DBAPIError as error:
        # SQLite tells of a full disk by this text, and of one that is full for its shared memory by the other.
        if getattr(error.orig, "sqlstate", None) == _FULL or "disk is full" in str(error.orig):
            raise StoreFull(f"{where} has no room left: {error.orig}") from error
        if isinstance(error.orig, sqlite3.DatabaseError) and not isinstance(
            error.orig, sqlite3.IntegrityError | sqlite3.ProgrammingError
        ):
            raise StoreError(f"{where} cannot be used: {error.orig}") from error
        if error.connection_invalidated or getattr(error.orig, "sqlstate", None) in (None, *_UNAVAILABLE):
            raise StoreError(f"{where} cannot be used: {str(error.orig).strip()}") from error
        raise


def database_of(study: Path) -> str:
    """The URL of a study's database where no other is given."""
    return f"sqlite:///{study / FILE}"


def open_engine(url: str) -> Engine:
    """The database at `url`, for transactions that begin by ``begin_write`` where they write.

    Raises:
        StoreError: the URL is none, is of another kind of database, or the driver is not installed.
    """
    try:
        parsed = make_url(url)
        if parsed.get_backend_name() not in ("sqlite", "postgresql"):
            raise StoreError(f"{_shown(url)} is a database of another kind; expected {_EXPECTED}")
        if parsed.get_backend_name() == "sqlite":
            engine = create_engine(parsed, pool_size=CONNECTIONS, max_overflow=0, connect_args={"timeout": LOCK_WAIT})
            event.listen(engine, "connect", _prepare_sqlite)
            event.listen(engine, "begin", _begin_sqlite)
            return engine
        options = f"-c lock_timeout={LOCK_WAIT}s -c synchronous_commit=on"
        return create_engine(
            parsed, pool_size=CONNECTIONS, max_overflow=0, pool_pre_ping=True,
            connect_args={"options": options, "connect_timeout": LOCK_WAIT, "client_encoding": "utf8"},
        )  # fmt: skip
    except (ArgumentError, NoSuchModuleError, ValueError) as error:
        raise StoreError(f"{_shown(url)} is no database's address; expected {_EXPECTED}") from error
    except ModuleNotFoundError as error:
        raise StoreError(f"{_shown(url)} needs {error.name}; pip install 'gala-cuda[postgres]'") from error


def _shown(url: str) -> str:
    """`url` without its password."""
    try:
        return make_url(url).render_as_string(hide_password=True)
    except (ArgumentError, ValueError):
        return repr(url.partition("@")[2] or url)


def _prepare_sqlite(connection: Any, _: Any) -> None:
    connection.isolation_level = None  # transactions are begun below, and not by the driver
    for setting in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
        connection.execute(f"PRAGMA {setting}")


def _begin_sqlite(connection: Any) -> None:
    """A transaction that writes takes the lock at once: one that had read before could not wait for it."""
    writes = connection.get_execution_options().get("writes", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")
