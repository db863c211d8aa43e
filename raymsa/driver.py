"""The driver: claim tasks, execute them, record them, take the next. Only the driver writes the store.

It lives in a process of its own (see supervise.py), because Ray ends a process whose session died.
"""

from __future__ import annotations

import logging
import os
import shutil
import socket
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from raymsa import queue
from raymsa.causes import again_in, cause_of
from raymsa.cluster import Pulse, ended_part, no_room, runs_at_once, session
from raymsa.data.manifest import Manifest
from raymsa.errors import (
    Cancelled,
    DataError,
    LeaseLost,
    Lost,
    NoSession,
    RaymsaError,
    RunsFailed,
    StoreAway,
    StoreError,
    UsageError,
)
from raymsa.home import home, job_log
from raymsa.place import place
from raymsa.plan import anchored, raw_of, shards_of, tasks_of
from raymsa.proposals import Listed, Proposals, Proposed, confirming, enter
from raymsa.provenance import git_commit, versions, who
from raymsa.record import Recorder
from raymsa.spec import check, runs
from raymsa.store import Store, queries
from raymsa.store.queries import Task

LEASE_S = 60.0  # a driver that is silent for so long is taken for dead
LEASE_MARGIN = 0.8  # of a lease without a renewal: time to stop before another driver begins
POLL_S = 1.0
OVER = ("done", "failed", "pruned")  # a run's states that nothing is left to do for
AWAY_S = (1.0, 30.0)  # between two tries to reach the store, at first and at most

Say = Callable[[str], None]


def submit(store: Store, job: Any) -> str:
    """Queue a job: its tasks, one after the other. Returns the job's id. Raises NotFound for an unknown `after`."""
    job = anchored(job)
    tasks = [queue.NewTask(kind, {"shards": str(shards_of(job.dataset))}) for kind in tasks_of(job)]
    folder, wish = Path.cwd(), job.queue
    return queue.put(
        store,
        job.name,
        job.model_dump(mode="json"),
        tasks,
        submitted_by=who(),
        folder=str(folder),
        git_commit=git_commit(folder),
        priority=wish.priority,
        max_attempts=wish.retries + 1,
        after=[task for name in wish.after for task in _awaited(store, name)],
        deadline_s=None if wish.deadline_h is None else wish.deadline_h * 3600,
    )


def _awaited(store: Store, name: str) -> list[int]:
    """The tasks of `JOB`, or the one of `JOB/KIND`. Raises NotFound, and UsageError for a kind the job has not."""
    job_name, _, kind = name.partition("/")
    tasks = queries.tasks(store, queries.job(store, job_name).id)
    found = [task.id for task in tasks if kind in ("", task.kind)]
    if not found:
        kinds = ", ".join(task.kind for task in tasks)
        raise UsageError(f"queue.after: given '{name}'; job {job_name} has the tasks {kinds}")
    return found


