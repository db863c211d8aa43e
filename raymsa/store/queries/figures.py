"""Numbers of runs: what they reported step by step, their final metrics, and their score for each clip."""

from __future__ import annotations

import statistics
from collections.abc import Collection, Sequence

from sqlalchemy import and_, func, select

from raymsa.store import tables
from raymsa.store.engine import Store
from raymsa.store.queries.finding import AT_ONCE, equal_to, of_runs, read_rows
from raymsa.store.queries.nouns import Prediction, Step


def steps(store: Store, run_id: str, names: Collection[str] = (), since: int = 0) -> list[Step]:
    """What a run reported while it trained, in order of steps: all of it, or under some names, from a step on."""
    table = tables.steps
    found = equal_to(table, run_id=run_id).where(table.c.step >= since)
    if names:
        found = found.where(table.c.name.in_(names))
    return read_rows(store, Step, found.order_by(table.c.step, table.c.name))


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


def median_rates(store: Store, run_ids: Sequence[str]) -> dict[str, float]:
    """Clips per second of many runs: of each the median over its steps, of which the first are slower."""
    table = tables.steps
    place = func.row_number().over(partition_by=table.c.run_id, order_by=table.c.value).label("place")
    count = func.count().over(partition_by=table.c.run_id).label("steps")
    told = select(table.c.run_id, table.c.value, place, count).where(table.c.name == "clips_per_s")
    found: dict[str, list[float]] = {}
    with store.read() as connection:
        for at in range(0, len(run_ids), AT_ONCE):
            mine = told.where(table.c.run_id.in_(run_ids[at : at + AT_ONCE])).subquery()
            middle = and_(2 * mine.c.place >= mine.c.steps, 2 * mine.c.place <= mine.c.steps + 2)  # one step, or two
            for run_id, value in connection.execute(select(mine.c.run_id, mine.c.value).where(middle)):
                found.setdefault(run_id, []).append(value)
    return {run_id: statistics.fmean(values) for run_id, values in found.items()}


def finals(store: Store, run_id: str) -> dict[str, dict[str, float]]:
    """A run's final metrics as `records.finish_run` was given them: split -> name -> value."""
    result: dict[str, dict[str, float]] = {}
    with store.read() as connection:
        for row in connection.execute(equal_to(tables.finals, run_id=run_id).order_by(tables.finals.c.name)):
            result.setdefault(row.split, {})[row.name] = row.value
    return result


def all_finals(store: Store, run_ids: Sequence[str]) -> dict[str, dict[str, dict[str, float]]]:
    """The final metrics of many runs: run -> split -> name -> value."""
    table = tables.finals
    found: dict[str, dict[str, dict[str, float]]] = {run_id: {} for run_id in run_ids}
    columns = select(table.c.run_id, table.c.split, table.c.name, table.c.value)
    for run_id, split, name, value in of_runs(store, columns, table.c.run_id, run_ids):
        found[run_id].setdefault(split, {})[name] = value
    return found


def predictions(store: Store, run_id: str, split: str | None = None) -> list[Prediction]:
    """A run's score for each clip, of one split or all."""
    table = tables.predictions
    found = equal_to(table, run_id=run_id, split=split).order_by(table.c.split, table.c.clip_id)
    return read_rows(store, Prediction, found)


def score_ranges(store: Store, run_ids: Sequence[str], split: str) -> dict[str, tuple[float, float, int]]:
    """Of many runs, the lowest and the highest score on a split and the number of clips, where there are any."""
    table = tables.predictions
    figures = (func.min(table.c.score), func.max(table.c.score), func.count())
    found = select(table.c.run_id, *figures).where(table.c.split == split).group_by(table.c.run_id)
    return {run_id: (low, high, n) for run_id, low, high, n in of_runs(store, found, table.c.run_id, run_ids)}


def clip_counts(store: Store, run_ids: Sequence[str], split: str) -> dict[str, int]:
    """How many clips of a split each of many runs has scored; from the index alone."""
    table = tables.predictions
    found = select(table.c.run_id, func.count()).where(table.c.split == split).group_by(table.c.run_id)
    return dict(map(tuple, of_runs(store, found, table.c.run_id, run_ids)))
