"""Checkpoints that nobody will need: which they are, and taking them away. Logs and predictions always stay.

A checkpoint goes if its run is in this machine's home and
- failed, was cancelled or was stopped early, in a job that is over; a retry of it would begin again at step 0;
- was a trial of a search that is over, and others were better by what it looked for; what confirms them stays;
- is done: then its last-* goes, from which it would have gone on; its best-* stays.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from sqlalchemy import select

from raymsa.errors import RaymsaError, SpecError
from raymsa.home import home
from raymsa.searchspec import aim_of
from raymsa.space import Space
from raymsa.spec import check
from raymsa.store import Store, queries
from raymsa.store.states import UNFINISHED
from raymsa.store.tables import runs, tasks
from raymsa.trials import best, template_of, trials

CHECKPOINT = re.compile(r"\.?(best|last)-\d+(\.part)?")  # see training/checkpoint.py; .part: of a killed process
BAD = {"failed": "failed", "cancelled": "cancelled", "pruned": "stopped early"}
CLOCKS_S = 600  # by which the clocks of a store and of a disk may differ
AT_ONCE = 500  # runs asked for in one statement


class Waste(NamedTuple):
    """A checkpoint that can go: whose, the run's state, why, where, and its size."""

    run: str
    state: str
    why: str
    path: Path
    bytes: int


class Found(NamedTuple):
    """Checkpoints that can go, and runs whose checkpoints are newer than what the store knows of them."""

    waste: list[Waste]
    newer: list[str]


class _Job(NamedTuple):
    runs: Sequence[Any]  # rows: id, state, finished_at
    pending: bool  # a task is still to be done
    ended_at: float
    beaten: set[str]  # trials of its search that others were better than

    def why(self, run: Any) -> str | None:
        """Why a run's checkpoints can go."""
        if run.state in BAD:
            return None if self.pending else BAD[run.state]
        if run.state != "done":
            return None
        return "not among the best" if run.id in self.beaten else "done"


def find(store: Store, keep: int = 1) -> Found:
    """What can go under this home; of a search, the checkpoints of the `keep` best trials stay."""
    here = {folder.name: found for folder in _folders() if (found := _checkpoints(folder))}
    result = Found([], [])
    for job_id in _job_ids(store, list(here)):
        job = _job(store, job_id, keep)
        for run in job.runs:
            why = job.why(run)
            gone = [path for path in here.get(run.id, ()) if why and (why != "done" or "last-" in path.name)]
            # Another store knows the run better, and this one is an old copy of it.
            if any(path.stat().st_mtime > max(run.finished_at or 0, job.ended_at) + CLOCKS_S for path in gone):
                result.newer.append(run.id)
            else:
                result.waste.extend(Waste(run.id, run.state, str(why), path, _size(path)) for path in gone)
    return result


def remove(store: Store, waste: Iterable[Waste]) -> list[Waste]:
    """Take checkpoints away; returns which. Those of a run that has changed meanwhile stay. Raises RaymsaError."""
    gone = []
    for one in waste:
        if _is_as_it_was(store, one):
            try:
                _remove(one.path)
            except OSError as error:
                raise RaymsaError(f"{one.path}: cannot be removed: {error.strerror}") from None
            gone.append(one)
    return gone


def _folders() -> list[Path]:
    folder = home() / "runs"
    return sorted(path for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []


def _checkpoints(run: Path) -> list[Path]:
    return sorted(p for p in run.iterdir() if CHECKPOINT.fullmatch(p.name) and p.is_dir() and not p.is_symlink())


def _job_ids(store: Store, run_ids: list[str]) -> list[str]:
    """The jobs of some runs."""
    ids: set[str] = set()
    with store.read() as connection:
        for start in range(0, len(run_ids), AT_ONCE):
            some = runs.c.id.in_(run_ids[start : start + AT_ONCE])
            ids |= set(connection.execute(select(runs.c.job_id).where(some)).scalars())
    return sorted(ids)


def _job(store: Store, job_id: str, keep: int) -> _Job:
    columns = (runs.c.id, runs.c.state, runs.c.finished_at)
    with store.read() as connection:
        mine = connection.execute(select(*columns).where(runs.c.job_id == job_id).order_by(runs.c.id)).all()
        work = connection.execute(select(tasks.c.state, tasks.c.finished_at).where(tasks.c.job_id == job_id)).all()
    pending = any(task.state in UNFINISHED for task in work)
    ended_at = max((task.finished_at or 0.0 for task in work), default=0.0)
    return _Job(mine, pending, ended_at, set() if pending else _beaten(store, job_id, keep))


def _beaten(store: Store, job_id: str, keep: int) -> set[str]:
    """Trials of a search that are not its best; none if the job is no search, or one that this raymsa cannot read."""
    job = queries.job(store, job_id)
    if not job.spec.get("search"):
        return set()
    try:
        check(job.spec, f"job {job_id}")
    except SpecError:
        return set()
    found = trials(store, job, Space(job.spec["search"]["space"], template_of(job)))
    return {one.run_id for one in found} - {one.run_id for one in best(found, aim_of(job.spec))[:keep]}


def _is_as_it_was(store: Store, one: Waste) -> bool:
    mine = select(runs.c.state, runs.c.job_id).where(runs.c.id == one.run)
    with store.read() as connection:
        run = connection.execute(mine).one_or_none()
        if run is None or run.state != one.state:
            return False
        pending = select(tasks.c.id).where(tasks.c.job_id == run.job_id, tasks.c.state.in_(UNFINISHED))
        return one.why == "done" or connection.execute(pending.limit(1)).first() is None


def _remove(path: Path) -> None:
    # Half a checkpoint must not look like a whole one; checkpoint.py takes what has this name for rubbish.
    part = path if path.name.endswith(".part") else path.with_name(f".{path.name}.part")
    if part != path:
        shutil.rmtree(part, ignore_errors=True)
        path.rename(part)
    shutil.rmtree(part)


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
