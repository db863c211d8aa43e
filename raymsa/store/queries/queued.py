"""Jobs, their tasks, and what happened to them."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import func, select

from raymsa.errors import NotFound
from raymsa.store import tables
from raymsa.store.engine import Store
from raymsa.store.queries.finding import equal_to, only, read_rows, starting, whole
from raymsa.store.queries.nouns import Event, Job, Task
from raymsa.store.states import ENDED, LIVE, state_of


def jobs(store: Store, ids: Sequence[str] | None = None) -> list[Job]:
    """Every job, or those with these ids, oldest first."""
    table = tables.jobs
    found = select(table) if ids is None else select(table).where(table.c.id.in_(ids))
    return read_rows(store, Job, found.order_by(table.c.created_at, table.c.id))


def job(store: Store, prefix: str) -> Job:
    """The job with this id, the start of an id, or name. Raises NotFound, or UsageError when several fit."""
    table = tables.jobs
    fits = starting(store, table.c.id, prefix).union(select(table.c.id).where(table.c.name == prefix))
    found = select(table.c.id, table.c.name).where(table.c.id.in_(fits)).order_by(table.c.created_at, table.c.id)
    with store.read() as connection:  # ids first: specs are long, and a name may fit thousands
        shown = [(row.id, f"{row.id} ({row.name})") for row in connection.execute(found)]
    return whole(store, Job, table, only(shown, prefix, "job"))


def job_states(store: Store, job_id: str | None = None) -> dict[str, set[str]]:
    """The states of every job's tasks, or of one job's; `states.state_of` makes one word of them."""
    table = tables.tasks
    told = equal_to(table, job_id=job_id).with_only_columns(table.c.job_id, table.c.state).distinct()
    found: dict[str, set[str]] = {}
    with store.read() as connection:
        for row in connection.execute(told):
            found.setdefault(row.job_id, set()).add(row.state)
    return found


def state(store: Store, job_id: str) -> str:
    """A job's state. Raises NotFound when it was removed meanwhile: it has none, and `done` would be a lie."""
    states = job_states(store, job_id).get(job_id)
    if states is None:
        raise NotFound(f"job {job_id} was removed from the store")
    return state_of(states)


def running_tasks(store: Store) -> list[Task]:
    """The tasks that drivers hold."""
    return read_rows(store, Task, equal_to(tables.tasks, state="running").order_by(tables.tasks.c.id))


def awaited(store: Store, job_id: str) -> list[Task]:
    """What a job's tasks wait for: tasks of other jobs that are not done."""
    waits, mine, other = tables.waits, tables.tasks.alias("mine"), tables.tasks
    linked = select(waits.c.after_id).join(mine, mine.c.id == waits.c.task_id).where(mine.c.job_id == job_id)
    foreign = select(other).where(other.c.id.in_(linked), other.c.job_id != job_id, other.c.state != "done")
    return read_rows(store, Task, foreign.order_by(other.c.id))


def something_to_do(store: Store, job_id: str | None = None) -> bool:
    """Whether a task, or one of a job, runs or will be started without anybody's doing: one behind a failed one waits
    for `retry`."""
    early, late, waits = tables.tasks.alias("early"), tables.tasks, tables.waits
    stuck = select(late.c.id).where(late.c.state.in_(("failed", "cancelled", "paused"))).cte("stuck", recursive=True)
    stuck = stuck.union(select(waits.c.task_id).join(stuck, stuck.c.id == waits.c.after_id))
    live = select(early.c.id).where(early.c.state.in_(LIVE), early.c.id.not_in(select(stuck.c.id)))
    live = live if job_id is None else live.where(early.c.job_id == job_id)
    with store.read() as connection:
        return connection.execute(live.limit(1)).first() is not None


def tasks(store: Store, job_id: str | None = None) -> list[Task]:
    """A job's tasks in their order, or every task."""
    return read_rows(store, Task, equal_to(tables.tasks, job_id=job_id).order_by(tables.tasks.c.id))


def events(store: Store, job_id: str | None = None) -> list[Event]:
    """What happened to a job and its tasks and runs, oldest first."""
    return read_rows(store, Event, equal_to(tables.events, job_id=job_id).order_by(tables.events.c.id))


def untold(store: Store, who: str, told: Sequence[str]) -> list[str]:
    """Jobs that are over, of which `who` (the end of a name) ended a task last and has not recorded `told` since."""
    table = tables.events
    mine = [table.c.job_id.is_not(None), table.c.who.endswith(who, autoescape=True)]
    last = select(table.c.job_id, func.max(table.c.id).label("id")).group_by(table.c.job_id)
    ended = last.where(*mine, table.c.task_id.is_not(None), table.c.what.in_(ENDED)).subquery()
    since = last.where(*mine, table.c.what.in_(told)).subquery()
    found = select(ended.c.job_id).outerjoin(since, since.c.job_id == ended.c.job_id)
    found = found.where(func.coalesce(since.c.id, 0) < ended.c.id).order_by(ended.c.id)
    with store.read() as connection:
        ids = list(connection.execute(found).scalars())
    return [job_id for job_id in ids if (states := job_states(store, job_id)) and state_of(states[job_id]) in ENDED]
