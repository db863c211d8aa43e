"""The queue: tasks of jobs, handed to drivers under a lease.

    queued --claim--> running --finish----> done
      ^  |               |-----fail-------> failed     (also after max_attempts drivers died)
      |  `--cancel--.    |-----cancelled--> cancelled  (the driver saw that cancel was requested)
      |             `----|----------------> cancelled
      |------------------'  release, or the lease expired: the driver is dead
      `---retry-------------- failed, cancelled

A job's tasks run one after the other, by `seq`. A job has no state of its own: `job_state` derives it.
Whoever changes a state writes the event in the same transaction; `what` of the event is the new state.
A claim is known by driver, attempt and start: a driver that comes back after its lease ended is told LeaseLost.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from sqlalchemy import Connection, Row, and_, case, exists, select, update

from raymsa.errors import Cancelled, LeaseLost, NotFound, UsageError
from raymsa.store.engine import Store
from raymsa.store.queries import Task
from raymsa.store.records import insert_event
from raymsa.store.tables import jobs, runs, tasks

MAX_ATTEMPTS = 5

# Whose turn it is: highest priority, then first submitted, with all earlier tasks of its job done. Made once: making
# a statement takes longer than running it. SKIP LOCKED is for PostgreSQL, where two claims at one moment take
# different rows; SQLite has one writer at a time, and SQLAlchemy leaves it out.
_EARLIER = tasks.alias("earlier")
_WAITS = exists().where(_EARLIER.c.job_id == tasks.c.job_id, _EARLIER.c.seq < tasks.c.seq, _EARLIER.c.state != "done")
TURN = (
    select(tasks.c.id)
    .where(tasks.c.state == "queued", ~_WAITS)
    .order_by(tasks.c.priority.desc(), tasks.c.id)
    .limit(1)
    .with_for_update(skip_locked=True, of=tasks)
)


class NewTask(NamedTuple):
    """A task to be; `payload` is plain data, all that a driver needs to do it."""

    kind: str
    payload: dict[str, Any]


class Stopped(NamedTuple):
    """What a cancel did: tasks that will not start, and running tasks whose driver was asked to stop."""

    cancelled: int
    asked: int


def put(
    store: Store,
    name: str,
    spec: dict[str, Any],
    tasks: Sequence[NewTask],
    *,
    submitted_by: str,
    folder: str,
    git_commit: str | None,
    priority: int = 0,
    max_attempts: int = MAX_ATTEMPTS,
    now: float | None = None,
) -> str:
    """Queue a job and its tasks; returns its id, 8 hex digits. Raises UsageError for a job without tasks."""
    if not tasks:
        raise UsageError(f"job {name}: there is nothing to do in it")
    at = _now(now)
    job = {"name": name, "spec": spec, "submitted_by": submitted_by, "folder": folder, "git_commit": git_commit}
    common = {"state": "queued", "priority": priority, "attempts": 0, "max_attempts": max_attempts, "created_at": at}
    with store.write() as connection:
        job_id = _new_id(connection)
        connection.execute(jobs.insert().values(id=job_id, created_at=at, **job))
        _insert_tasks(connection, job_id, tasks, common, submitted_by)
    return job_id


def claim(
    store: Store, driver: str, lease_s: float, job_id: str | None = None, *, now: float | None = None
) -> Task | None:
    """The next task, now held by `driver` for `lease_s`; None when nothing can start. A dead driver's task counts."""
    with store.write() as connection:
        at = _now(now)  # now, not before: getting the turn to write can take seconds of the lease
        held = {"state": "running", "driver": driver, "lease_until": at + lease_s, "started_at": at, "error": None}
        _expire(connection, at, who=driver)
        # One statement picks and takes: no two drivers can get the same task.
        taking = update(tasks).where(tasks.c.id == _next_id(job_id)).values(attempts=tasks.c.attempts + 1, **held)
        taking = taking.returning(tasks)
        row = connection.execute(taking).one_or_none()
        if row is None:
            return None
        _tell(connection, [row], f"attempt {row.attempts} of {row.max_attempts}", driver, at)
        return Task(**row._mapping)


