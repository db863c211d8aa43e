"""Reads. Rows come back as frozen dataclasses, numbers that were not a number as NaN (see tables.py)."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from sqlalchemy import Column, Select, Table, and_, func, or_, select, true

from raymsa.errors import NotFound, UsageError
from raymsa.store import tables
from raymsa.store.engine import Store
from raymsa.store.states import ENDED, LIVE, state_of

CANDIDATES = 8  # named when a prefix fits several
AT_ONCE = 5_000  # runs asked about in one statement
LAST = "\U0010ffff"  # no character comes after it


@dataclass(frozen=True)
class Job:
    """What a person submitted; its state is `state_of` those of its tasks."""

    id: str
    name: str
    spec: dict[str, Any]
    created_at: float
    submitted_by: str
    folder: str
    git_commit: str | None


@dataclass(frozen=True)
class Task:
    """What the queue hands out. `driver` and `attempts` say which claim this is."""

    id: int
    job_id: str
    seq: int
    kind: str
    payload: dict[str, Any]
    state: str
    priority: int
    attempts: int
    max_attempts: int
    driver: str | None
    lease_until: float | None
    not_before: float | None
    deadline: float | None
    asked: str | None
    created_at: float
    started_at: float | None
    finished_at: float | None
    error: str | None
    cause: str | None
    said: str | None


@dataclass(frozen=True)
class RunRow:
    """One training as recorded; None where there is no number yet."""

    id: str
    job_id: str
    task_id: int | None
    variant: str
    seed: int
    group_key: str
    spec: dict[str, Any]
    spec_digest: str
    data_digest: str | None
    state: str
    attempts: int
    started_at: float | None
    finished_at: float | None
    error: str | None
    versions: dict[str, Any] | None
    git_commit: str | None
    wall_s: float
    device_s: float
    peak_memory_bytes: int | None
    trainable_parameters: int | None
    steps_total: int | None
    step: int | None
    epoch: int | None
    best_epoch: int | None
    valid_error: float | None
    data_wait: float | None
    failures: int
    cause: str | None
    not_before: float | None
    place: str | None
    left_s: float | None
    heard_at: float | None


@dataclass(frozen=True)
class Step:
    run_id: str
    step: int
    name: str
    value: float
    epoch: int | None
    at: float


@dataclass(frozen=True)
class Prediction:
    """One clip's score, or class counted from 0. `text` is the answer, if in words.

    An unparsable answer counts as the middle of the range, or as -1 for classes, and has `parsed` false.
    """

    run_id: str
    split: str
    clip_id: str
    label: float
    score: float
    text: str | None
    parsed: bool
    in_range: bool


@dataclass(frozen=True)
class Artifact:
    run_id: str
    name: str
    path: str
    bytes: int | None


@dataclass(frozen=True)
class Event:
    """`what` is the new state of the task or run, or `cancel requested`; `detail` says why."""

    id: int
    at: float
    job_id: str | None
    task_id: int | None
    run_id: str | None
    what: str
    detail: str
    who: str


Row = TypeVar("Row", Job, Task, RunRow, Step, Prediction, Artifact, Event)


def jobs(store: Store, ids: Sequence[str] | None = None) -> list[Job]:
    """Every job, or those with these ids, oldest first."""
    table = tables.jobs
    found = select(table) if ids is None else select(table).where(table.c.id.in_(ids))
    return _rows(store, Job, found.order_by(table.c.created_at, table.c.id))


def job(store: Store, prefix: str) -> Job:
    """The job with this id, the start of an id, or name. Raises NotFound, or UsageError when several fit."""
    table = tables.jobs
    fits = _starting(store, table.c.id, prefix).union(select(table.c.id).where(table.c.name == prefix))
    found = select(table.c.id, table.c.name).where(table.c.id.in_(fits)).order_by(table.c.created_at, table.c.id)
    with store.read() as connection:  # ids first: specs are long, and a name may fit thousands
        shown = [(row.id, f"{row.id} ({row.name})") for row in connection.execute(found)]
    return _whole(store, Job, table, _only(shown, prefix, "job"))


def job_states(store: Store, job_id: str | None = None) -> dict[str, set[str]]:
    """The states of every job's tasks, or of one job's; `states.state_of` makes one word of them."""
    found: dict[str, set[str]] = {}
    with store.read() as connection:
        rows = (
            _of(tables.tasks, job_id=job_id).with_only_columns(tables.tasks.c.job_id, tables.tasks.c.state).distinct()
        )
        for row in connection.execute(rows):
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
    return _rows(store, Task, _of(tables.tasks, state="running").order_by(tables.tasks.c.id))


def awaited(store: Store, job_id: str) -> list[Task]:
    """What a job's tasks wait for: tasks of other jobs that are not done."""
    waits, mine, other = tables.waits, tables.tasks.alias("mine"), tables.tasks
    linked = select(waits.c.after_id).join(mine, mine.c.id == waits.c.task_id).where(mine.c.job_id == job_id)
    foreign = select(other).where(other.c.id.in_(linked), other.c.job_id != job_id, other.c.state != "done")
    return _rows(store, Task, foreign.order_by(other.c.id))


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
    return _rows(store, Task, _of(tables.tasks, job_id=job_id).order_by(tables.tasks.c.id))


