"""Taking an export into a store, in one transaction: all of it, or nothing.

A job that is there already is left as it is. Tasks get new ids, in their old order, and what refers to them follows.
A task that was not over comes in as paused: nothing starts by surprise, and `raymsa resume` says when.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from sqlalchemy import Connection, Table, select
from sqlalchemy.exc import DataError, IntegrityError

from raymsa.errors import NotFound, UsageError
from raymsa.home import run_dir
from raymsa.shape import problem_of_job, problem_of_run
from raymsa.store.engine import Store
from raymsa.store.jsonl import Found, read
from raymsa.store.records import insert_event
from raymsa.store.states import LIVE
from raymsa.store.tables import artifacts, events, jobs, metadata, runs, tasks, waits
from raymsa.words import visible

# What raymsa gives for an id: it becomes a folder's name, which `raymsa rm` removes, and a word of commands that people
# paste into a shell.
RUN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{,239}")
IDS = {
    "jobs": {"id": re.compile(r"[0-9a-f]{8}")},
    "runs": {"id": RUN_ID, "group_key": re.compile(r"[0-9a-f]{16}")},
}
SHOWN = 80  # characters of an id in an error
BATCH = 1_000  # rows inserted at a time
# Of a task that was not over, when it comes in: these were agreements with the queue it was in.
PAUSED = {"state": "paused", "lease_until": None, "asked": None, "not_before": None, "deadline": None}


class Imported(NamedTuple):
    """What an import did: jobs taken in and left out, tasks that are paused now, and rows of each table."""

    jobs: int
    already_there: int
    paused: int
    rows: dict[str, int]


def import_(
    store: Store, path: Path, who: str, *, join: bool = False, then: Callable[[], None] = lambda: None
) -> Imported:
    """Take in what `export` wrote. Raises NotFound, UsageError when the file is not as it was written, StoreError.

    With `join`, runs that a job lacks come into a job that is there already. `then` is called when all rows are in and
    before they count: what it raises undoes them.
    """
    if not path.exists():
        raise NotFound(f"{path}: no such file or folder")
    with store.write() as connection:
        there = _There(connection, join)
        intake = _Intake(connection, who, store.now(connection), there, {name: {} for name in metadata.tables})
        for found in _read(path):
            intake.add(found)
        made = intake.end()
        then()
        return made


class _There:
    """What the store had before; `runs` is None where the runs of a job are all there is to it."""

    def __init__(self, connection: Connection, join: bool) -> None:
        self.jobs = {row.id: row.created_at for row in connection.execute(select(jobs.c.id, jobs.c.created_at))}
        self.runs = set(connection.execute(select(runs.c.id)).scalars()) if join else None

    def check(self, found: Found) -> None:
        """Raises UsageError for a job that only has the same id as one that is there."""
        row = found.row
        if self.runs is not None and found.table is jobs and self.jobs.get(row["id"]) not in (None, row["created_at"]):
            raise UsageError(f"{found.where}: job {row['id']} is there already, and it is another job")


def _read(path: Path) -> Iterator[Found]:
    if path.is_dir():
        from raymsa.store import parquet

        return parquet.read(path)
    return read(path)


@dataclass
class _Intake:
    """Rows on their way into the store: which are new, and what the new ids of their tasks are."""

    connection: Connection
    who: str
    at: float
    there: _There
    known: dict[str, dict[Any, bool]]  # table -> id in the file -> is it new
    task_ids: dict[int, int] = field(default_factory=dict)  # in the file -> in the store
    places: dict[int, tuple[str, int]] = field(default_factory=dict)  # tasks that were there: job and seq
    paused: list[tuple[str, int, str]] = field(default_factory=list)  # job, id in the file, what it was
    rows: Counter[str] = field(default_factory=Counter)
    held: list[Found] = field(default_factory=list)

    def add(self, found: Found) -> None:
        """Take in a row, or leave it out if its job is there already. Raises UsageError when its parent is missing."""
        if self.held and not self._goes_along(found):
            self._flush()
        new = self._is_news(found.row) if found.table is events else self._is_new(found)
        _check_ids(found)
        _check_spec(found)
        if "id" in found.row:
            self.known[found.table.name][found.row["id"]] = new
        if found.table is tasks:
            self._look_at_task(found.row, new)
        if new and (row := self._follow(found)) is not None:
            self.held.append(found._replace(row=row))

    def end(self) -> Imported:
        """Put in what is left, and tell of the paused tasks."""
        self._flush()
        for job_id, old, state in self.paused:
            about = f"imported; it was {state}"
            task_id = self.task_ids[old]
            insert_event(
                self.connection, "paused", at=self.at, job_id=job_id, task_id=task_id, detail=about, who=self.who
            )
        new = sum(self.known["jobs"].values())
        return Imported(new, len(self.known["jobs"]) - new, len(self.paused), dict(self.rows))

    def _goes_along(self, found: Found) -> bool:
        first = self.held[0]
        return found.table is first.table and found.row.keys() == first.row.keys() and len(self.held) < BATCH

    def _is_new(self, found: Found) -> bool:
        """Whose row it is, its first reference says; a job's own row is new if the store has no such job."""
        if found.table is jobs:
            self.there.check(found)
            return found.row["id"] not in self.there.jobs
        known = [self._known(found, column, parent) for column, parent in _references(found.table)]
        return known[0] or (
            found.table is runs and self.there.runs is not None and found.row["id"] not in self.there.runs
        )

    def _known(self, found: Found, column: str, parent: str) -> bool:
        value = found.row[column]
        if value is None:
            return False
        if value not in self.known[parent]:
            raise UsageError(f"{found.where}: it belongs to {value!r} of {parent}, which is not in this export")
        return self.known[parent][value]

    def _is_news(self, row: dict[str, Any]) -> bool:
        """What happened to a job comes with it; what happened to none, or to one that was removed, comes once."""
        if row["job_id"] in self.known["jobs"]:
            return self.known["jobs"][row["job_id"]] or self._joined(row["run_id"])
        same = [events.c[name].is_not_distinct_from(row[name]) for name in row if name not in ("id", "task_id")]
        return self.connection.execute(select(events.c.id).where(*same).limit(1)).first() is None

    def _joined(self, run_id: str | None) -> bool:
        return self.there.runs is not None and self.known["runs"].get(run_id, False)

    def _look_at_task(self, row: dict[str, Any], new: bool) -> None:
        if not new:
            self.places[row["id"]] = (row["job_id"], row["seq"])
        elif row["state"] in LIVE:
            self.paused.append((row["job_id"], row["id"], row["state"]))

    def _follow(self, found: Found) -> dict[str, Any] | None:
        """The row as this store has it; None when it waits for a task that is neither here nor there."""
        table, row = found.table, found.row
        if table is tasks:
            return {**row, **PAUSED} if row["state"] in LIVE else row
        if table is events:
            return {**_without_id(row), "task_id": self._task(row["task_id"])}
        if table is runs and row["state"] == "running":
            row = {**row, "state": "queued"}
        if table is artifacts and row["name"] == "folder":
            row = {**row, "path": str(run_dir(row["run_id"]))}
        ids = {column: self._task(row[column]) for column, parent in _references(table) if parent == tasks.name}
        return None if table is waits and None in ids.values() else {**row, **ids}

    def _task(self, old: int | None) -> int | None:
        """A task's id in this store, new or not."""
        if old not in self.places:
            return self.task_ids.get(old) if old is not None else None
        job_id, seq = self.places[old]
        there = select(tasks.c.id).where(tasks.c.job_id == job_id, tasks.c.seq == seq)
        return self.connection.execute(there).scalar()

    def _flush(self) -> None:
        if not self.held:
            return
        table, rows = self.held[0].table, [found.row for found in self.held]
        try:
            self._insert(table, rows)
        except (IntegrityError, DataError) as error:  # two rows with one id, a number out of range
            reason = " ".join(str(error.orig).split())
            raise UsageError(f"{self.held[0].where}, or soon after: cannot be stored: {reason}") from None
        self.rows[table.name] += len(rows)
        self.held.clear()

    def _insert(self, table: Table, rows: list[dict[str, Any]]) -> None:
        if table is tasks:
            inserting = tasks.insert().returning(tasks.c.id, sort_by_parameter_order=True)
            made = self.connection.execute(inserting, [_without_id(row) for row in rows])
            self.task_ids.update(zip((row["id"] for row in rows), made.scalars(), strict=True))
        else:
            self.connection.execute(table.insert(), rows)


@cache
def _references(table: Table) -> tuple[tuple[str, str], ...]:
    """Columns with the names of the tables they refer to; the first says whose row it is."""
    return tuple((c.name, key.column.table.name) for c in table.columns for key in c.foreign_keys)


def _check_ids(found: Found) -> None:
    for name, form in IDS.get(found.table.name, {}).items():
        if not form.fullmatch(found.row[name]):
            given = ascii(found.row[name][:SHOWN])
            raise UsageError(f"{found.where}: {given} is no {name} of {found.table.name} that raymsa gives")


def _check_spec(found: Found) -> None:
    """Whole-store tables read every spec: one that is none would break them all."""
    problem_of = {"jobs": problem_of_job, "runs": problem_of_run}.get(found.table.name)
    if problem_of and (problem := problem_of(found.row["spec"])):
        raise UsageError(visible(f"{found.where}: {found.table.name} {found.row['id']}: {problem}"))


def _without_id(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name != "id"}
