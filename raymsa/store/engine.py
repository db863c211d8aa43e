"""Opening the store. Everything that differs between SQLite and PostgreSQL is in this file, but for `upsert`.

SQLite with many processes loses writes in its default mode (17 to 59 % measured with 16 writers: "database is locked").
WAL, BEGIN IMMEDIATE for every write and a busy time-out of 30 s lost none. Setting WAL while others open the file
fails in spite of the time-out, so a new store is made under another name, under a lock, and renamed when it is whole.
A commit is handed to the kernel and not waited for (synchronous=NORMAL): a process that dies loses nothing, a machine
that loses power may lose the last half minute, never the file. What is lost was of runs that stopped with the machine.
"""

from __future__ import annotations

import fcntl
import math
import random
import re
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Connection, Engine, create_engine, event, inspect, make_url, text
from sqlalchemy.exc import ArgumentError, DBAPIError, OperationalError, SQLAlchemyError, StatementError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from raymsa.errors import NotFound, StoreAway, StoreError
from raymsa.store import migrations
from raymsa.store.filesystem import network_mount

BUSY_S = 30
TURN_EVERY_S = 0.002  # between two tries to be SQLite's one writer; its own waits grow to 0.1 s, and some starve
CLOCK_EVERY_S = 10.0
# A PostgreSQL server whose machine has vanished: without these, a connection to it hangs for a quarter of an hour.
GIVE_UP = {
    "connect_timeout": 10,
    "tcp_user_timeout": 30_000,  # ms
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 4,
}
MIGRATION_LOCK = 0x7261796D7361  # "raymsa": one advisory lock for all migrations of a PostgreSQL database

# What a person can do about a driver's message; the first that matches is added to it.
HINTS = {
    "not a database": "this file is something else; name another with --store",
    "malformed": "restore it from a copy, or name another with --store",
    "unable to open": "check that the file and its folder may be read and written",
    "readonly": "check that the file and its folder may be written",
    "is full": "free some disk space and try again",
    "deadlock": "try again",
    "disk I/O": "check the disk's space and health",
    "locked": f"another process kept it busy for {BUSY_S} s",
    "File exists": "a file is where a folder should be",
    "starting up": "try again in a moment",
    "does not exist": "make it first: createdb NAME",
    "connection": "check that the server runs and the URL is right",
}

# Words of an error that may be gone in a minute: the server is down or starting, the file is locked, the disk is full.
AWAY = ("connect", "starting up", "shutting down", "terminat", "locked", "deadlock", "is full", "disk I/O", "timeout")
NEVER = ("authentication", "does not exist", "pg_hba")  # and of one that will not