def runs(store: Store, job_id: str | None = None) -> list[RunRow]:
    """A job's runs, or every run, by job, variant and seed."""
    table = tables.runs
    return _rows(store, RunRow, _of(table, job_id=job_id).order_by(table.c.job_id, table.c.variant, table.c.seed))


def group(store: Store, group_key: str) -> list[RunRow]:
    """The runs that differ by seed only, of all jobs, oldest first."""
    table = tables.runs
    return _rows(store, RunRow, _of(table, group_key=group_key).order_by(table.c.started_at, table.c.id))


def run(store: Store, prefix: str) -> RunRow:
    """The run with this id or the start of an id. Raises NotFound, or UsageError when several fit."""
    with store.read() as connection:
        found = sorted(connection.execute(_starting(store, tables.runs.c.id, prefix)).scalars())
    return _whole(store, RunRow, tables.runs, _only([(id_, id_) for id_ in found], prefix, "run"))


def steps(store: Store, run_id: str, names: Collection[str] = (), since: int = 0) -> list[Step]:
    """What a run reported while it trained, in order of steps: all of it, or under some names, from a step on."""
    table = tables.steps
    found = _of(table, run_id=run_id).where(table.c.step >= since)
    if names:
        found = found.where(table.c.name.in_(names))
    return _rows(store, Step, found.order_by(table.c.step, table.c.name))


def by_epoch(store: Store, job_id: str, name: str, run_id: str | None = None) -> dict[str, dict[int, float]]:
    """What a job's runs, or one of them, reported under one name, in order: run -> epoch -> value."""
    table, of = tables.steps, tables.runs
    told = select(table.c.run_id, table.c.epoch, table.c.value).join(of, of.c.id == table.c.run_id)
    result: dict[str, dict[int, float]] = {}
    with store.read() as connection:
        mine = of.c.job_id == job_id if run_id is None else of.c.id == run_id
        for row in connection.execute(told.where(mine, table.c.name == name).order_by(table.c.step)):
            result.setdefault(row.run_id, {})[row.epoch] = row.value
    return result


def done_on(store: Store, data_digest: str) -> list[RunRow]:
    """The finished runs of all jobs on these clips, oldest first."""
    table = tables.runs
    found = _of(table, state="done", data_digest=data_digest)
    return _rows(store, RunRow, found.order_by(table.c.finished_at, table.c.id))


def finished(
    store: Store,
    jobs: Sequence[str] | None = None,
    groups: Sequence[str] | None = None,
    data: Sequence[str] | None = None,
) -> list[RunRow]:
    """Finished runs, oldest first: of all jobs, or of these jobs or groups, or on these clips."""
    table = tables.runs
    given = ((table.c.job_id, jobs), (table.c.group_key, groups), (table.c.data_digest, data))
    wanted = [column.in_(values) for column, values in given if values is not None]
    found = _of(table, state="done").where(or_(*wanted) if wanted else true())
    return _rows(store, RunRow, found.order_by(table.c.finished_at, table.c.id))


def group_key(store: Store, prefix: str) -> str:
    """The group with this key or the start of one. Raises NotFound, or UsageError when several fit."""
    column = tables.runs.c.group_key
    with store.read() as connection:
        found = connection.execute(_starting(store, column, prefix).distinct().limit(CANDIDATES + 1)).scalars()
        return _only([(key, key) for key in sorted(found)], prefix, "group")


def all_finals(store: Store, run_ids: Sequence[str]) -> dict[str, dict[str, dict[str, float]]]:
    """The final metrics of many runs: run -> split -> name -> value."""
    table = tables.finals
    found: dict[str, dict[str, dict[str, float]]] = {run_id: {} for run_id in run_ids}
    columns = select(table.c.run_id, table.c.split, table.c.name, table.c.value)
    for run_id, split, name, value in _of_runs(store, columns, table.c.run_id, run_ids):
        found[run_id].setdefault(split, {})[name] = value
    return found