@dataclass
class Driver:
    """Serves a store's queue from one Ray session, which it starts when the first task needs it."""

    store: Store
    say: Say
    address: str | None = None
    lease_s: float = LEASE_S
    tasks_at_once: int = 1
    ended: Callable[[str], None] = lambda job_id: None  # called when a job is over by what this driver did
    name: str = field(default_factory=lambda: f"{socket.gethostname()}:{os.getpid()}")
    _stop: threading.Event = field(default_factory=threading.Event)
    _ray_is_up: bool = False
    _pulse: Pulse | None = None  # of a cluster
    _busy: list[threading.Thread] = field(default_factory=list)
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
            while any(thread.is_alive() for thread in self._busy):
                self._look_at_session(ray)
                time.sleep(0.1)
        if self._trouble is not None:
            raise self._trouble

    def stop(self) -> None:
        """Ask for an end: the tasks at hand write a checkpoint and are given back with their place in the queue."""
        self._stop.set()

    @property
    def stopped(self) -> bool:
        """`stop` was called."""
        return self._stop.is_set()

    def _turn(self, ray: ExitStack, idle: Callable[[], None]) -> None:
        self._busy = [thread for thread in self._busy if thread.is_alive()]
        task = None
        if len(self._busy) < self.tasks_at_once:
            task = queue.claim(self.store, self.name, self.lease_s)
        if task is None:
            idle()
            self._stop.wait(POLL_S)
            return
        log = JobLog(task.job_id, self.say)
        lease = Lease(self.store, task, self.lease_s, self._stop, log)
        lease.begin()
        # In this thread: Linux ends what Ray starts when the thread that started it ends.
        if self._has_session(task, lease, ray):
            thread = threading.Thread(target=self._do, args=(task, lease, log), daemon=True, name=f"task-{task.id}")
            self._busy.append(thread)
            thread.start()

    def _do(self, task: Task, lease: Lease, log: JobLog) -> None:
        """Execute one task under its lease and record how it ended."""
        try:
            failed = self._failed(task, lease, log)
            if failed is None:
                _patiently(lambda: self._end(task, lease, log), lease)
            else:
                _patiently(lambda: self._fail(task, *failed, log), lease)
            _patiently(lambda: self._tell_end(task), lease)
        except LeaseLost as error:
            log(f"{task.kind}: {error}")
        except StoreError as error:  # not the task's fault: it goes on when the store is back
            log(f"{task.kind} interrupted: {error}")
            with suppress(RaymsaError):
                queue.release(self.store, task)
        finally:
            lease.end()

    def _failed(self, task: Task, lease: Lease, log: JobLog) -> tuple[str, str] | None:
        """Execute a task; the error and its cause if it failed. Raises LeaseLost and StoreError."""
        try:
            if not lease.over():
                self._execute(task, lease, log)
        except (LeaseLost, StoreError):
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
        wish = _spec(queries.job(self.store, task.job_id)).queue
        again_s = again_in(cause, task.attempts, wish.retries, wish.backoff_s)
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

    def _execute(self, task: Task, lease: Lease, log: Say) -> None:
        job = queries.job(self.store, task.job_id)
        if task.kind == "prepare":
            _prepare(job, place(task.payload["shards"]), lease, log)
        elif task.kind in ("train", "confirm"):
            _train(self.store, job, task, lease, log)
        else:
            raise RaymsaError(f"task kind '{task.kind}' is unknown to this version of raymsa")

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
        if queue.job_state(queries.tasks(self.store, task.job_id)) in ("done", "failed", "cancelled"):
            self.ended(task.job_id)


def _patiently(act: Callable[[], None], lease: Lease) -> None:
    """Do it once the store answers, for as long as the task is ours. Raises StoreAway after that."""
    while True:
        try:
            act()
            return
        except StoreAway:
            if lease.at_once():
                raise
            time.sleep(AWAY_S[0])


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
        if self.lost is None and time.monotonic() - self._renewed > self._lease_s * LEASE_MARGIN:
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
                self.asked = queue.renew(self._store, self._task, self._lease_s, self._log.last)
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
        self._path.parent.mkdir(parents=True, exist_ok=True)

    def __call__(self, line: str) -> None:
        self.last = line[:200]
        self._say(line)
        self.only_in_file(line)

    def only_in_file(self, line: str) -> None:
        """Keep a line that is too much for the screen; a full disk must not end what it only tells of."""
        with suppress(OSError), self._path.open("a", encoding="utf-8") as file:
            file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')}  {line}\n")


def _prepare(job: queries.Job, shards: Path, lease: Lease, log: Say) -> None:
    from raymsa.data.prepare import prepare

    _say_no_room(1, 0, {}, log)
    dataset = _spec(job).dataset
    prepare(dataset, raw_of(dataset), shards, log, lease.over)


