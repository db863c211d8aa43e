"""The queue, as drivers see it: tasks of jobs, handed out under a lease. What people do to it is in orders.py.

    queued --claim--> running --finish----> done
     ^ | ^               |-----fail-------> failed      or as below, if its cause allows another try (see causes.py)
     | | |               |-----release----> queued, or what somebody asked for: cancelled, paused
     | | `---------------'     the lease expired, or the driver is known to be dead (failed after max_attempts)
     | |--cancel----------------------------> cancelled
     | |--pause / resume--------------------> paused, and back
     | `--the deadline is over--------------> failed
     `----retry---------------------------- failed, cancelled

A task starts when all tasks it waits for are done: the one before it in its job, and those of `after:`. A job has no
state of its own: `states.state_of` derives it. Whoever changes a state writes the event in the same transaction;
`what` of the event is the new state. A claim is known by driver, attempt and start: a driver that comes back after its
lease ended is told LeaseLost. Times are the store's: see `Store.now`.
"""

from __future__ import annotations

import functools
import secrets
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, Connection, Row, and_, bindparam, case, exists, func, or_, select, update
from sqlalchemy.sql.dml import ReturningUpdate

from raymsa.errors import LeaseLost, NotFound, UsageError
from raymsa.store.engine import Store
from raymsa.store.queries import Task
from raymsa.store.records import insert_event
from raymsa.store.states import LIVE, ready
from raymsa.store.tables import jobs, runs, tasks, waits

MAX_ATTEMPTS = 5
LEASE_S = 60.0  # a driver that is silent for so long is taken for dead

# Whose turn it is: highest priority, then first submitted, of those that wait for nothing. Made once: making a
# statement takes longer than running it. SKIP LOCKED is for PostgreSQL, where two claims at one moment take
# different rows; SQLite has one writer at a time, and SQLAlchemy leaves it out.
TURN = (
    select(tasks.c.id)
    .where(ready(bindparam("at")))
    .order_by(tasks.c.priority.desc(), tasks.c.id)
    .limit(1)
    .with_for_update(skip_locked=True, of=tasks)
)
_OF_JOB = TURN.where(tasks.c.job_id == bindparam("of_job"))
_CLEARED = dict.fromkeys(("error", "cause", "said", "not_before", "asked"))
_TAKEN = {"state": "running", "attempts": tasks.c.attempts + 1, "started_at": bindparam("at"), **_CLEARED}
_CLAIM = {  # one statement picks and takes: no two drivers can get the same task
    whole: update(tasks)
    .where(tasks.c.id == turn.scalar_subquery())
    .values(driver=bindparam("who"), lease_until=bindparam("until"), **_TAKEN)
    .returning(tasks)
    for whole, turn in ((True, TURN), (False, _OF_JOB))
}
_LEASE_OVER = and_(tasks.c.state == "running", tasks.c.lease_until < bindparam("at"))
_TOO_LATE = and_(tasks.c.state.in_(("queued", "paused")), tasks.c.deadline <= bindparam("at"))
_LATE = select(tasks).where(or_(_LEASE_OVER, _TOO_LATE)).with_for_update(skip_locked=True)
_CLAIMED_BY = ("id", "driver", "attempts", "started_at")
_HELD = update(tasks).where(
    *(tasks.c[name] == bindparam(f"held_{name}") for name in _CLAIMED_BY), tasks.c.state == "running"
)


class NewTask(NamedTuple):
    """A task to be; `payload` is plain data, all that a driver needs to do it."""

    kind: str
    payload: dict[str, Any]


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
    after: Iterable[int] = (),
    deadline_s: float | None = None,
    now: float | None = None,
) -> str:
    """Queue a job and its tasks; returns its id, 8 hex digits. Raises UsageError for a job without tasks.

    Its tasks run one after the other, the first when the tasks `after` are done; all have to be done in `deadline_s`.
    """
    if not tasks:
        raise UsageError(f"job {name}: there is nothing to do in it")
    job = {"name": name, "spec": spec, "submitted_by": submitted_by, "folder": folder, "git_commit": git_commit}
    common = {"state": "queued", "priority": priority, "attempts": 0, "max_attempts": max_attempts}
    with store.write() as connection:
        at = _now(store, connection, now)
        job_id = _new_id(connection)
        connection.execute(jobs.insert().values(id=job_id, created_at=at, **job))
        common |= {"created_at": at, "deadline": None if deadline_s is None else at + deadline_s}
        _insert_tasks(connection, job_id, tasks, common, submitted_by, list(after))
    return job_id