def last_rates(store: Store, run_ids: Sequence[str]) -> dict[str, float]:
    """Clips per second of many runs, as each said with its last step."""
    of, table = tables.runs, tables.steps
    last = and_(table.c.run_id == of.c.id, table.c.step == of.c.step, table.c.name == "clips_per_s")
    found = select(of.c.id, table.c.value).join(table, last)
    return dict(map(tuple, _of_runs(store, found, of.c.id, run_ids)))


def score_ranges(store: Store, run_ids: Sequence[str], split: str) -> dict[str, tuple[float, float, int]]:
    """Of many runs, the lowest and the highest score on a split and the number of clips, where there are any."""
    table = tables.predictions
    figures = (func.min(table.c.score), func.max(table.c.score), func.count())
    found = select(table.c.run_id, *figures).where(table.c.split == split).group_by(table.c.run_id)
    return {run_id: (low, high, n) for run_id, low, high, n in _of_runs(store, found, table.c.run_id, run_ids)}


def clip_counts(store: Store, run_ids: Sequence[str], split: str) -> dict[str, int]:
    """How many clips of a split each of many runs has scored; from the index alone."""
    table = tables.predictions
    found = select(table.c.run_id, func.count()).where(table.c.split == split).group_by(table.c.run_id)
    return dict(map(tuple, _of_runs(store, found, table.c.run_id, run_ids)))


def finals(store: Store, run_id: str) -> dict[str, dict[str, float]]:
    """A run's final metrics as `records.finish_run` was given them: split -> name -> value."""
    result: dict[str, dict[str, float]] = {}
    with store.read() as connection:
        for row in connection.execute(_of(tables.finals, run_id=run_id).order_by(tables.finals.c.name)):
            result.setdefault(row.split, {})[row.name] = row.value
    return result


def predictions(store: Store, run_id: str, split: str | None = None) -> list[Prediction]:
    """A run's score for each clip, of one split or all."""
    table = tables.predictions
    found = _of(table, run_id=run_id, split=split).order_by(table.c.split, table.c.clip_id)
    return _rows(store, Prediction, found)


def artifacts(store: Store, run_id: str) -> list[Artifact]:
    """The files and folders a run left."""
    return _rows(store, Artifact, _of(tables.artifacts, run_id=run_id).order_by(tables.artifacts.c.name))


def events(store: Store, job_id: str | None = None) -> list[Event]:
    """What happened to a job and its tasks and runs, oldest first."""
    return _rows(store, Event, _of(tables.events, job_id=job_id).order_by(tables.events.c.id))


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


def _of(table: Table, **equal: str | None) -> Select[Any]:
    given = {name: value for name, value in equal.items() if value is not None}
    return select(table).where(*(table.c[name] == value for name, value in given.items()))


def _rows(store: Store, row_type: type[Row], statement: Select[Any]) -> list[Row]:
    with store.read() as connection:
        return [row_type(**row._mapping) for row in connection.execute(statement)]


def _of_runs(store: Store, found: Select[Any], column: Column[Any], run_ids: Sequence[str]) -> Iterator[Any]:
    """Rows of a statement for many runs, some thousand at a time: a statement has a limited number of parameters."""
    with store.read() as connection:
        for at in range(0, len(run_ids), AT_ONCE):
            yield from connection.execute(found.where(column.in_(run_ids[at : at + AT_ONCE])))


def _whole(store: Store, row_type: type[Row], table: Table, row_id: str) -> Row:
    rows = _rows(store, row_type, _of(table, id=row_id))
    if not rows:
        raise NotFound(f"{row_id} was removed from the store just now")
    return rows[0]


def _starting(store: Store, column: Column[Any], prefix: str) -> Select[Any]:
    """Ids (or keys) with this beginning, from their index alone."""
    if store.engine.dialect.name == "sqlite":  # whose LIKE ignores case, and no index then
        return select(column).where(column.between(prefix, prefix + LAST))
    # Not a range: PostgreSQL's order depends on the locale.
    return select(column).where(column.startswith(prefix, autoescape=True))


def _only(found: Sequence[tuple[str, str]], prefix: str, noun: str) -> str:
    """The one id that fits; an id given in full wins. Each is (id, how to show it)."""
    if any(row_id == prefix for row_id, _ in found):
        return prefix
    if not prefix or not found:
        raise NotFound(f"no {noun} {prefix!r} in the store")
    if len(found) > 1:
        shown = ", ".join(label for _, label in found[:CANDIDATES])
        more = f" and {len(found) - CANDIDATES} more" if len(found) > CANDIDATES else ""
        raise UsageError(f"{prefix!r} could be {shown}{more}; give more of the id")
    return found[0][0]
