"""The driver's own process, `python -m raymsa.serve OPTIONS`: started, watched and started again by supervise.py."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from raymsa.driver import AWAY_S, Driver
from raymsa.errors import Lost, NoSession, RaymsaError, StoreAway
from raymsa.lease import JobLog
from raymsa.notify import Notices, target
from raymsa.store import Store, queries
from raymsa.supervise import BROKEN, NO_SESSION, NOTIFY, SESSION_DIED, Options

PR_SET_PDEATHSIG = 1  # of Linux' prctl


def main() -> int:
    """Serve the queue as the options say; returns the exit code that supervise.py knows."""
    options = Options(**json.loads(sys.argv[1]))
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)  # who started us is gone: end in order
    if options.watcher not in (None, os.getppid()):  # gone before we asked to be told
        return 0
    if options.lock_fd is not None:
        os.set_inheritable(options.lock_fd, False)  # ours, but not our children's
    notify = os.environ.pop(NOTIFY, "")  # it may hold a token: Ray's processes have no use for it
    url = os.environ.pop("RAYMSA_STORE")  # it may hold a password: the same
    warnings.filterwarnings("ignore")  # of libraries, about themselves; ours are words on stderr
    try:
        return _serve(_opened(url), options, notify)
    except RaymsaError as error:
        for line in str(error).splitlines():
            _say(f"error: {line}")
        return NO_SESSION if isinstance(error, NoSession) else BROKEN


def _serve(store: Store, options: Options, notify: str) -> int:
    name = options.name(os.getpid())
    driver = Driver(store, _say, options.address, options.lease_s, options.tasks_at_once, name=name)
    notices = Notices(store, target(notify), lambda job_id, line: JobLog(job_id, _say)(line), name) if notify else None
    if notices is not None:
        driver.ended = notices
        notices.catch_up(f"-{options.suffix}")
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: driver.stop())
    try:
        driver.serve(_done(store, options), _Idle(store, driver.name))
        lost = False
    except Lost as error:
        _say(f"error: {error}")
        lost = True
    finally:
        if notices is not None:
            notices.close()
    if lost:
        os._exit(SESSION_DIED)  # nothing that asks a dead session for its end comes back
    return 0


def _opened(url: str) -> Store:
    """The store, waited for if it is away: a driver that starts again has work that nobody else does."""
    told = False
    while True:
        try:
            return Store.open(url)
        except StoreAway as error:
            if not told:
                _say(f"{error}; waiting for it")
            told = True
            time.sleep(AWAY_S[0])


def _say(line: str) -> None:
    with suppress(OSError):  # the terminal is gone; the work goes on, and the log keeps the line
        print(line, file=sys.stderr, flush=True)


def _done(store: Store, options: Options) -> Callable[[], bool]:
    if options.job_id is not None or options.until_empty:
        return lambda: not queries.something_to_do(store, options.job_id)
    return lambda: False


class _Idle:
    """Says once for each task which other driver holds it."""

    def __init__(self, store: Store, name: str) -> None:
        self._store, self._name = store, name
        self._told: set[tuple[Any, ...]] = set()

    def __call__(self) -> None:
        for task in queries.running_tasks(self._store):
            if task.driver != self._name and (task.id, task.driver) not in self._told:
                self._told.add((task.id, task.driver))
                left = max(0.0, (task.lease_until or 0) - self._store.clock())
                _say(f"{task.kind} of job {task.job_id} is held by {task.driver}; if it is dead, ours in {left:.0f} s")


if __name__ == "__main__":
    sys.exit(main())
