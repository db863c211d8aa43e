"""A driver's hold on one task: its lease, which is renewed while the task is worked on, and the job's log."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from raymsa import queue
from raymsa.errors import LeaseLost, StoreAway
from raymsa.home import job_log, log_to
from raymsa.store import Store
from raymsa.store.queries import Task

MARGIN = 0.8  # of a lease without a renewal: time to stop before another driver begins
AGAIN_S = 1.0  # between two tries to reach the store

Say = Callable[[str], None]


def patiently(act: Callable[[], None], lease: Lease) -> None:
    """Do it once the store answers, for as long as the task is ours. Raises StoreAway after that."""
    while True:
        try:
            act()
            return
        except StoreAway:
            if lease.at_once():
                raise
            time.sleep(AGAIN_S)


class Lease:
    """Renews a task's lease in a thread; `over()` turns true when the work should end, `at_once()` if without delay."""

    def __init__(self, store: Store, task: Task, lease_s: float, stop: threading.Event, log: JobLog) -> None:
        self._store, self._task, self._lease_s, self._stop, self._log = store, task, lease_s, stop, log
        self._done = threading.Event()
        self._renewed = time.monotonic()
        self.asked: str | None = None  # what somebody wants: cancelled, paused; or the deadline is over
        self.lost: LeaseLost | None = None
        self._thread = threading.Thread(target=self._keep, daemon=True, name="raymsa-lease")

    def over(self) -> bool:
        """Stop was asked for, somebody wants the task to end, or the lease is lost."""
        return self._stop.is_set() or self.asked is not None or self.at_once()

    def at_once(self) -> bool:
        """The lease is lost, or as good as lost: another driver may begin."""
        if self.lost is None and time.monotonic() - self._renewed > self._lease_s * MARGIN:
            self.lost = LeaseLost(f"task {self._task.id}: the lease could not be renewed in time")
        return self.lost is not None

    def begin(self) -> None:
        """Renew from now on."""
        self._thread.start()

    def end(self) -> None:
        """No longer."""
        self._done.set()
        self._thread.join()

    def _keep(self) -> None:
        while not self._done.wait(min(2.0, self._lease_s / 3)):
            asked_at = time.monotonic()
            try:
                asked = queue.renew(self._store, self._task, self._lease_s, self._log.last)
                self.asked = self.asked or asked  # its runs are stopping, also if it is taken back
                self._renewed = asked_at
            except LeaseLost as error:
                self.lost = error
                return
            except Exception as error:  # the store is out of reach for a moment, or for longer: `at_once` sees that
                logging.getLogger(__name__).warning("the lease was not renewed: %s", error)


class JobLog:
    """Says lines on screen, and keeps them in the job's log."""

    def __init__(self, job_id: str, say: Say) -> None:
        self._path, self._say = job_log(job_id), say
        self.last = ""  # as `raymsa status` shows it

    def __call__(self, line: str) -> None:
        self.last = line[:200]
        self._say(line)
        self.only_in_file(line)

    def only_in_file(self, line: str) -> None:
        """Keep a line that is too much for the screen."""
        log_to(self._path, line)
