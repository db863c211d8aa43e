"""The queue, as people see it: cancel, pause, resume, retry and remove jobs. The states are drawn in queue.py."""

from __future__ import annotations

from typing import Any, NamedTuple

from sqlalchemy import Connection, delete, select, update

from raymsa.errors import UsageError
from raymsa.queue import expire, must_exist, tell
from raymsa.store.engine import Store
from raymsa.store.records import insert_event
from raymsa.store.states import state_of
from raymsa.store.tables import jobs, runs, tasks, waits

FRESH = {"attempts": 0, "asked": None, "error": None, "cause": None, "said": None, "not_before": None, "deadline": None}


class Ended(NamedTuple):
    """What cancel or pause did: tasks that will not start, and running tasks whose driver was asked to stop."""

    ended: int
    asked: int


def cancel(store: Store, job_id: str, who: str, *, now: float | None = None) -> Ended:
    """Cancel a job: queued and paused tasks at once, running ones when their driver next renews. Raises NotFound."""
    return _end(store, job_id, who, "cancelled", ("queued", "paused"), now)


def pause(store: Store, job_id: str, who: str, *, now: float | None = None) -> Ended:
    """Pause a job: queued tasks at once, running ones with a checkpoint when their driver next renews.

    Raises NotFound.
    """
    return _end(store, job_id, who, "paused", ("queued",), now)


def resume(store: Store, job_id: str, who: str, *, now: float | None = None) -> int:
    """Queue a job's paused tasks again, in their old place; returns how many. Raises NotFound."""
    with store.write() as connection:
        at = _at(store, connection, job_id, who, now)
        of_job = tasks.c.job_id == job_id
        unasked = update(tasks).where(of_job, tasks.c.state == "running", tasks.c.asked == "paused").values(asked=None)
        still = connection.execute(unasked.returning(tasks)).all()
        for row in still:
            insert_event(connection, "go on", job_id=job_id, task_id=row.id, who=who, at=at)
        rows = connection.execute(
            update(tasks).where(of_job, tasks.c.state == "paused").values(state="queued").returning(tasks)
        ).all()
        tell(connection, rows, "resumed", who, at)
    return len(rows) + len(still)


def retry(store: Store, job_id: str, who: str, failed_only: bool = False, *, now: float | None = None) -> int:
    """Queue a job's failed and cancelled tasks again, without their deadline; returns how many.

    Raises NotFound, or UsageError if there are none.
    """
    again = ("failed",) if failed_only else ("failed", "cancelled")
    with store.write() as connection:
        at = _at(store, connection, job_id, who, now)
        states = set(connection.execute(select(tasks.c.state).where(tasks.c.job_id == job_id)).scalars())
        if "running" in states:
            raise UsageError(f"job {job_id} still runs; wait for it, or cancel it first")
        cleared = {"driver": None, "started_at": None, "finished_at": None}
        chosen = update(tasks).where(tasks.c.job_id == job_id, tasks.c.state.in_(again))
        rows = connection.execute(chosen.values(state="queued", **FRESH, **cleared).returning(tasks)).all()
        if not rows:
            raise UsageError(f"job {job_id} has no {' or '.join(again)} task to retry; it is {state_of(states)}")
        fresh = {
            "state": "queued",
            "error": None,
            "cause": None,
            "finished_at": None,
            "failures": 0,
            "not_before": None,
        }
        theirs = runs.c.task_id.in_([row.id for row in rows])  # those of a task that is done stay as they are
        connection.execute(update(runs).where(theirs, runs.c.state.in_(again)).values(fresh))
        tell(connection, rows, "retry", who, at)
    return len(rows)


def remove(store: Store, job_id: str, who: str, *, now: float | None = None) -> list[str]:
    """Take a job out of the store with all its numbers; returns the ids of its runs. What happened stays in `events`.

    Raises NotFound, or UsageError when it runs or another job waits for it.
    """
    with store.write() as connection:
        at = _at(store, connection, job_id, who, now)
        # Locked, so that nobody takes one or begins to wait for one meanwhile: it would go along with the job.
        mine = select(tasks.c.state).where(tasks.c.job_id == job_id).with_for_update()
        if "running" in connection.execute(mine).scalars().all():
            raise UsageError(f"job {job_id} still runs; cancel it first")
        if others := _waiting(connection, job_id):
            raise UsageError(f"job {job_id} cannot be removed: {', '.join(others)} waits for it; remove that first")
        gone = list(connection.execute(select(runs.c.id).where(runs.c.job_id == job_id)).scalars())
        connection.execute(delete(jobs).where(jobs.c.id == job_id))
        insert_event(connection, "removed", job_id=job_id, who=who, at=at)
    return gone


def _end(store: Store, job_id: str, who: str, state: str, from_states: tuple[str, ...], now: float | None) -> Ended:
    of_job = tasks.c.job_id == job_id
    with store.write() as connection:
        at = _at(store, connection, job_id, who, now)
        new = tasks.c.asked.is_(None) if state == "paused" else tasks.c.asked.is_distinct_from(state)
        asking = update(tasks).where(of_job, tasks.c.state == "running", new).values(asked=state)
        asked = connection.execute(asking.returning(tasks)).all()
        for row in asked:
            insert_event(connection, f"{state} asked for", job_id=job_id, task_id=row.id, who=who, at=at)
        end = at if state == "cancelled" else None
        ending = update(tasks).where(of_job, tasks.c.state.in_(from_states)).values(state=state, finished_at=end)
        ended = connection.execute(ending.returning(tasks)).all()
        tell(connection, ended, "before it started", who, at)
    return Ended(len(ended), len(asked))


def _at(store: Store, connection: Connection, job_id: str, who: str, now: float | None) -> float:
    """The moment, after a look at the job and at drivers that died."""
    must_exist(connection, job_id)
    at = store.now(connection) if now is None else now
    expire(connection, at, who)
    return at


def _waiting(connection: Connection, job_id: str) -> list[Any]:
    """Other jobs with a task that waits for one of this job and is not done."""
    early = tasks.alias("early")
    late = select(tasks.c.job_id).distinct().join(waits, waits.c.task_id == tasks.c.id)
    late = late.join(early, early.c.id == waits.c.after_id).where(early.c.job_id == job_id, tasks.c.job_id != job_id)
    return list(connection.execute(late.where(tasks.c.state != "done").order_by(tasks.c.job_id)).scalars())