def renew(store: Store, task: Task, lease_s: float, *, now: float | None = None) -> None:
    """Hold on to a task for another `lease_s`. Raises LeaseLost, and Cancelled when somebody cancelled it."""
    with store.write() as connection:
        row = _change(connection, task, lease_until=_now(now) + lease_s)
    if row.cancel_requested:  # the lease is longer all the same: stopping takes time
        raise Cancelled(f"task {task.id} ({task.kind}) of job {task.job_id} was cancelled")


def finish(store: Store, task: Task, *, now: float | None = None) -> None:
    """A task is done. Raises LeaseLost."""
    _end(store, task, "done", None, now)


def fail(store: Store, task: Task, error: str, *, now: float | None = None) -> None:
    """A task ended with an error, and will not be tried again unless somebody says so. Raises LeaseLost."""
    _end(store, task, "failed", error, now)


def cancelled(store: Store, task: Task, *, now: float | None = None) -> None:
    """The driver stopped a task that somebody cancelled. Raises LeaseLost."""
    _end(store, task, "cancelled", None, now)


def release(store: Store, task: Task, *, now: float | None = None) -> None:
    """Give a task back: it keeps its place and the attempt does not count. Raises LeaseLost.

    If somebody cancelled it meanwhile, it becomes cancelled instead.
    """
    at = _now(now)
    asked = tasks.c.cancel_requested
    back = {
        "state": case((asked, "cancelled"), else_="queued"),
        "finished_at": case((asked, at), else_=None),
        "attempts": tasks.c.attempts - 1,
        "lease_until": None,
    }
    with store.write() as connection:
        row = _change(connection, task, **back)
        _tell(connection, [row], "released", str(task.driver), at)


def cancel(store: Store, job_id: str, who: str, *, now: float | None = None) -> Stopped:
    """Cancel a job: queued tasks at once, running ones when their driver next renews. Raises NotFound."""
    at = _now(now)
    of_job = tasks.c.job_id == job_id
    with store.write() as connection:
        _must_exist(connection, job_id)
        asking = update(tasks).where(of_job, tasks.c.state == "running", ~tasks.c.cancel_requested)
        asked = connection.execute(asking.values(cancel_requested=True).returning(tasks)).all()
        for row in asked:
            insert_event(connection, "cancel requested", job_id=job_id, task_id=row.id, who=who, at=at)
        dead = [row for row in _expire(connection, at, who) if row.job_id == job_id and row.state == "cancelled"]
        ending = update(tasks).where(of_job, tasks.c.state == "queued")
        ended = connection.execute(ending.values(state="cancelled", finished_at=at).returning(tasks)).all()
        _tell(connection, ended, "before it started", who, at)
    running = {row.id for row in asked} - {row.id for row in dead}
    return Stopped(cancelled=len(ended) + len(dead), asked=len(running))


def retry(store: Store, job_id: str, who: str, *, now: float | None = None) -> int:
    """Queue a job's failed and cancelled tasks again; returns how many. Raises NotFound, or UsageError if none."""
    at = _now(now)
    fresh = {"state": "queued", "attempts": 0, "cancel_requested": False, "error": None}
    with store.write() as connection:
        _must_exist(connection, job_id)
        _expire(connection, at, who)
        states = set(connection.execute(select(tasks.c.state).where(tasks.c.job_id == job_id)).scalars())
        if "running" in states:
            raise UsageError(f"job {job_id} still runs; wait for it, or cancel it first")
        again = update(tasks).where(tasks.c.job_id == job_id, tasks.c.state.in_(("failed", "cancelled")))
        cleared = {"driver": None, "started_at": None, "finished_at": None}
        rows = connection.execute(again.values(**fresh, **cleared).returning(tasks)).all()
        if not rows:
            raise UsageError(f"job {job_id} has no failed or cancelled task to retry; it is {_describe(states)}")
        again_too = update(runs).where(runs.c.job_id == job_id, runs.c.state.in_(("failed", "cancelled")))
        connection.execute(again_too.values(state="queued", error=None, finished_at=None))
        _tell(connection, rows, "retry", who, at)
    return len(rows)


def job_state(tasks: Iterable[Task]) -> str:
    """A job's state from its tasks': failed, cancelled, done, running or queued."""
    states = [task.state for task in tasks]
    for state in ("failed", "cancelled"):
        if state in states:
            return state
    if all(state == "done" for state in states):
        return "done"
    return "running" if "running" in states else "queued"