def claim(
    store: Store, driver: str, lease_s: float, job_id: str | None = None, *, now: float | None = None
) -> Task | None:
    """The next task, now held by `driver` for `lease_s`; None when nothing can start. A dead driver's task counts."""
    with store.write() as connection:
        at = _now(store, connection, now)  # now, not before: getting the turn to write can take seconds of the lease
        expire(connection, at, who=driver)
        held = {"who": driver, "until": at + lease_s, "at": at, **({} if job_id is None else {"of_job": job_id})}
        row = connection.execute(_CLAIM[job_id is None], held).one_or_none()
        if row is None:
            return None
        tell(connection, [row], f"attempt {row.attempts} of {row.max_attempts}", driver, at)
        return Task(**row._mapping)


def renew(store: Store, task: Task, lease_s: float, said: str = "", *, now: float | None = None) -> str | None:
    """Hold on to a task for another `lease_s`; returns the state somebody wants it in, or `deadline`, or None.

    `said` is what its driver said last. Raises LeaseLost.
    """
    with store.write() as connection:
        at = _now(store, connection, now)
        # Longer all the same if somebody wants it to end: stopping takes time.
        row = _change(connection, task, lease_until=at + lease_s, **({"said": said} if said else {}))
    late = row.deadline is not None and row.deadline <= at
    return row.asked or ("deadline" if late else None)


def finish(store: Store, task: Task, *, now: float | None = None) -> None:
    """A task is done. Raises LeaseLost."""
    with store.write() as connection:
        at = _now(store, connection, now)
        row = _change(connection, task, state="done", finished_at=at, lease_until=None)
        tell(connection, [row], "", str(task.driver), at)


def fail(
    store: Store,
    task: Task,
    error: str,
    cause: str = "fault",
    again_s: float | None = None,
    *,
    now: float | None = None,
) -> str:
    """A task ended with an error; it is tried again in `again_s`, unless that is None or there were enough attempts.

    What somebody asked for meanwhile comes before another try. Returns the task's new state. Raises LeaseLost.
    """
    again = again_s is not None and task.attempts < task.max_attempts
    with store.write() as connection:
        at = _now(store, connection, now)
        common = {"error": error, "cause": cause, "lease_until": None}
        if again:
            row = _change(connection, task, not_before=at + (again_s or 0), **common, **_back(at))
            later = f"; again in {again_s:.0f} s" if row.state == "queued" else ""
        else:
            row = _change(connection, task, state="failed", finished_at=at, **common)
            later = ""
        tell(connection, [row], f"{cause}: {error}{later}", str(task.driver), at)
    return str(row.state)


def release(store: Store, task: Task, *, now: float | None = None) -> str:
    """Give a task back: it keeps its place and the attempt does not count. Raises LeaseLost.

    If somebody cancelled or paused it meanwhile, it is in that state now, which is returned.
    """
    with store.write() as connection:
        at = _now(store, connection, now)
        row = _change(connection, task, attempts=tasks.c.attempts - 1, lease_until=None, **_back(at))
        tell(connection, [row], "released", str(task.driver), at)
    return str(row.state)


def gone(store: Store, driver: str, why: str, *, now: float | None = None) -> int:
    """Take what a driver holds that is known to be dead, without waiting for its lease; returns how many tasks."""
    with store.write() as connection:
        at = _now(store, connection, now)
        held = select(tasks).where(tasks.c.state == "running", tasks.c.driver == driver).with_for_update()
        return len([_take(connection, row, at, driver, why) for row in connection.execute(held).all()])


def expire(connection: Connection, at: float, who: str) -> list[Row[Any]]:
    """Take running tasks from drivers whose lease ended, and fail queued ones that are too late; returns them."""
    rows = sorted(connection.execute(_LATE, {"at": at}), key=lambda row: row.id)  # ORDER BY would make SQLite read all
    return [_end_late(connection, row, at, who) for row in rows]


def tell(connection: Connection, rows: Iterable[Row[Any]], detail: str, who: str, at: float) -> None:
    """The event of a change, and the same change for runs that the task had not finished."""
    for row in rows:
        if row.state in ("queued", "paused", "cancelled", "failed"):
            unfinished = runs.c.state.in_(LIVE)
            state = "queued" if row.state == "paused" else row.state
            connection.execute(update(runs).where(runs.c.task_id == row.id, unfinished).values(state=state))
        insert_event(connection, row.state, job_id=row.job_id, task_id=row.id, detail=detail, who=who, at=at)


