"""The driver's process, watched from outside: started, asked to stop, and started again when it dies.

A driver has a Ray session in its process, and Ray ends that process when the session dies (its raylet was killed, the
cluster's head is gone). Whoever watches has no Ray and outlives it: what the dead driver held goes back into the queue
at once, and a new one goes on from the checkpoints.
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, NamedTuple

from raymsa import leftovers, queue
from raymsa.errors import RaymsaError, StoreAway
from raymsa.home import driver_lock, home
from raymsa.signals import on_stop
from raymsa.store import Store

# Exit codes of raymsa.serve: an error it has told, twice, and a Ray session that died under it. Others: it died.
NO_SESSION, BROKEN, SESSION_DIED = 71, 74, 75
NOTIFY = "RAYMSA_NOTIFY"  # in the environment of the driver's process, which takes it out at once
WAIT_S = (2.0, 60.0)  # before a new driver, at first and at most
TRIES = 3  # at the first session
WELL_S = 300.0  # a driver that lived so long was well

Say = Callable[[str], None]


class Options(NamedTuple):
    """What the driver's process is told; plain data."""

    address: str | None = None
    lease_s: float = queue.LEASE_S
    tasks_at_once: int = 1
    job_id: str | None = None  # end when this job is over
    until_empty: bool = False  # end when there is nothing to do
    lock_fd: int | None = None  # the machine's lock, which it inherits
    watcher: int | None = None  # the process that watches it
    suffix: str = "0"  # of its name

    def name(self, pid: int) -> str:
        """The name of the driver with this process id: what it holds when it dies is taken back by it. In containers,
        hosts share names and processes share numbers, so the suffix is what makes it one driver's."""
        return f"{socket.gethostname()}:{pid}-{self.suffix}"


class Supervisor:
    """Keeps one driver process alive until it ends by itself or `stop` is called."""

    def __init__(self, store: Store, options: Options, say: Say, notify: str | None = None) -> None:
        self._store, self._say, self._notify = store, say, notify
        self._options = options._replace(watcher=os.getpid(), suffix=secrets.token_hex(3))
        self._child: subprocess.Popen[bytes] | None = None
        self._told = ""  # whom we wait for
        self._lived = False  # some driver had a session: one that cannot get any may get one later
        self.stopped = False

    def serve(self) -> None:
        """Serve the queue. Raises RaymsaError when the driver ended with an error, which it has told itself."""
        with on_stop(self.stop), self._place() as lock:
            wait_s, tries = WAIT_S[0], 0
            if lock:
                self._clear()
            while lock is not False and not self.stopped:
                begun = time.monotonic()
                code = self._run(lock)
                if code == 0 or self.stopped:
                    return
                tries += 1
                # On a machine that is busy, Ray gives a session of its own up that would have come.
                hopeless = tries >= (TRIES if self._options.address is None else 1)
                if code == BROKEN or (code == NO_SESSION and not self._lived and hopeless):
                    raise RaymsaError("the driver ended; see above")
                self._lived = self._lived or code != NO_SESSION
                wait_s = WAIT_S[0] if time.monotonic() - begun > WELL_S else wait_s
                self._say(f"the driver died ({_how(code)}); a new one goes on in {wait_s:.0f} s")
                self._sleep(wait_s)
                wait_s = min(WAIT_S[1], 2 * wait_s)

    def stop(self) -> None:
        """The first time: the driver writes checkpoints and gives its tasks back. The second time it is killed."""
        if self._child is not None:
            with suppress(ProcessLookupError):
                self._child.kill() if self.stopped else self._child.terminate()
        self.stopped = True

    def _run(self, lock: Any) -> int:
        """One driver process, from its start to its end."""
        keep = (lock.fileno(),) if lock else ()
        options = self._options._replace(lock_fd=lock.fileno() if lock else None)
        command = [sys.executable, "-m", "raymsa.serve", json.dumps(options._asdict())]
        # Not in the command, which `ps` shows.
        environment = {**os.environ, "RAYMSA_STORE": self._store.secret_url(), NOTIFY: self._notify or ""}
        # A session of its own: Ctrl-C on the terminal is for us, and we pass it on.
        self._child = subprocess.Popen(  # noqa: S603
            command, env=environment, pass_fds=keep, start_new_session=True, stdin=subprocess.DEVNULL
        )
        if self.stopped:  # while it was started, when there was nobody to pass it on to
            self._child.terminate()
        name = options.name(self._child.pid)
        if lock:
            leftovers.note(_note(), self._child.pid, name)
        code = self._child.wait()
        self._end(self._child.pid)
        if code not in (0, BROKEN, NO_SESSION):
            self._take_back(name, f"its driver died ({_how(code)})")
        if lock:
            _note().unlink(missing_ok=True)  # its number may be another process's one day
        return code

    def _clear(self) -> None:
        """Whoever held the machine's lock before us is dead: end what it left, and take back what it held."""
        before = leftovers.noted(_note())
        if before is None:
            return
        name, session = before
        if session is not None:
            self._end(session)
        self._take_back(name, "its driver and who watched it died")
        _note().unlink(missing_ok=True)

    def _end(self, session: int) -> None:
        """No new driver starts beside what the old one left: it would meet it on a GPU."""
        if left := leftovers.end(session):
            self._say(f"{left} processes of the driver {session} do not end; they may hold memory or a GPU")

    def _take_back(self, driver: str, why: str) -> None:
        with suppress(StoreAway):  # then its leases end by themselves
            queue.gone(self._store, driver, why)

    def _sleep(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while time.monotonic() < until and not self.stopped:
            time.sleep(0.1)

    @contextmanager
    def _place(self) -> Iterator[IO[str] | bool | None]:
        """The machine's lock; None where none is needed, False when it was given up."""
        if self._options.address is not None:
            yield None
            return
        with alone(self._wait) as lock:
            yield lock or False

    def _wait(self, other: str) -> bool:
        if other != self._told:
            self._told = other
            self._say(f"{other} serves this machine; waiting for it")
        return not self.stopped


def _note() -> Path:
    return home() / f"driver-{socket.gethostname()}.json"


def _how(code: int) -> str:
    if code == NO_SESSION:
        return "it got no Ray session"
    if code == SESSION_DIED:
        return "its Ray session died"
    if code >= 0:
        return f"exit code {code}"
    with suppress(ValueError):
        return signal.Signals(-code).name
    return f"signal {-code}"


@contextmanager
def alone(wait: Callable[[str], bool]) -> Iterator[IO[str] | None]:
    """One embedded driver per machine and home, so that two jobs never meet on one GPU; gives the locked file.

    While another holds the place, `wait(its name)` is called every second; false gives up, and the block gets None.
    """
    path = driver_lock()
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+", encoding="utf-8") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.seek(0)
                if not wait(file.read().strip() or "another driver"):
                    yield None
                    return
                time.sleep(1.0)
                continue
            file.truncate(0)
            file.write(f"{socket.gethostname()}:{os.getpid()}")
            file.flush()
            yield file
            return