def _describe(states: set[str]) -> str:
    return "done" if states == {"done"} else "queued"


def _now(now: float | None) -> float:
    return time.time() if now is None else now


def _new_id(connection: Connection) -> str:
    # 32 bits: among 10,000 jobs, two would share an id once in a hundred stores.
    while True:
        job_id = secrets.token_hex(4)
        if not connection.execute(select(exists().where(jobs.c.id == job_id))).scalar():
            return job_id


def _insert_tasks(
    connection: Connection, job_id: str, new: Sequence[NewTask], common: dict[str, Any], who: str
) -> None:
    for seq, task in enumerate(new):
        values = {"job_id": job_id, "seq": seq, "kind": task.kind, "payload": task.payload, **common}
        row = connection.execute(tasks.insert().values(values).returning(tasks)).one()
        _tell(connection, [row], "submitted", who, common["created_at"])


def _next_id(job_id: str | None) -> Any:
    """The id of the task whose turn it is, perhaps of one job only."""
    return (TURN if job_id is None else TURN.where(tasks.c.job_id == job_id)).scalar_subquery()


def _expire(connection: Connection, at: float, who: str) -> list[Row[Any]]:
    """Take running tasks from drivers whose lease ended; returns them as they are now."""
    dead = select(tasks).where(tasks.c.state == "running", tasks.c.lease_until < at)
    rows = connection.execute(dead.order_by(tasks.c.id).with_for_update(skip_locked=True)).all()
    return [_take_from_dead(connection, row, at, who) for row in rows]


def _take_from_dead(connection: Connection, row: Row[Any], at: float, who: str) -> Row[Any]:
    silent = f"driver {row.driver} was silent for longer than its lease"
    state, error = "queued", None
    if row.cancel_requested:
        state = "cancelled"
    elif row.attempts >= row.max_attempts:
        state, error = "failed", f"gave up after {row.attempts} attempts: {silent}"
    end = None if state == "queued" else at
    values = {"state": state, "error": error, "finished_at": end, "lease_until": None}
    changed = connection.execute(update(tasks).where(tasks.c.id == row.id).values(values).returning(tasks)).one()
    _tell(connection, [changed], error or silent, who, at)
    return changed


def _end(store: Store, task: Task, state: str, error: str | None, now: float | None) -> None:
    at = _now(now)
    with store.write() as connection:
        row = _change(connection, task, state=state, finished_at=at, lease_until=None, error=error)
        _tell(connection, [row], error or "", str(task.driver), at)


def _change(connection: Connection, task: Task, **values: Any) -> Row[Any]:
    """Change a task this claim still holds. Raises LeaseLost."""
    claimed = and_(*(tasks.c[name] == getattr(task, name) for name in ("id", "driver", "attempts", "started_at")))
    held = update(tasks).where(claimed, tasks.c.state == "running")
    changed = connection.execute(held.values(values).returning(tasks))
    row = changed.one_or_none()
    if row is None:
        raise LeaseLost(_who_has(connection, task))
    return row


def _who_has(connection: Connection, task: Task) -> str:
    row = connection.execute(select(tasks.c.state, tasks.c.driver).where(tasks.c.id == task.id)).one_or_none()
    now = "is gone" if row is None else f"is {row.state}" + (f" at {row.driver}" if row.state == "running" else "")
    return f"task {task.id} ({task.kind}) of job {task.job_id} {now}; {task.driver} no longer holds it"


def _must_exist(connection: Connection, job_id: str) -> None:
    if not connection.execute(select(exists().where(jobs.c.id == job_id))).scalar():
        raise NotFound(f"no job {job_id!r} in the store")


def _tell(connection: Connection, rows: Iterable[Row[Any]], detail: str, who: str, at: float) -> None:
    """The event of a change, and the same change for runs that the task had not finished."""
    for row in rows:
        if row.state in ("queued", "cancelled", "failed"):
            unfinished = runs.c.state.in_(("queued", "running"))
            connection.execute(update(runs).where(runs.c.task_id == row.id, unfinished).values(state=row.state))
        insert_event(connection, row.state, job_id=row.job_id, task_id=row.id, detail=detail, who=who, at=at)
