"""Which run is next: the runs of a job as they are written down, or those Optuna proposes for a search.

What was proposed and what came of it is in the store, so a search that was interrupted is rebuilt from there: finished
runs are told to Optuna again, unfinished ones go on from their checkpoints.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol

from raymsa.errors import LeaseLost
from raymsa.home import run_dir
from raymsa.plan import run_id
from raymsa.searchspec import aim_of
from raymsa.space import Space
from raymsa.spec import Run, digest, trial
from raymsa.store import Store, queries, records
from raymsa.store.states import LIVE
from raymsa.study import CMA_WANTS, Study
from raymsa.trials import Trial, alike, one_trial, template_of, to_confirm, trials

Work = dict[str, Any]  # what a worker is sent: run_id, spec (one seed), shards, folder


class Proposals(Protocol):
    """Gives runs to make, one at a time, and hears when one is over."""

    def next(self) -> Work | None:
        """The next run, or None when there is nothing to start now."""

    def waiting(self) -> bool:
        """Whether something may be there to start later."""

    def over(self, run_id: str) -> None:
        """A run ended, or was stopped; the store says how."""

    def prune(self, values: dict[str, Any]) -> bool:
        """Whether to give a run up after this report of an epoch."""


def enter(store: Store, job_id: str, task_id: int, made: Iterable[Run]) -> list[queries.RunRow]:
    """Put runs into the store, where they are not there yet; returns the job's runs."""
    rows = []
    for run in made:
        about = {"id": run_id(job_id, run), "job_id": job_id, "task_id": task_id, "variant": run.variant}
        spec = {"spec": run.spec.model_dump(mode="json"), "spec_digest": digest(run.spec)}
        rows.append({**about, **spec, "seed": run.seed, "group_key": run.group})
    records.create_runs(store, rows)
    return queries.runs(store, job_id)


def work_of(row: queries.RunRow, shards: str) -> Work:
    """What the worker of a run is sent."""
    return {"run_id": row.id, "spec": row.spec, "shards": shards, "folder": str(run_dir(row.id))}


class Open:
    """Runs that are known and not over, in order; one that failed and is tried again comes when its time has come."""

    def __init__(self, store: Store, rows: list[queries.RunRow]) -> None:
        self._store = store
        self._left = [row for row in rows if row.state in LIVE]
        self._out: set[str] = set()

    def next(self) -> queries.RunRow | None:
        """The first one whose time has come."""
        if not self._left:
            return None
        now = self._store.clock()
        row = next((row for row in self._left if row.not_before is None or row.not_before <= now), None)
        if row is not None:
            self._left.remove(row)
            self._out.add(row.id)
        return row

    def out(self, run_id: str) -> None:
        """A run was started."""
        self._out.add(run_id)

    def over(self, run_id: str) -> queries.RunRow:
        """A run ended: as it is now; it comes again if it was put back."""
        self._out.discard(run_id)
        row = queries.run(self._store, run_id)
        if row.state in LIVE:
            self._left.append(row)
        return row

    def waiting(self) -> bool:
        """Whether there is more to come: a run that is being made may be put back."""
        return bool(self._left or self._out)


class Listed:
    """The job's runs that are still to be made, in order; a failed one waits for `raymsa retry`."""

    def __init__(self, store: Store, rows: list[queries.RunRow], shards: str) -> None:
        self._open, self._shards = Open(store, rows), shards

    def next(self) -> Work | None:
        """The next run."""
        row = self._open.next()
        return None if row is None else work_of(row, self._shards)

    def waiting(self) -> bool:
        """Some are not over."""
        return self._open.waiting()

    def over(self, run_id: str) -> None:
        """It comes again if it was put back."""
        self._open.over(run_id)

    def prune(self, values: dict[str, Any]) -> bool:
        """Never: these runs were asked for one by one."""
        return False


class Proposed:
    """Runs with settings that Optuna proposes from what earlier ones gave on valid."""

    def __init__(self, store: Store, job: queries.Job, task_id: int, shards: str, data_digest: str | None) -> None:
        self._store, self._job, self._task_id, self._shards = store, job, task_id, shards
        self._template, self._aim = template_of(job), aim_of(job.spec)
        search = job.spec["search"]
        self._space = Space(search["space"], self._template)
        self.planned = self._space.planned(search["trials"])
        past, warm = self._past(data_digest if search.get("warm_start") else None)
        self.about = [*self._words(search), *warm]
        self._study = Study(search, self._space, self._aim, self._template.seed, past)
        found = trials(store, job, self._space)
        self._study.replay(found)
        self._made = len(found)
        self._open = Open(store, [row for row in queries.runs(store, job.id) if row.task_id == task_id])
        self._ready: tuple[Run, Any] | None = None  # proposed, and perhaps not in the store yet

    def next(self) -> Work | None:
        """A run that was interrupted, else one with newly proposed settings, until there were enough.

        When the store is away it raises and may be called again: what was proposed is entered once.
        """
        if (again := self._open.next()) is not None:
            return work_of(again, self._shards)
        if self._made >= self.planned:
            return None
        if self._ready is None:
            values, asked = self._study.propose(self._made)
            self._ready = (trial(self._template, values)._replace(variant=f"t{self._made:03d}"), asked)
        run, asked = self._ready
        rows = enter(self._store, self._job.id, self._task_id, [run])
        row = next(row for row in rows if row.id == run_id(self._job.id, run))
        if row.spec_digest != digest(run.spec):  # it may be training there: one run is made once
            raise LeaseLost(f"run {row.id} was entered with other settings by another driver")
        self._study.began(row.id, asked)
        self._open.out(row.id)
        self._made, self._ready = self._made + 1, None
        return work_of(row, self._shards)

    def waiting(self) -> bool:
        """Some are not over."""
        return self._open.waiting()

    def prune(self, values: dict[str, Any]) -> bool:
        """Whether others do better; never after the last epoch, when all the work is done."""
        value = values.get(f"valid_{self._aim.metric}")
        if value is None:
            return False
        give_up = self._study.report(values["run_id"], values["epoch"], value)
        return give_up and not values.get("last", False)

    def over(self, run_id: str) -> None:
        """Tell Optuna what came of a run, unless it was put back and comes again."""
        row = self._open.over(run_id)
        if row.state not in LIVE:
            self._study.tell(one_trial(self._store, row, self._space, self._aim.metric))

    def _words(self, search: dict[str, Any]) -> list[str]:
        way = "high" if self._aim.high_is_good else "low"
        how = f"{search['algorithm']}, {self.planned} trials, early end by {search.get('scheduler', 'none')}"
        return [f"search: {how}; {way} valid {self._aim.metric} is good; all trials have seed {self._template.seed}"]

    def _past(self, data_digest: str | None) -> tuple[list[Trial], list[str]]:
        """Runs of other jobs to learn from, and what to say of them."""
        if data_digest is None:
            return [], []
        past, outside = alike(self._store, self._job, self._template, self._space, data_digest)
        said = f"warm start: {len(past)} earlier runs on the same clips are learned from"
        if self._job.spec["search"]["algorithm"] == "cma-es" and len(past) < CMA_WANTS:
            past, said = [], f"warm start: {len(past)} earlier runs on the same clips, but cma-es needs {CMA_WANTS}"
        return past, [said + (f"; {outside} more have settings outside the space" if outside else "")]


def confirming(store: Store, job: queries.Job) -> list[Run]:
    """The runs that confirm a search: see `trials.to_confirm`."""
    template = template_of(job)
    found = trials(store, job, Space(job.spec["search"]["space"], template))
    return to_confirm(store, job, template, found)
