"""Runs, alone and by what they have in common: a job, a group, the clips they were trained on."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import func, or_, select, true

from raymsa.store import tables
from raymsa.store.engine import Store
from raymsa.store.queries.finding import CANDIDATES, equal_to, only, read_rows, starting, whole
from raymsa.store.queries.nouns import Artifact, RunRow


def runs(store: Store, job_id: str | None = None) -> list[RunRow]:
    """A job's runs, or every run, by job, variant and seed."""
    table = tables.runs
    found = equal_to(table, job_id=job_id).order_by(table.c.job_id, table.c.variant, table.c.seed)
    return read_rows(store, RunRow, found)


def run(store: Store, prefix: str) -> RunRow:
    """The run with this id or the start of an id. Raises NotFound, or UsageError when several fit."""
    with store.read() as connection:
        found = sorted(connection.execute(starting(store, tables.runs.c.id, prefix)).scalars())
    return whole(store, RunRow, tables.runs, only([(id_, id_) for id_ in found], prefix, "run"))


def done_on(store: Store, data_digest: str) -> list[RunRow]:
    """The finished runs of all jobs on these clips, oldest first."""
    table = tables.runs
    found = equal_to(table, state="done", data_digest=data_digest)
    return read_rows(store, RunRow, found.order_by(table.c.finished_at, table.c.id))


def finished(store: Store, jobs: Sequence[str] | None = None, groups: Sequence[str] | None = None) -> list[RunRow]:
    """Finished runs, oldest first: of all jobs, or of these jobs or groups."""
    table = tables.runs
    given = ((table.c.job_id, jobs), (table.c.group_key, groups))
    wanted = [column.in_(values) for column, values in given if values is not None]
    found = equal_to(table, state="done").where(or_(*wanted) if wanted else true())
    return read_rows(store, RunRow, found.order_by(table.c.finished_at, table.c.id))


def done_mark(store: Store) -> tuple[int, float]:
    """How many runs are done, and when (UNIX seconds) the last was: it changes when there are others."""
    table = tables.runs
    with store.read() as connection:
        found = select(func.count(), func.max(table.c.finished_at)).where(table.c.state == "done")
        count, ended_at = connection.execute(found).one()
    return count, ended_at or 0.0


def samples(store: Store) -> list[RunRow]:
    """A finished run of every group on every set of clips."""
    table = tables.runs
    done = equal_to(table, state="done").with_only_columns(func.min(table.c.id))
    first = done.group_by(table.c.group_key, table.c.data_digest)
    return read_rows(store, RunRow, select(table).where(table.c.id.in_(first)))


def group(store: Store, group_key: str) -> list[RunRow]:
    """The runs that differ by seed only, of all jobs, oldest first."""
    table = tables.runs
    return read_rows(store, RunRow, equal_to(table, group_key=group_key).order_by(table.c.started_at, table.c.id))


def group_key(store: Store, prefix: str) -> str:
    """The group with this key or the start of one. Raises NotFound, or UsageError when several fit."""
    column = tables.runs.c.group_key
    with store.read() as connection:
        found = connection.execute(starting(store, column, prefix).distinct().limit(CANDIDATES + 1)).scalars()
        return only([(key, key) for key in sorted(found)], prefix, "group")


def artifacts(store: Store, run_id: str) -> list[Artifact]:
    """The files and folders a run left."""
    return read_rows(store, Artifact, equal_to(tables.artifacts, run_id=run_id).order_by(tables.artifacts.c.name))
