"""Writes about runs and what happened. Each function is one transaction, and recording a thing twice changes nothing.

Only the driver calls these; a training worker reports to its driver and never opens the store.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, Table, select, update

from raymsa.errors import NotFound
from raymsa.store.engine import Store
from raymsa.store.tables import artifacts as artifacts_table
from raymsa.store.tables import events, finals, predictions, runs, steps
from raymsa.store.tables import tasks as tasks_table

_EVENT = events.insert()
NEW_RUN = {"state": "queued", "attempts": 0, "wall_s": 0.0, "device_s": 0.0}


def create_runs(store: Store, rows: Iterable[Mapping[str, Any]]) -> None:
    """Enter runs (id, job_id, task_id, variant, seed, group_key, spec, spec_digest); those already there stay as is."""
    with store.write() as connection:
        for row in rows:
            insert = _dialect(connection).insert(runs).values({**NEW_RUN, **row})
            if connection.execute(insert.on_conflict_do_nothing(index_elements=["id"])).rowcount:
                about = {"run_id": row["id"], "job_id": row["job_id"], "task_id": row.get("task_id")}
                insert_event(connection, "queued", at=store.now(connection), **about)


def start_run(store: Store, run_id: str, *, who: str = "", **facts: Any) -> None:
    """A new attempt at a run begins; facts are columns of `runs`. Raises NotFound."""
    begun = {"state": "running", "attempts": runs.c.attempts + 1, "not_before": None}
    with store.write() as connection:
        at = {"started_at": store.now(connection), "finished_at": None, "error": None, "cause": None}
        _set(connection, run_id, **{**begun, **at, **facts})
        _run_event(store, connection, run_id, "running", who=who)


def update_run(store: Store, run_id: str, **facts: Any) -> None:
    """Set facts of a run that change while it trains; they are columns of `runs`. Raises NotFound."""
    with store.write() as connection:
        _set(connection, run_id, **facts)


def record_steps(
    store: Store,
    run_id: str,
    entries: Sequence[Mapping[str, Any]],
    cost: tuple[float, float] = (0.0, 0.0),
    **facts: Any,
) -> None:
    """What a run reports at some steps (`step`, `epoch`, `values`), what it cost since the last report (wall and device
    seconds), and facts; a step that is reported again is replaced. Raises NotFound."""
    with store.write() as connection:
        now = store.now(connection)
        rows = [
            {"run_id": run_id, "step": entry["step"], "epoch": entry["epoch"], "at": now, "name": name, "value": value}
            for entry in entries
            for name, value in entry["values"].items()
        ]
        last = {name: entries[-1][name] for name in ("step", "epoch")} if entries else {}
        spent = {"wall_s": runs.c.wall_s + float(cost[0]), "device_s": runs.c.device_s + float(cost[1])}
        _set(connection, run_id, heard_at=now, **spent, **last, **facts)
        _upsert(connection, steps, rows)


def finish_run(
    store: Store,
    run_id: str,
    facts: Mapping[str, Any],
    finals: Mapping[str, Mapping[str, float]],
    predictions: Iterable[Mapping[str, Any]] = (),
    artifacts: Iterable[Mapping[str, Any]] = (),
    *,
    who: str = "",
) -> None:
    """A run is done: all it gave is recorded, or nothing is. Raises NotFound.

    `finals` is split -> name -> value; predictions are mappings with split, clip_id, label, score, parsed, in_range
    and perhaps text; artifacts are mappings with name, path and bytes.
    """
    with store.write() as connection:
        before = _state(connection, run_id)
        _record_what_it_gave(connection, run_id, finals, predictions, artifacts)
        if facts:
            _set(connection, run_id, **facts)
        if before != "done":
            _set(connection, run_id, state="done", finished_at=store.now(connection), error=None, left_s=None)
            _run_event(store, connection, run_id, "done", who=who)


def fail_run(
    store: Store, run_id: str, error: str, cause: str = "fault", again_s: float | None = None, *, who: str = ""
) -> None:
    """A run ended with an error; it is queued again for in `again_s`, unless that is None. Raises NotFound."""
    with store.write() as connection:
        before, now = _state(connection, run_id), store.now(connection)
        state = "failed" if again_s is None else "queued"
        end = {"finished_at": now} if again_s is None else {"not_before": now + again_s}
        failed = {"state": state, "error": error, "cause": cause, "left_s": None, "failures": runs.c.failures + 1}
        if before == "failed":  # said twice
            return
        _set(connection, run_id, **failed, **end)
        later = "" if again_s is None else f"; again in {again_s:.0f} s"
        _run_event(store, connection, run_id, state, detail=f"{cause}: {error}{later}", who=who)


def set_run_state(
    store: Store, run_id: str, state: str, *, error: str | None = None, detail: str = "", who: str = ""
) -> None:
    """Put a run into a state, with the event if it was in another. Raises NotFound."""
    over = state in ("done", "failed", "cancelled", "pruned")
    with store.write() as connection:
        before = _state(connection, run_id)
        if before != state:
            end = store.now(connection) if over else None
            _set(connection, run_id, state=state, error=error, finished_at=end, left_s=None)
            _run_event(store, connection, run_id, state, detail=error or detail, who=who)


def add_event(store: Store, what: str, **about: Any) -> None:
    """One line of history, in a transaction of its own: see `insert_event`."""
    with store.write() as connection:
        insert_event(connection, what, **{"at": store.now(connection), **about})


def insert_event(
    connection: Connection,
    what: str,
    *,
    at: float,
    job_id: str | None = None,
    task_id: int | None = None,
    run_id: str | None = None,
    detail: str = "",
    who: str = "",
) -> None:
    """One line of history, in the transaction of the change it tells of; `at` is by the store's clock."""
    about = {"job_id": job_id, "task_id": task_id, "run_id": run_id}
    connection.execute(_EVENT, {"at": at, "what": what, "detail": detail, "who": who, **about})


