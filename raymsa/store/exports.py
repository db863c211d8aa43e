"""The store, or some of its jobs, written to a file or folder that any other store takes in (see imports.py)."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Collection
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from sqlalchemy import ColumnElement, Table, or_, select, true

from raymsa.errors import RaymsaError, UsageError
from raymsa.store import tables
from raymsa.store.engine import Store
from raymsa.store.rows import ORDER

BATCH = 1_000  # rows in memory at a time
Edit = Callable[[Table, dict[str, Any]], dict[str, Any] | None]


def export(
    store: Store,
    path: Path,
    job_ids: Collection[str] | None = None,
    run_ids: Collection[str] | None = None,
    edit: Edit | None = None,
) -> dict[str, int]:
    """Write one moment of a store: JSON lines if the name ends in .jsonl, else a folder of Parquet files.

    With `job_ids`, only these jobs and all that hangs on them; with `run_ids`, of their runs only these. `edit` changes
    each row, or leaves it out. Returns how many rows of each table. What is there under the name is whole. Raises
    UsageError when the name is taken, RaymsaError when it cannot be written.
    """
    if path.exists():
        raise UsageError(f"{path}: is there already; name another, or remove it first")
    counts: Counter[str] = Counter()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _writer(path) as writer, store.snapshot() as connection:
            for table in ORDER:
                chosen = select(table).where(_of(table, job_ids, run_ids)).order_by(*table.primary_key)
                found = connection.execute(chosen, execution_options={"yield_per": BATCH})
                for some in found.mappings().partitions():
                    rows = some if edit is None else [row for row in (edit(table, dict(one)) for one in some) if row]
                    writer.write(table, rows)
                    counts[table.name] += len(rows)
            writer.end(counts)
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)  # Arrow makes a sentence of it
        raise RaymsaError(f"{path}: cannot be written: {reason}") from None
    return {table.name: counts[table.name] for table in ORDER}


def _writer(path: Path) -> AbstractContextManager[Any]:
    if path.suffix == ".jsonl":
        from raymsa.store import jsonl

        return jsonl.writer(path)
    from raymsa.store import parquet

    return parquet.writer(path)


def _of(table: Table, job_ids: Collection[str] | None, run_ids: Collection[str] | None) -> ColumnElement[bool]:
    """Rows of some jobs, or of some of their runs: of a child, those whose parents all are."""
    if job_ids is None:
        return true()
    if table is tables.jobs:
        return table.c.id.in_(job_ids)
    if table is tables.events:
        told = true() if run_ids is None else or_(table.c.run_id.is_(None), table.c.run_id.in_(run_ids))
        return table.c.job_id.in_(job_ids) & told
    held: ColumnElement[bool] = table.c.id.in_(run_ids) if table is tables.runs and run_ids is not None else true()
    for key in table.foreign_keys:
        parents = select(key.column).where(_of(key.column.table, job_ids, run_ids))
        held &= or_(key.parent.is_(None), key.parent.in_(parents))
    return held