def _train(store: Store, job: queries.Job, task: Task, lease: Lease, log: Say) -> None:
    from raymsa.data import manifest
    from raymsa.search import run_all

    spec, shards = _spec(job), task.payload["shards"]
    made = manifest.read(place(shards))
    wish = spec.resources
    at_once = runs_at_once(wish.cpus, wish.gpus, wish.custom, spec.queue.runs_at_once)
    _say_no_room(wish.cpus, wish.gpus, wish.custom, log)
    rows = queries.runs(store, job.id)
    _check_data(made, rows, spec, log)
    proposals, planned = _proposals(store, job, task, spec, made, log)
    mine = [row for row in queries.runs(store, job.id) if row.task_id == task.id]
    over = sum(row.state in OVER for row in mine)
    log(f"{planned} runs, {over} done already; {at_once} at a time")
    if over < planned:
        facts = {"data_digest": made.digest, "versions": versions(), "git_commit": job.git_commit}
        storage = home() / "ray" / job.id
        shared = _shared(spec, place(shards), made, log, lease.over)
        run_all(proposals, Recorder(store, made, spec.queue, facts, log), lease, at_once, storage, shared)
        shutil.rmtree(storage, ignore_errors=True)
    _close(store, job, task, lease, log)


def _say_no_room(cpus: int, gpus: int, custom: dict[str, float], log: Say) -> None:
    """An autoscaler may be bringing a node, or nobody: Ray would wait for either without a word."""
    if why := no_room(cpus, gpus, custom):
        log(why)


def _check_data(made: Manifest, rows: list[queries.RunRow], spec: Any, log: Say) -> None:
    """Raises DataError when runs of the job were made from other clips; warns of a context that there is not."""
    other = next((row for row in rows if row.state == "done" and row.data_digest not in (None, made.digest)), None)
    if other:
        raise DataError(
            f"{made.name}: the shards hold data {made.digest}, but run {other.id} was trained on data "
            f"{other.data_digest}; their results cannot stand in one table: submit the job anew"
        )
    asks = max(run.spec.inputs.context for run in runs(spec))
    if asks and not made.with_previous:
        log(
            f"warning: inputs.context is {asks}, but no clip of {made.name} has another before it in its video: "
            "every run goes without; a table says which clips belong together in `columns.video`"
        )


def _shared(spec: Any, folder: Path, made: Manifest, log: Say, stop: Callable[[], bool]) -> Any:
    """The clips that the job's runs read, in the object store if they fit there; else None."""
    from raymsa.data.groups import row_groups
    from raymsa.data.shards import share

    splits = dict.fromkeys((*(("train", "valid") if spec.train.epochs else ()), *spec.evaluate.splits))
    groups = [group for split in splits for group in row_groups(folder, [f.name for f in made.of(split)])]
    shared, why = share(groups, stop)
    log(why)
    return shared


def _proposals(
    store: Store, job: queries.Job, task: Task, spec: Any, made: Manifest, log: Say
) -> tuple[Proposals, int]:
    """What gives the task's runs, and how many there will be."""
    shards = task.payload["shards"]
    if task.kind == "train" and spec.search:
        proposed = Proposed(store, job, task.id, shards, made.digest)
        for line in proposed.about:
            log(line)
        return proposed, int(spec.search.trials)
    planned = runs(spec) if task.kind == "train" else confirming(store, job)
    rows = [row for row in enter(store, job.id, task.id, planned) if row.task_id == task.id]
    return Listed(store, rows, shards), len(rows)


def _close(store: Store, job: queries.Job, task: Task, lease: Lease, log: Say) -> None:
    """A task whose runs are not all done has failed, unless it was stopped: then its runs follow it. A search goes on
    without the settings that failed, as long as one is done."""
    rows = [row for row in queries.runs(store, job.id) if row.task_id == task.id]
    left = [row for row in rows if row.state not in ("done", "pruned")]
    if not left or lease.over():
        return
    ended = all(row.state == "failed" for row in left)
    if task.kind == "train" and job.spec["search"] and ended and any(row.state == "done" for row in rows):
        log(f"the search goes on without {len(left)} trials that failed; raymsa search {job.id} names them")
        return
    failed = "; ".join(f"{row.id}: {row.error or 'ended without a result'}" for row in left)
    raise (RunsFailed if ended else Lost)(f"{len(left)} runs failed: {failed}")


def _spec(job: queries.Job) -> Any:
    return check(job.spec, f"job {job.id}")
