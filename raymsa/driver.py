"""The driver: claim a task, execute it, record it, take the next. Only the driver writes the store."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import socket
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from raymsa import queue
from raymsa.cluster import runs_at_once, session
from raymsa.data.manifest import Manifest
from raymsa.errors import Cancelled, DataError, LeaseLost, NoSession, RaymsaError, StoreError
from raymsa.home import home
from raymsa.place import place
from raymsa.plan import TASKS, anchored, raw_of, shards_of
from raymsa.proposals import Listed, Proposals, Proposed, enter
from raymsa.provenance import git_commit, versions, who
from raymsa.record import Recorder
from raymsa.spec import check, runs
from raymsa.store import Store, queries
from raymsa.store.queries import Task

LEASE_S = 60.0  # a driver that is silent for so long is taken for dead
LEASE_MARGIN = 0.8  # of a lease without a renewal: time to stop before another driver begins
POLL_S = 1.0

Say = Callable[[str], None]


def submit(store: Store, job: Any) -> str:
    """Queue a job: one task that prepares its clips, one that makes its runs. Returns the job's id."""
    job = anchored(job)
    tasks = [queue.NewTask(kind, {"shards": str(shards_of(job.dataset))}) for kind in TASKS]
    spec = job.model_dump(mode="json")
    folder = Path.cwd()
    return queue.put(
        store, job.name, spec, tasks, submitted_by=who(), folder=str(folder), git_commit=git_commit(folder)
    )


@dataclass
class Driver:
    """Serves a store's queue from one Ray session, which it starts when the first task needs it."""

    store: Store
    say: Say
    address: str | None = None
    lease_s: float = LEASE_S
    name: str = field(default_factory=lambda: f"{socket.gethostname()}:{os.getpid()}")
    _stop: threading.Event = field(default_factory=threading.Event)
    _ray_is_up: bool = False

    def serve(self, done: Callable[[], bool], idle: Callable[[], None] = lambda: None) -> None:
        """Do tasks until `done` says so or `stop` was called; `idle` is called while there is nothing to do.

        Raises RaymsaError when no Ray session can be had; the task that wanted one is given back.
        """
        with ExitStack() as ray:
            while not self._stop.is_set() and not done():
                task = queue.claim(self.store, self.name, self.lease_s)
                if task is None:
                    idle()
                    self._stop.wait(POLL_S)
                else:
                    self.do(task, ray)

    def stop(self) -> None:
        """Ask for an end: the task at hand is given back with its place in the queue."""
        self._stop.set()

    @property
    def stopped(self) -> bool:
        """`stop` was called."""
        return self._stop.is_set()

    def do(self, task: Task, ray: ExitStack) -> None:
        """Execute one task under its lease and record how it ended; the Ray session is put on `ray`."""
        log = JobLog(task.job_id, self.say)
        lease = Lease(self.store, task, self.lease_s, self._stop)
        try:
            with lease:
                self._start_session(task, ray)
                if not lease.over():
                    with suppress(Cancelled):
                        self._execute(task, lease, log)
            self._end(task, lease, log)
        except NoSession:
            raise
        except LeaseLost as error:
            log(f"{task.kind}: {error}")
        except StoreError as error:  # not the task's fault: it goes on when the store is back
            log(f"{task.kind} interrupted: {error}")
            with suppress(RaymsaError):
                queue.release(self.store, task)
            raise
        except RaymsaError as error:
            self._fail(task, str(error), log)
        except Exception as error:  # a fault of ours: the queue must go on, and the trace must not be lost
            log.only_in_file(traceback.format_exc())
            reason = " ".join(str(error).split())[:300]
            self._fail(task, f"{type(error).__name__}: {reason}; see `raymsa logs {task.job_id}`", log)

    def _fail(self, task: Task, error: str, log: Say) -> None:
        log(f"{task.kind} failed: {error}")
        with suppress(LeaseLost):
            queue.fail(self.store, task, error)

    def _start_session(self, task: Task, ray: ExitStack) -> None:
        if self._ray_is_up:
            return
        self.say("starting Ray" if self.address is None else f"connecting to Ray at {self.address}")
        begun = time.monotonic()
        try:
            ray.enter_context(session(self.address))
        except RaymsaError as error:
            with suppress(LeaseLost):
                queue.release(self.store, task)
            raise NoSession(str(error)) from None
        self._ray_is_up = True
        self.say(f"Ray is up ({time.monotonic() - begun:.0f} s)")

    def _execute(self, task: Task, lease: Lease, log: Say) -> None:
        job = queries.job(self.store, task.job_id)
        if task.kind == "prepare":
            _prepare(job, place(task.payload["shards"]), lease, log)
        elif task.kind == "train":
            _train(self.store, job, task, lease, log)
        else:
            raise RaymsaError(f"task kind '{task.kind}' is unknown to this version of raymsa")

    def _end(self, task: Task, lease: Lease, log: Say) -> None:
        if lease.ended is not None:  # somebody cancelled, or another driver has the task
            if isinstance(lease.ended, LeaseLost):
                raise lease.ended
            queue.cancelled(self.store, task)
            log(f"{task.kind} cancelled")
        elif self._stop.is_set():
            queue.release(self.store, task)
            log(f"{task.kind} given back; it keeps its place in the queue")
        else:
            queue.finish(self.store, task)


