"""A PostgreSQL server for the tests: one of our own, in a temporary folder, from the binaries that Debian installs.

RAYMSA_TEST_POSTGRES names another server to test on. Tests that stop a server start one for themselves.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

from sqlalchemy import create_engine, make_url, text
from sqlalchemy.pool import NullPool

from tests.ports import free_port

GIVEN = os.environ.get("RAYMSA_TEST_POSTGRES")
DEBIAN = Path("/usr/lib/postgresql")
START_S = 60.0
USER = "raymsa"
SIGNALS = {"fast": signal.SIGINT, "immediate": signal.SIGQUIT}  # immediate: as after a crash, recovered at the start
# The tests' data may be lost with the machine, but not with the server: so nobody waits for the disk, and a commit is
# handed to the kernel all the same (without synchronous_commit, an immediate stop loses what was committed before it).
SETTINGS = {"fsync": "off", "synchronous_commit": "on", "full_page_writes": "off", "max_connections": "200"}


def binaries() -> Path | None:
    """The folder of the newest server's binaries, or None. Debian keeps them off the PATH."""
    versions = sorted(DEBIAN.glob("*/bin/initdb"), key=lambda path: float(path.parent.parent.name), reverse=True)
    on_path = shutil.which("initdb")
    found = [*versions, *([Path(on_path).resolve()] if on_path else [])]
    return next((path.parent for path in found if (path.parent / "postgres").exists()), None)


def missing() -> str:
    """Why no server of our own can be started; empty when one can."""
    if importlib.util.find_spec("psycopg") is None:
        return "psycopg is not installed: pip install -e '.[dev]'"
    return "" if binaries() else "no PostgreSQL server is installed: apt-get install postgresql"


class Server:
    """One server: stopped and started again, it keeps its port and what it holds."""

    def __init__(self) -> None:
        found = binaries()
        assert found is not None, missing()
        self._bin = found
        self._user = _somebody()
        # Somebody else than root must be able to reach it, which a TMPDIR of root's may not let them.
        self._folder = Path(tempfile.mkdtemp(prefix="raymsa-postgres-", dir="/tmp" if self._user else None))
        self._password = secrets.token_hex(8)
        self._process: subprocess.Popen[bytes] | None = None
        self.port = free_port()
        try:
            self._make()
            self.start()
        except BaseException:
            self.remove()
            raise

    def url(self, database: str = "postgres") -> str:
        """The URL of one of its databases."""
        return f"postgresql+psycopg://{USER}:{self._password}@127.0.0.1:{self.port}/{database}"

    def start(self) -> None:
        """Start it and wait until it answers."""
        settings = [word for name, value in SETTINGS.items() for word in ("-c", f"{name}={value}")]
        place = ["-p", str(self.port), "-c", "listen_addresses=127.0.0.1", "-c", "unix_socket_directories="]
        # It must not outlive killed tests, and Ctrl-C is for the tests alone.
        dies = ["setpriv", "--pdeathsig", "INT"] if shutil.which("setpriv") else []
        command = [*dies, str(self._bin / "postgres"), "-D", str(self._data), *place, *settings]
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                command, stdout=log, stderr=log, start_new_session=True, cwd="/", **self._user
            )
        _wait(self._answers, START_S)

    def stop(self, how: Literal["fast", "immediate"] = "fast") -> None:
        """Stop it: its clients lose their connections."""
        process, self._process = self._process, None
        if process is not None:
            process.send_signal(SIGNALS[how])
            process.wait(START_S)

    def remove(self) -> None:
        """Stop it and remove its folder."""
        self.stop("immediate")
        shutil.rmtree(self._folder)

    @property
    def _data(self) -> Path:
        return self._folder / "data"

    @property
    def _log(self) -> Path:
        return self._folder / "log"

    def _make(self) -> None:
        secret = self._folder / "password"
        secret.write_text(self._password)
        for path in (self._folder, secret):
            if self._user:
                shutil.chown(path, self._user["user"], self._user["group"])
        how = ["--no-sync", "--auth=scram-sha-256", f"--username={USER}", f"--pwfile={secret}", "--encoding=UTF8"]
        command = [str(self._bin / "initdb"), "-D", str(self._data), *how, *_order(self._bin)]
        ended = subprocess.run(command, capture_output=True, text=True, cwd="/", **self._user)
        assert ended.returncode == 0, ended.stderr

    def _answers(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, self._log.read_text()
        with suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
            pid_file = self._data / "postmaster.pid"  # its last line says when recovery is over
            return pid_file.read_text().split()[-1] == "ready"
        return False


@contextmanager
def server() -> Iterator[Server]:
    """A server for one test, which may stop it."""
    own = Server()
    try:
        yield own
    finally:
        own.remove()


@functools.cache
def shared() -> Server:
    """The server of this whole session; `stop_shared` ends it."""
    return Server()


def stop_shared() -> None:
    """End the session's server, if a test has asked for it."""
    if shared.cache_info().currsize:
        shared().remove()
        shared.cache_clear()


@contextmanager
def database(of: str | None = None) -> Iterator[str]:
    """The URL of an empty database on the session's server, or on the one whose URL is given; dropped afterwards."""
    url = make_url(of or GIVEN or shared().url()).set(drivername="postgresql+psycopg")
    name = f"raymsa_{secrets.token_hex(4)}"
    # No pool: a test may have stopped the server in between.
    engine = create_engine(url, isolation_level="AUTOCOMMIT", poolclass=NullPool)
    with engine.connect() as connection:
        connection.execute(text(f"CREATE DATABASE {name}"))
    yield url.set(database=name).render_as_string(hide_password=False)
    with engine.connect() as connection:
        connection.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))


def _somebody() -> dict[str, Any]:
    """Who runs the server: PostgreSQL refuses root, who can be somebody else."""
    if os.geteuid() != 0:
        return {}
    import grp
    import pwd

    names = {entry.pw_name: entry for entry in pwd.getpwall()}
    entry = names.get("postgres") or names["nobody"]
    return {"user": entry.pw_name, "group": grp.getgrgid(entry.pw_gid).gr_name, "extra_groups": []}


def _order(folder: Path) -> list[str]:
    """A locale in which text is ordered as people do, not as bytes: what most servers have, and C would hide."""
    helped = subprocess.run([str(folder / "initdb"), "--help"], capture_output=True, text=True).stdout
    people = ["--locale-provider=icu", "--icu-locale=en"] if "--icu-locale" in helped else []
    return ["--locale=C.UTF-8", *people]


def _wait(done: Callable[[], bool], limit_s: float) -> None:
    end = time.monotonic() + limit_s
    while not done():
        assert time.monotonic() < end, f"the server did not answer within {limit_s:.0f} s"
        time.sleep(0.02)