def _set(connection: Connection, run_id: str, **values: Any) -> None:
    if not connection.execute(update(runs).where(runs.c.id == run_id).values(values)).rowcount:
        raise NotFound(f"no run {run_id!r} in the store")


def _state(connection: Connection, run_id: str) -> str:
    state = connection.execute(select(runs.c.state).where(runs.c.id == run_id).with_for_update()).scalar()
    if state is None:
        raise NotFound(f"no run {run_id!r} in the store")
    return str(state)


def _run_event(store: Store, connection: Connection, run_id: str, what: str, detail: str = "", who: str = "") -> None:
    """The driver that holds the run's task is who did it, unless somebody else is named."""
    holder = select(runs.c.job_id, runs.c.task_id, tasks_table.c.driver).outerjoin_from(runs, tasks_table)
    job_id, task_id, driver = connection.execute(holder.where(runs.c.id == run_id)).one()
    insert_event(
        connection,
        what,
        at=store.now(connection),
        job_id=job_id,
        task_id=task_id,
        run_id=run_id,
        detail=detail,
        who=who or driver or "",
    )


def _record_what_it_gave(
    connection: Connection,
    run_id: str,
    finals_by_split: Mapping[str, Mapping[str, float]],
    clips: Iterable[Mapping[str, Any]],
    files: Iterable[Mapping[str, Any]],
) -> None:
    values = [(split, name, value) for split, named in finals_by_split.items() for name, value in named.items()]
    _upsert(connection, finals, [{"run_id": run_id, "split": s, "name": n, "value": v} for s, n, v in values])
    _upsert(connection, predictions, [{"text": None, **clip, "run_id": run_id} for clip in clips])
    _upsert(connection, artifacts_table, [{"bytes": None, **file, "run_id": run_id} for file in files])


def _upsert(connection: Connection, table: Table, rows: list[dict[str, Any]]) -> None:
    """Insert rows; where the primary key is there already, replace the rest."""
    if not rows:
        return
    insert = _dialect(connection).insert(table)
    rest = {column.name: insert.excluded[column.name] for column in table.c if not column.primary_key}
    connection.execute(insert.on_conflict_do_update(index_elements=list(table.primary_key), set_=rest), rows)


def _dialect(connection: Connection) -> Any:
    """Both say ON CONFLICT, but SQLAlchemy has it in each dialect's own insert."""
    from importlib import import_module  # of one of them: the other's import takes longer than `raymsa status`

    return import_module(f"sqlalchemy.dialects.{connection.dialect.name}")