class Lease:
    """Renews a task's lease in a thread; `over()` turns true when the work should end."""

    def __init__(self, store: Store, task: Task, lease_s: float, stop: threading.Event) -> None:
        self._store, self._task, self._lease_s, self._stop = store, task, lease_s, stop
        self._done = threading.Event()
        self._renewed = time.monotonic()
        self.ended: RaymsaError | None = None
        self._thread = threading.Thread(target=self._keep, daemon=True, name="raymsa-lease")

    def over(self) -> bool:
        """Stop was asked for, the task was cancelled, or the lease is lost, or as good as lost."""
        if self.ended is None and time.monotonic() - self._renewed > self._lease_s * LEASE_MARGIN:
            self.ended = LeaseLost(f"task {self._task.id}: the lease could not be renewed in time")
        return self._stop.is_set() or self.ended is not None

    def __enter__(self) -> Lease:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _keep(self) -> None:
        while not self._done.wait(min(2.0, self._lease_s / 3)):
            try:
                queue.renew(self._store, self._task, self._lease_s)
                self._renewed = time.monotonic()
            except (Cancelled, LeaseLost) as error:
                self.ended = error
                return
            except Exception as error:  # the store is out of reach for a moment, or for longer: `over` sees that
                logging.getLogger(__name__).warning("the lease was not renewed: %s", error)


class JobLog:
    """Says lines on screen, and keeps them in the job's log."""

    def __init__(self, job_id: str, say: Say) -> None:
        self._path, self._say = job_log(job_id), say
        self._path.parent.mkdir(parents=True, exist_ok=True)

    def __call__(self, line: str) -> None:
        self._say(line)
        self.only_in_file(line)

    def only_in_file(self, line: str) -> None:
        """Keep a line that is too much for the screen; a full disk must not end what it only tells of."""
        with suppress(OSError), self._path.open("a", encoding="utf-8") as file:
            file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')}  {line}\n")


def job_log(job_id: str) -> Path:
    """The file with everything a job's driver said."""
    return home() / "jobs" / f"{job_id}.log"


def _prepare(job: queries.Job, shards: Path, lease: Lease, log: Say) -> None:
    from raymsa.data.prepare import prepare

    dataset = _spec(job).dataset
    prepare(dataset, raw_of(dataset), shards, log, lease.over)


def _train(store: Store, job: queries.Job, task: Task, lease: Lease, log: Say) -> None:
    from raymsa.data import manifest
    from raymsa.search import run_all

    spec, shards = _spec(job), task.payload["shards"]
    made = manifest.read(place(shards))
    at_once = runs_at_once(spec.resources.cpus, spec.resources.gpus)
    proposals = _proposals(store, job, task, spec, shards)
    rows = queries.runs(store, job.id)
    planned = spec.search.trials if spec.search else len(rows)
    done = sum(row.state == "done" for row in rows)
    log(f"{planned} runs, {done} done already; {at_once} at a time")
    _check_data(made, rows, spec, log)
    if done < planned:
        facts = {"data_digest": made.digest, "versions": versions(), "git_commit": job.git_commit}
        storage = home() / "ray" / job.id
        shared = _shared(spec, place(shards), made, log, lease.over)
        run_all(proposals, Recorder(store, made, facts, log), lease.over, at_once, storage, shared)
        shutil.rmtree(storage, ignore_errors=True)
    _close(store, job.id, lease)


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


def _proposals(store: Store, job: queries.Job, task: Task, spec: Any, shards: str) -> Proposals:
    planned = runs(spec)
    if spec.search:
        return Proposed(store, job, task.id, planned[0], shards)
    return Listed(enter(store, job.id, task.id, planned), shards)


def _close(store: Store, job_id: str, lease: Lease) -> None:
    """A job whose runs are not all done has failed, unless it was stopped: then its runs follow their task."""
    left = [row for row in queries.runs(store, job_id) if row.state != "done"]
    if left and not lease.over():
        failed = "; ".join(f"{row.id}: {row.error or 'ended without a result'}" for row in left)
        raise RaymsaError(f"{len(left)} runs failed: {failed}")


def _spec(job: queries.Job) -> Any:
    return check(job.spec, f"job {job.id}")


@contextmanager
def alone(wait: Callable[[str], bool]) -> Iterator[bool]:
    """One embedded driver per machine and home, so that two jobs never meet on one GPU.

    While another holds the place, `wait(its name)` is called every second; false gives up, and the block gets False.
    """
    import fcntl

    path = home() / f"driver-{socket.gethostname()}.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+", encoding="utf-8") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.seek(0)
                if not wait(file.read().strip() or "another driver"):
                    yield False
                    return
                time.sleep(POLL_S)
                continue
            file.truncate(0)
            file.write(f"{socket.gethostname()}:{os.getpid()}")
            file.flush()
            yield True
            return


@contextmanager
def on_ctrl_c(act: Callable[[], None]) -> Iterator[None]:
    """The first Ctrl-C (or SIGTERM) calls `act`; a second one is Python's own KeyboardInterrupt."""

    def handle(number: int, _: object) -> None:
        signal.signal(number, signal.default_int_handler)
        act()

    old = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, previous in old.items():
            signal.signal(number, previous)