class Store:
    """An open experiment store; `str()` of it is its URL without the password."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._writer = engine.execution_options(raymsa_write=True)
        self._clock = (-math.inf, 0.0)  # when a server was last asked, and how far its clock is ahead of our boot

    @classmethod
    def open(cls, url: str, create: bool = True) -> Store:
        """The store at `url` (or at a file's path), made or migrated when it must be.

        Raises NotFound when there is none and `create` is false, StoreError when it cannot be used.
        """
        parsed = _parse(url)
        try:
            with _in_one_line(parsed):
                return cls(_open_sqlite(parsed, create) if _is_sqlite(parsed) else _open_postgresql(parsed, create))
        except OSError as error:  # from making the folder and the file
            raise StoreError(_one_line(parsed, f"{error.strerror}: {error.filename}")) from error

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """One write transaction: committed at the end, rolled back by an exception. Raises StoreError."""
        with _in_one_line(self.engine.url), self._writer.begin() as connection:
            yield connection

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """One read transaction; on SQLite it sees one moment of the store. Raises StoreError."""
        with _in_one_line(self.engine.url), self.engine.begin() as connection:
            yield connection

    @contextmanager
    def snapshot(self) -> Iterator[Connection]:
        """One long read transaction that sees one moment of the store, however much is written. Raises StoreError."""
        postgresql = self.engine.dialect.name == "postgresql"  # SQLite's reads are so by themselves
        engine = self.engine.execution_options(isolation_level="REPEATABLE READ") if postgresql else self.engine
        with _in_one_line(self.engine.url), engine.begin() as connection:
            yield connection

    def now(self, connection: Connection) -> float:
        """UNIX seconds by the store's own clock, so that a driver whose clock is wrong takes nobody's lease away."""
        if connection.dialect.name == "postgresql":
            return self._server_time(connection)
        return time.time()  # a file: everybody who opens it shares this machine's clock

    def _server_time(self, connection: Connection) -> float:
        """The server's clock, asked now and then: in between, a clock that nobody sets goes on from there."""
        since_boot = time.clock_gettime(time.CLOCK_BOOTTIME)  # counts while the machine sleeps
        asked_at, ahead = self._clock
        if since_boot - asked_at > CLOCK_EVERY_S:
            said = connection.execute(text("SELECT extract(epoch FROM clock_timestamp())")).scalar_one()
            since_boot = time.clock_gettime(time.CLOCK_BOOTTIME)
            self._clock = asked_at, ahead = since_boot, float(said) - since_boot
        return since_boot + ahead

    def secret_url(self) -> str:
        """The whole URL, with its password: for a process of our own, never for people."""
        return self.engine.url.render_as_string(hide_password=False)

    def clock(self) -> float:
        """The same in a transaction of its own."""
        with self.read() as connection:
            return self.now(connection)

    def only_read(self) -> None:
        """From now on the database itself refuses whatever this process would write."""
        event.listen(self.engine, "connect", _refuse_writes)
        self.engine.dispose()  # those that are open already

    def close(self) -> None:
        """Close the connections."""
        self.engine.dispose()

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __str__(self) -> str:
        return _shown(self.engine.url)


def _parse(url: str) -> URL:
    """The URL with the driver we use. A text without `://` is the path of an SQLite file."""
    try:
        parsed = make_url(url if "://" in url else f"sqlite:///{Path(url).expanduser().absolute()}")
    except (ArgumentError, ValueError):  # ValueError: a port that is no number
        masked = re.sub(r"//.*@", "//***@", url)
        raise StoreError(f"{masked} is not a database URL; write sqlite:////path/store.db") from None
    if parsed.get_backend_name() in ("postgres", "postgresql"):
        return parsed.set(drivername="postgresql+psycopg")
    if not _is_sqlite(parsed):
        raise StoreError(f"{_shown(parsed)}: a store is sqlite:////path/store.db or postgresql://user@host/name")
    if not parsed.database or parsed.database.startswith((":memory:", "file:")):
        raise StoreError(f"{_shown(parsed)}: several processes share a store, so name a file: sqlite:////path/store.db")
    return parsed


def shown(url: str) -> str:
    """A store's URL as it may be printed. Raises StoreError."""
    return _shown(_parse(url))


def _is_sqlite(url: URL) -> bool:
    return url.get_backend_name() == "sqlite"


def _shown(url: URL) -> str:
    """What may be printed: no password, and no query, which may hold one too."""
    return url.set(query={}).render_as_string(hide_password=True)


@contextmanager
def _in_one_line(url: URL) -> Iterator[None]:
    """Turns what databases and drivers raise into a StoreError of one line that names the store."""
    try:
        yield
    except StatementError as error:  # from the driver, or a value that cannot be stored, such as NaN in JSON
        raise _kind(error)(_one_line(url, str(error.orig))) from error
    except SQLAlchemyError as error:
        kind = StoreAway if isinstance(error, PoolTimeout) else StoreError  # all connections wait for the store
        raise kind(_one_line(url, str(error))) from error


def _kind(error: StatementError) -> type[StoreError]:
    """Whether waiting may help."""
    if isinstance(error, DBAPIError) and error.connection_invalidated:
        return StoreAway
    words = str(error.orig)
    away = isinstance(error, OperationalError) and any(part in words for part in AWAY)
    return StoreAway if away and not any(part in words for part in NEVER) else StoreError


def _one_line(url: URL, reason: str) -> str:
    line = " ".join(reason.split()) or "no reason given"
    if url.password:
        line = line.replace(str(url.password), "***")
    hint = next((f" ({hint})" for part, hint in HINTS.items() if part in line), "")
    return f"store {_shown(url)}: {line}{hint}"


def _open_sqlite(url: URL, create: bool) -> Engine:
    path = Path(str(url.database)).absolute()
    _refuse_network(url, path)
    if _is_absent(path):
        if not create:
            raise NotFound(f"no store at {path}; nothing was submitted yet")
        path.parent.mkdir(parents=True, exist_ok=True)
        with _lock(path):
            if _is_absent(path):  # else somebody made it while we waited
                _make_sqlite(url, path)
    engine = _sqlite_engine(url)
    with engine.begin() as connection:
        found = migrations.version(connection)
        foreign = found is None and inspect(connection).get_table_names()
    if foreign:
        raise StoreError(_one_line(url, "it holds other tables than raymsa's; name another with --store"))
    if found != migrations.HEAD:
        with _lock(path):
            _migrate(engine)
    return engine


def _refuse_network(url: URL, path: Path) -> None:
    mount = network_mount(path)
    if mount is not None:
        raise StoreError(
            _one_line(
                url,
                f"{mount.point} is a network file system ({mount.kind}), where SQLite loses data; "
                "name a file on a local disk, or a PostgreSQL database, with --store or RAYMSA_STORE",
            )
        )


def _is_absent(path: Path) -> bool:
    return not path.exists() or (path.is_file() and path.stat().st_size == 0)


def _make_sqlite(url: URL, path: Path) -> None:
    """Make the file under another name and rename it, so that a store that is there is whole and in WAL mode."""
    new = path.with_name(f"{path.name}.new")
    for leftover in (new, *(new.with_name(f"{new.name}-{end}") for end in ("wal", "shm", "journal"))):
        leftover.unlink(missing_ok=True)  # of a process that was killed here
    engine = _sqlite_engine(url.set(database=str(new)))
    connection = engine.raw_connection()
    connection.cursor().execute("PRAGMA journal_mode=WAL")  # not possible inside a transaction; lasts in the file
    connection.close()
    _migrate(engine)
    engine.dispose()  # the last connection to close moves the WAL into the file
    new.rename(path)


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    """Held by one process at a time. A file of its own: closing any handle of the store drops SQLite's own locks."""
    with path.with_name(f"{path.name}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _sqlite_engine(url: URL) -> Engine:
    engine = create_engine(url, connect_args={"timeout": BUSY_S})
    event.listen(engine, "connect", _prepare_sqlite_connection)
    event.listen(engine, "begin", _begin_sqlite)
    return engine


def _prepare_sqlite_connection(connection: Any, _: object) -> None:
    connection.isolation_level = None  # python's sqlite3 would send its own deferred BEGIN
    connection.execute("PRAGMA foreign_keys=ON")
    connection.execute("PRAGMA synchronous=NORMAL")


def _refuse_writes(connection: Any, _: object) -> None:
    if isinstance(connection, sqlite3.Connection):
        connection.execute("PRAGMA query_only=ON")
    else:
        connection.read_only = True


def _begin_sqlite(connection: Connection) -> None:
    # A deferred transaction that writes after reading fails at once when another has written, whatever the time-out.
    if not connection.get_execution_options().get("raymsa_write"):
        connection.exec_driver_sql("BEGIN")
        return
    raw: Any = connection.connection.dbapi_connection
    until = time.monotonic() + BUSY_S
    raw.execute("PRAGMA busy_timeout=0")
    try:
        while _another_writes(raw) and time.monotonic() < until:
            time.sleep(random.uniform(0.5, 1.5) * TURN_EVERY_S)  # noqa: S311 (no secret)
        if not raw.in_transaction:
            connection.exec_driver_sql("BEGIN IMMEDIATE")  # to say what is wrong
    finally:
        raw.execute(f"PRAGMA busy_timeout={BUSY_S * 1000}")


def _another_writes(raw: Any) -> bool:
    try:
        raw.execute("BEGIN IMMEDIATE")
    except sqlite3.Error as error:
        return "locked" in str(error)
    return False


def _open_postgresql(url: URL, create: bool) -> Engine:
    engine = _postgresql_engine(url)
    with engine.begin() as connection:
        found = migrations.version(connection)
    if found is None and not create:
        raise NotFound(f"no store at {_shown(url)}; nothing was submitted yet")
    if found != migrations.HEAD:
        _migrate(engine)
    return engine


def _postgresql_engine(url: URL) -> Engine:
    give_up = {name: value for name, value in GIVE_UP.items() if name not in url.query}
    try:  # pre-ping: a server that was restarted costs nobody a transaction
        return create_engine(url, connect_args=give_up, pool_pre_ping=True, use_native_hstore=False)
    except ImportError:
        raise StoreError(_one_line(url, "PostgreSQL needs a driver: pip install 'raymsa[postgres]'")) from None


def _migrate(engine: Engine) -> None:
    with engine.execution_options(raymsa_write=True).begin() as connection:
        if engine.dialect.name == "postgresql":
            connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": MIGRATION_LOCK})
        found = migrations.version(connection)
        if found is not None and found not in migrations.known():
            raise StoreError(
                _one_line(
                    engine.url,
                    f"it has version {found} and this raymsa knows versions up to {migrations.HEAD}: "
                    "upgrade raymsa (pip install -U raymsa), or name another store with --store",
                )
            )
        if found != migrations.HEAD:
            migrations.upgrade(connection)
