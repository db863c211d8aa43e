"""The driver: claim tasks, execute them, record them, take the next. Only the driver writes the store.

It lives in a process of its own (see supervise.py), because Ray ends a process whose session died.
"""

from __future__ import annotations

import os
import secrets
import socket
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field

from raymsa import queue
from raymsa.causes import again_in, cause_of
from raymsa.cluster import Pulse, ended_part, session
from raymsa.errors import Cancelled, LeaseLost, Lost, NoSession, RaymsaError, StoreAway, StoreError
from raymsa.execute import execute
from raymsa.lease import JobLog, Lease, Say, patiently
from raymsa.spec import QueueSpec
from raymsa.store import Store, queries
from raymsa.store.queries import Task
from raymsa.store.states import ENDED

POLL_S = 1.0
AWAY_S = (1.0, 30.0)  # between two tries to reach the store, at first and at most


@dataclass
class Driver:
    """Serves a store's queue from one Ray session, which it starts when the first task needs it."""

    store: Store
    say: Say
    address: str | None = None
    lease_s: float = queue.LEASE_S
    tasks_at_once: int = 1
    ended: Callable[[str], None] = lambda job_id: None  # called when a job is over by what this driver did
    name: str = field(default_factory=lambda: f"{socket.gethostname()}:{os.getpid()}-{secrets.token_hex(3)}")
    _stop: threading.Event = field(default_factory=threading.Event)
    _look: threading.Event = field(default_factory=threading.Event)  # at the queue, without waiting for the next turn
    _ray_is_up: bool = False
    _pulse: Pulse | None = None  # of a cluster
    _busy: set[threading.Thread] = field(default_factory=set)
    _trouble: RaymsaError | None = None

    def serve(self, done: Callable[[], bool], idle: Callable[[], None] = lambda: None) -> None:
        """Do tasks until `done` says so or `stop` was called; `idle` is called while there is nothing to start.

        A store that does not answer is waited for. Raises RaymsaError when no Ray session can be had (the task that
        wanted one is given back) or the store is broken, and Lost when the session died: what runs in it never ends.
        """
        with ExitStack() as ray:
            away_s = 0.0
            while not self._stop.is_set() and self._trouble is None:
                self._look_at_session(ray)
                try:
                    if done():
                        break
                    self._turn(ray, idle)
                    away_s = 0.0
                except StoreAway as error:
                    if not away_s:
                        self.say(f"{error}; waiting for it")
                    away_s = min(AWAY_S[1], 2 * away_s or AWAY_S[0])
                    self._stop.wait(away_s)
                except StoreError as error:  # the end, but one in order for the tasks at hand
                    self._trouble = error
                    self.stop()
            while self._busy:
                self._look_at_session(ray)
                time.sleep(0.1)
        if self._trouble is not None:
            raise self._trouble

    def stop(self) -> None:
        """Ask for an end: the tasks at hand write a checkpoint and are given back with their place in the queue."""
        self._stop.set()
        self._look.set()

    @property
    def stopped(self) -> bool:
        """`stop` was called."""
        return self._stop.is_set()

    def _turn(self, ray: ExitStack, idle: Callable[[], None]) -> None:
        task = None
        if len(self._busy) < self.tasks_at_once:
            task = queue.claim(self.store, self.name, self.lease_s)
        if task is None:
            idle()
            self._look.wait(POLL_S)
            self._look.clear()
            return
        log = JobLog(task.job_id, self.say)
        lease = Lease(self.store, task, self.lease_s, self._stop, log)
        lease.begin()
        # In this thread: Linux ends what Ray starts when the thread that started it ends.
        if self._has_session(task, lease, ray):
            thread = threading.Thread(target=self._do, args=(task, lease, log), daemon=True, name=f"task-{task.id}")
            self._busy.add(thread)
            thread.start()

    def _do(self, task: Task, lease: Lease, log: JobLog) -> None:
        """Execute one task under its lease and record how it ended."""
        try:
            failed = self._failed(task, lease, log)
            if failed is None:
                patiently(lambda: self._end(task, lease, log), lease)
            else:
                patiently(lambda: self._fail(task, *failed, log), lease)
            patiently(lambda: self._tell_end(task), lease)
        except LeaseLost as error:
            log(f"{task.kind}: {error}")
        except StoreAway as error:  # not the task's fault: it goes on when the store is back
            log(f"{task.kind} interrupted: {error}")
            with suppress(RaymsaError):
                queue.release(self.store, task)
        except Exception as error:  # its end cannot be recorded: it is taken back when its lease ends, which counts
            log.only_in_file(traceback.format_exc())
            log(f"{task.kind} interrupted: {type(error).__name__}: {error}")
        finally:
            lease.end()
            self._busy.discard(threading.current_thread())
            self._look.set()

    def _failed(self, task: Task, lease: Lease, log: JobLog) -> tuple[str, str] | None:
        """Execute a task; the error and its cause if it failed. Raises LeaseLost and StoreAway."""
        try:
            if not lease.over():
                execute(self.store, task, lease, log)
        except (LeaseLost, StoreAway):  # another StoreError comes again: what cannot be stored is tried so often only
            raise
        except RaymsaError as error:
            return None if isinstance(error, Cancelled) and lease.over() else (str(error), error.cause)
        except Exception as error:  # a fault of ours: the queue must go on, and the trace must not be lost
            if ended_part():  # said once, by who looks at the session; the task is taken back with the driver's others
                raise LeaseLost("the Ray session died") from None
            log.only_in_file(traceback.format_exc())
            reason = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
            return f"{reason}; see `raymsa logs {task.job_id}`", cause_of(error)
        return None

    def _fail(self, task: Task, error: str, cause: str, log: Say) -> None:
        # Not the whole spec, which may be what is wrong: another version wrote it.
        wish = QueueSpec().model_dump() | queries.job(self.store, task.job_id).spec.get("queue", {})
        again_s = again_in(cause, task.attempts, wish["retries"], wish["backoff_s"])
        state = queue.fail(self.store, task, error, cause, again_s)
        log(f"{task.kind} failed: {error}" + (f" (again in {again_s:.0f} s)" if state == "queued" else ""))

    def _has_session(self, task: Task, lease: Lease, ray: ExitStack) -> bool:
        """Start the Ray session if there is none, and put it on `ray`; without one the task is given back."""
        if self._ray_is_up:
            return True
        self.say("starting Ray" if self.address is None else f"connecting to Ray at {self.address}")
        begun = time.monotonic()
        try:
            ray.enter_context(session(self.address))
        except RaymsaError as error:
            lease.end()
            with suppress(StoreError, LeaseLost):
                queue.release(self.store, task)
            self._trouble = NoSession(str(error))
            return False
        self._ray_is_up = True
        self._pulse = Pulse() if self.address is not None else None
        self.say(f"Ray is up ({time.monotonic() - begun:.0f} s)")
        return True

    def _look_at_session(self, ray: ExitStack) -> None:
        """Raises Lost when the session died, and leaves it as it is."""
        if not self._ray_is_up:
            return
        part = ended_part()
        why = f"its {part} ended" if part else self._pulse.trouble() if self._pulse is not None else ""
        if why:
            ray.pop_all()
            raise Lost(f"the Ray session died: {why}")

    def _end(self, task: Task, lease: Lease, log: Say) -> None:
        if lease.lost is not None:  # another driver may have the task
            raise lease.lost
        if lease.asked == "deadline":
            queue.fail(self.store, task, "it was not done by its deadline", "deadline")
            log(f"{task.kind} failed: it was not done by its deadline")
        elif lease.over():
            state = queue.release(self.store, task)
            log(f"{task.kind} {'given back; it keeps its place in the queue' if state == 'queued' else state}")
        else:
            queue.finish(self.store, task)

    def _tell_end(self, task: Task) -> None:
        if queries.state(self.store, task.job_id) in ENDED:
            self.ended(task.job_id)
