"""Questions about the whole store, in one statement each, so that they are as quick with 10,000 jobs as with ten.

A job's state is that of `states.state_of`, found here by the database; tests hold the two equal.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import JSON, Connection, Row, and_, case, func, or_, select, type_coerce

from raymsa.store.engine import Store
from raymsa.store.queries import RunRow, Task
from raymsa.store.states import RANKS, UNFINISHED, ready
from raymsa.store.tables import jobs, runs, steps, tasks, waits

NEWEST, AT_MOST = 20, 100  # jobs listed: that many of the newest, and at most so many that are not finished

_RANK = func.max(case({state: number for number, state in enumerate(RANKS)}, value=tasks.c.state))
_PER_JOB = select(tasks.c.job_id, _RANK.label("rank")).group_by(tasks.c.job_id).order_by(func.max(tasks.c.id))


@dataclass(frozen=True)
class JobLine:
    """One job of a list; `runs` counts the recorded runs by state, of `planned` ones."""

    id: str
    name: str
    state: str
    runs: dict[str, int]
    planned: int
    created_at: float
    submitted_by: str


@dataclass(frozen=True)
class Listed:
    """Jobs, oldest first, and how many of each state are not among them."""

    jobs: list[JobLine]
    hidden: dict[str, int]


@dataclass(frozen=True)
class Waiting:
    """A queued task that could start now, with its job's name."""

    task: Task
    job_name: str


@dataclass(frozen=True)
class Running:
    """A run that trains now; `clips_per_s` and `left_s` are as it last said, at `heard_at`."""

    id: str
    job_id: str
    job_name: str
    place: str | None
    epoch: int | None
    step: int | None
    steps_total: int | None
    started_at: float | None
    heard_at: float | None
    left_s: float | None
    clips_per_s: float | None


def job_counts(store: Store) -> dict[str, int]:
    """How many jobs are in each state."""
    with store.read() as connection:
        return dict(Counter(RANKS[rank] for _, rank in connection.execute(_PER_JOB).all()))


def task_counts(store: Store) -> dict[str, int]:
    """How many tasks are in each state."""
    with store.read() as connection:
        rows = connection.execute(select(tasks.c.state, func.count().label("number")).group_by(tasks.c.state))
        return {row.state: row.number for row in rows}


def listed(store: Store, everything: bool = False, states: Collection[str] = ()) -> Listed:
    """The jobs of a list: unfinished ones and the newest, or everything; of some states only, if there are any."""
    with store.read() as connection:
        every = [(job_id, RANKS[rank]) for job_id, rank in connection.execute(_PER_JOB).all()]
        fitting = [(job_id, state) for job_id, state in every if not states or state in states]
        chosen = dict(fitting if everything else _chosen(fitting))
        lines = _lines(connection, chosen, None if len(chosen) == len(every) else list(chosen))
    hidden = Counter(state for job_id, state in fitting if job_id not in chosen)
    return Listed(lines, dict(hidden))


def planned_runs(spec: Mapping[str, Any]) -> int:
    """How many runs a job means to make, as its spec says."""
    search = spec.get("search")
    if not search:
        return len(spec.get("seeds", ())) * max(1, len(spec.get("variants", ())))
    trials, again = search.get("trials") or 0, search.get("confirm") or {}
    settings = min(trials, again.get("top", 0)) + bool(again.get("default"))
    return int(trials + settings * len(again.get("seeds", ())))


def run_counts(made: Iterable[RunRow]) -> dict[str, int]:
    """How many of some runs are in each state."""
    return dict(Counter(run.state for run in made))


def names(store: Store, job_ids: Collection[str]) -> dict[str, str]:
    """The names of some jobs."""
    with store.read() as connection:
        rows = connection.execute(select(jobs.c.id, jobs.c.name).where(jobs.c.id.in_(job_ids)))
        return {row.id: row.name for row in rows}


def next_tasks(store: Store, limit: int) -> list[Waiting]:
    """The tasks that a driver would be given next, in order."""
    with store.read() as connection:
        found = select(tasks, jobs.c.name.label("job_name")).join(jobs).where(ready(store.now(connection)))
        rows = connection.execute(found.order_by(tasks.c.priority.desc(), tasks.c.id).limit(limit)).all()
    return [Waiting(Task(**{k: v for k, v in r._mapping.items() if k != "job_name"}), r.job_name) for r in rows]


def before(store: Store, task: Task) -> int:
    """How many tasks a driver would be given before this one."""
    earlier = or_(tasks.c.priority > task.priority, and_(tasks.c.priority == task.priority, tasks.c.id < task.id))
    with store.read() as connection:
        found = select(func.count()).select_from(tasks).where(ready(store.now(connection)), earlier)
        return int(connection.execute(found).scalar_one())