def _now(store: Store, connection: Connection, now: float | None) -> float:
    return store.now(connection) if now is None else now


def _new_id(connection: Connection) -> str:
    # 32 bits: among 10,000 jobs, two would share an id once in a hundred stores.
    while True:
        job_id = secrets.token_hex(4)
        if not connection.execute(select(exists().where(jobs.c.id == job_id))).scalar():
            return job_id


def _insert_tasks(
    connection: Connection, job_id: str, new: Sequence[NewTask], common: dict[str, Any], who: str, after: list[int]
) -> None:
    for seq, task in enumerate(new):
        values = {"job_id": job_id, "seq": seq, "kind": task.kind, "payload": task.payload, **common}
        row = connection.execute(tasks.insert().values(values).returning(tasks)).one()
        if after:
            connection.execute(
                waits.insert(), [{"task_id": row.id, "after_id": other} for other in dict.fromkeys(after)]
            )
        after = [row.id]
        tell(connection, [row], "submitted", who, common["created_at"])


def _end_late(connection: Connection, row: Row[Any], at: float, who: str) -> Row[Any]:
    if row.state == "running":
        return _take(connection, row, at, who, f"driver {row.driver} was silent for longer than its lease")
    late = {"state": "failed", "finished_at": at, "error": "it was not done by its deadline", "cause": "deadline"}
    changed = connection.execute(update(tasks).where(tasks.c.id == row.id).values(late).returning(tasks)).one()
    tell(connection, [changed], "deadline", who, at)
    return changed


def _take(connection: Connection, row: Row[Any], at: float, who: str, why: str) -> Row[Any]:
    """Take a task from a dead driver: what somebody asked for happens, or it is queued again, or given up."""
    values: dict[str, Any] = {"state": row.asked or "queued", "asked": None}
    if row.asked is None and row.attempts >= row.max_attempts:
        error = f"gave up after {row.attempts} attempts: {why}"
        values |= {"state": "failed", "error": error, "cause": "lost"}
    end = at if values["state"] in ("failed", "cancelled") else None
    changing = update(tasks).where(tasks.c.id == row.id).values(finished_at=end, lease_until=None, **values)
    changed = connection.execute(changing.returning(tasks)).one()
    tell(connection, [changed], values.get("error", why), who, at)
    return changed


def _back(at: float) -> dict[str, Any]:
    """Back into the queue, or into the state that somebody asked for."""
    ended = case((tasks.c.asked == "cancelled", at), else_=None)
    return {"state": func.coalesce(tasks.c.asked, "queued"), "finished_at": ended, "asked": None}


def _change(connection: Connection, task: Task, **values: Any) -> Row[Any]:
    """Change a task this claim still holds. Raises LeaseLost."""
    plain = {name: value for name, value in values.items() if not isinstance(value, ColumnElement)}
    changing = _changing(tuple(plain))
    if len(plain) < len(values):
        changing = changing.values({name: values[name] for name in values.keys() - plain.keys()})
    given = {f"held_{name}": getattr(task, name) for name in _CLAIMED_BY}
    row = connection.execute(changing, given | {f"new_{name}": value for name, value in plain.items()}).one_or_none()
    if row is None:
        raise LeaseLost(_who_has(connection, task))
    return row


@functools.cache
def _changing(names: tuple[str, ...]) -> ReturningUpdate[Any]:
    """Setting these columns of a task that a claim still holds."""
    return _HELD.values({name: bindparam(f"new_{name}") for name in names}).returning(tasks)


def _who_has(connection: Connection, task: Task) -> str:
    row = connection.execute(select(tasks.c.state, tasks.c.driver).where(tasks.c.id == task.id)).one_or_none()
    now = "is gone" if row is None else f"is {row.state}" + (f" at {row.driver}" if row.state == "running" else "")
    return f"task {task.id} ({task.kind}) of job {task.job_id} {now}; {task.driver} no longer holds it"


def must_exist(connection: Connection, job_id: str) -> None:
    """Raises NotFound when there is no such job."""
    if not connection.execute(select(exists().where(jobs.c.id == job_id))).scalar():
        raise NotFound(f"no job {job_id!r} in the store")
