"""A PostgreSQL server of the tests' own, where its programs are installed: Debian's package postgresql has them."""

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import psycopg

_FOLDERS = ("/usr/lib/postgresql/*/bin", "/usr/pgsql-*/bin", "/opt/homebrew/opt/postgresql*/bin")


def programs() -> Path | None:
    """The folder with initdb and postgres."""
    candidates = [Path(found).parent for found in [shutil.which("initdb")] if found]
    for pattern in _FOLDERS:
        candidates += sorted(Path("/").glob(pattern.lstrip("/")), reverse=True)
    return next((each for each in candidates if (each / "initdb").exists() and (each / "postgres").exists()), None)


def why_no_postgres() -> str | None:
    """Why no server can be started; None where one can."""
    if programs() is None:
        return "PostgreSQL's initdb and postgres are not installed (Debian: apt install postgresql)"
    if os.geteuid() == 0 and user() is None:
        return "PostgreSQL does not run as root, and there is no user postgres or nobody"
    return None


def user() -> str | None:
    """Who runs the server for root, as whom it refuses to run."""
    known = {each.pw_name for each in pwd.getpwall()}
    return next((name for name in ("postgres", "nobody") if name in known), None)


@contextmanager
def postgres_server() -> Iterator[str]:
    """The address of a running server, without a database's name: "postgresql+psycopg://game@127.0.0.1:PORT"."""
    folder, found = Path(tempfile.mkdtemp(prefix="game-postgres-")), programs()
    assert found is not None
    become: dict[str, str] = {}
    if os.geteuid() == 0:
        become = {"user": user() or ""}
        shutil.chown(folder, **become)
    port = _free_port()
    options = dict[str, object](cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **become)
    environment = {"PATH": os.environ["PATH"], "LC_ALL": "C"}

    def run(command: Sequence[str | Path]) -> None:
        done = subprocess.run(command, env=environment, text=True, check=False, **options)  # type: ignore[call-overload]
        assert done.returncode == 0, done.stdout

    data = folder / "data"
    run(
        [found / "initdb", "--pgdata", data, "--username", "game", "--auth", "trust", "--encoding", "UTF8", "--no-sync"]
    )
    settings = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={folder}"
    run([found / "pg_ctl", "--pgdata", data, "--options", settings, "--log", folder / "log", "--wait", "start"])
    try:
        yield f"postgresql+psycopg://game@127.0.0.1:{port}"
    finally:
        run([found / "pg_ctl", "--pgdata", data, "--mode", "immediate", "--wait", "stop"])
        shutil.rmtree(folder)


def new_database(server: str, name: str) -> str:
    """The address of a new, empty database called `name` on `server`."""
    with psycopg.connect(f"{server.replace('+psycopg', '')}/postgres", autocommit=True) as connection:
        connection.execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)'.encode())
        connection.execute(f'CREATE DATABASE "{name}"'.encode())
    return f"{server}/{name}"


def _free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]