def ready_since(store: Store, task_id: int | None = None) -> float | None:
    """Since when (UNIX seconds) the task that waits longest could start, or this one; None if there is none."""
    other = tasks.alias("other")
    freed = select(func.max(other.c.finished_at)).join(waits, waits.c.after_id == other.c.id)
    times = [
        tasks.c.created_at,
        func.coalesce(tasks.c.not_before, 0.0),
        func.coalesce(freed.where(waits.c.task_id == tasks.c.id).scalar_subquery(), 0.0),
    ]
    greatest = func.greatest if store.engine.dialect.name == "postgresql" else func.max
    with store.read() as connection:
        found = select(func.min(greatest(*times))).where(ready(store.now(connection)))
        return connection.execute(found if task_id is None else found.where(tasks.c.id == task_id)).scalar()


def running_runs(store: Store) -> list[Running]:
    """The runs that train now, oldest first."""
    rate = and_(steps.c.run_id == runs.c.id, steps.c.step == runs.c.step, steps.c.name == "clips_per_s")
    names = [name for name in Running.__dataclass_fields__ if name not in ("job_name", "clips_per_s")]
    found = (
        select(*(runs.c[name] for name in names), jobs.c.name.label("job_name"), steps.c.value.label("clips_per_s"))
        .select_from(runs)
        .join(jobs, jobs.c.id == runs.c.job_id)
        .outerjoin(steps, rate)
        .where(runs.c.state == "running", runs.c.task_id.in_(select(tasks.c.id).where(tasks.c.state == "running")))
    )
    with store.read() as connection:
        return [Running(**row._mapping) for row in connection.execute(found.order_by(runs.c.started_at, runs.c.id))]


def device_seconds(store: Store) -> dict[str, float]:
    """Seconds that the recorded runs took, of `gpu` and of `cpu` (core seconds of the runs that used no GPU)."""
    gpus = type_coerce(runs.c.spec, JSON)["resources"]["gpus"].as_integer()
    kind = case((gpus > 0, "gpu"), else_="cpu").label("kind")
    with store.read() as connection:
        rows = connection.execute(select(kind, func.sum(runs.c.device_s)).group_by(kind))
        return {"gpu": 0.0, "cpu": 0.0} | {kind: float(seconds or 0) for kind, seconds in rows}


def failed_by_cause(store: Store) -> dict[tuple[str, str], int]:
    """How many tasks and runs stand failed: (`task` or `run`, cause) -> count."""
    found: dict[tuple[str, str], int] = {}
    with store.read() as connection:
        for noun, table in (("task", tasks), ("run", runs)):
            failed = select(table.c.cause, func.count()).where(table.c.state == "failed").group_by(table.c.cause)
            for cause, count in connection.execute(failed):
                found[noun, cause or "fault"] = count
    return found


def _chosen(jobs_: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """The newest, and unfinished ones: those that run or are paused, then those whose turn is next."""
    numbered = [(-RANKS.index(state), at) for at, (_, state) in enumerate(jobs_) if state in UNFINISHED]
    urgent = {at for _, at in heapq.nsmallest(AT_MOST, numbered)}
    return [jobs_[at] for at in sorted(urgent | set(range(max(0, len(jobs_) - NEWEST), len(jobs_))))]


def _lines(connection: Connection, states: Mapping[str, str], only: list[str] | None) -> list[JobLine]:
    """In the order of `states`; `only` None means that these are all jobs there are."""
    columns = [jobs.c[name] for name in ("id", "name", "spec", "created_at", "submitted_by")]
    about, counted = select(*columns), select(runs.c.job_id, runs.c.state, func.count().label("count"))
    counted = counted.group_by(runs.c.job_id, runs.c.state)
    if only is not None:
        about, counted = about.where(jobs.c.id.in_(only)), counted.where(runs.c.job_id.in_(only))
    made: dict[str, dict[str, int]] = {}
    for job_id, state, count in connection.execute(counted):
        made.setdefault(job_id, {})[state] = count
    rows = {row.id: row for row in connection.execute(about)}
    return [_line(rows[job_id], state, made.get(job_id, {})) for job_id, state in states.items() if job_id in rows]


def _line(row: Row[Any], state: str, made: dict[str, int]) -> JobLine:
    planned = max(planned_runs(row.spec), sum(made.values()))
    return JobLine(row.id, row.name, state, made, planned, row.created_at, row.submitted_by)
