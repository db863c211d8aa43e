"""Which run is next: the runs of a job as they are written down, or those Optuna proposes for a search.

What was proposed and what came of it is in the store, so a search that was interrupted is rebuilt from there: finished
runs are told to Optuna again, unfinished ones go on from their checkpoints.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, Protocol

from raymsa.errors import SpecError
from raymsa.home import run_dir
from raymsa.plan import run_id
from raymsa.spec import Run, digest, trial
from raymsa.store import Store, queries, records

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
        self._left = [row for row in rows if row.state in ("queued", "running")]
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
        if row.state in ("queued", "running"):
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

    def __init__(self, store: Store, job: queries.Job, task_id: int, template: Run, shards: str) -> None:
        self._store, self._job_id, self._task_id = store, job.id, task_id
        self._template, self._shards = template, shards
        self._space = _as_stored(job.spec["search"]["space"], template)
        self._trials: int = job.spec["search"]["trials"]
        rows = queries.runs(store, job.id)
        self._open = Open(store, rows)
        self._study = _study(job.spec["search"]["algorithm"], template.seed + len(rows))
        self._asked: dict[str, Any] = {}
        self._made = len(rows)
        for row in rows:
            if row.state == "done":
                self._study.add_trial(_past(row, self._space))

    def next(self) -> Work | None:
        """A run that was interrupted, else one with newly proposed settings, until there were enough."""
        if (again := self._open.next()) is not None:
            return work_of(again, self._shards)
        while self._made < self._trials:
            asked = self._study.ask()
            values = {field: _suggest(asked, field, choice) for field, choice in self._space.items()}
            name = f"t{self._made:03d}"
            self._made += 1
            run = trial(self._template, values)._replace(variant=name)
            rows = enter(self._store, self._job_id, self._task_id, [run])
            row = next(row for row in rows if row.variant == name)
            self._asked[row.id] = asked
            self._open.out(row.id)
            return work_of(row, self._shards)
        return None

    def waiting(self) -> bool:
        """Some are not over."""
        return self._open.waiting()

    def prune(self, values: dict[str, Any]) -> bool:
        """Not yet."""
        return False

    def over(self, run_id: str) -> None:
        """Tell Optuna the run's best error on valid; one without has failed: NaN would stay open for ever."""
        from optuna.trial import TrialState

        row = self._open.over(run_id)
        if row.state in ("queued", "running"):
            return
        value = row.valid_error
        asked = self._asked.pop(run_id, None)
        if asked is None:
            if row.state == "done":
                self._study.add_trial(_past(row, self._space))
        elif row.state != "done" or value is None or math.isnan(value):
            self._study.tell(asked, state=TrialState.FAIL)
        else:
            self._study.tell(asked, value)


def _as_stored(space: dict[str, dict[str, Any]], template: Run) -> dict[str, dict[str, Any]]:
    """The space with its choices as a checked spec has them (`[audio, text]` becomes `[text, audio]`), so that the
    settings of earlier runs are found among them again."""
    stored = {}
    for field, choice in space.items():
        kind, values = next(iter(choice.items()))
        if kind == "choice":
            values = [_field(trial(template, {field: v}).spec.model_dump(mode="json"), field) for v in values]
        stored[field] = {kind: values}
    return stored


def _study(algorithm: str, seed: int) -> Any:
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    samplers: dict[str, Callable[..., Any]] = {
        "tpe": optuna.samplers.TPESampler,
        "random": optuna.samplers.RandomSampler,
    }
    return optuna.create_study(sampler=samplers[algorithm](seed=seed))


def _suggest(asked: Any, field: str, choice: dict[str, Any]) -> Any:
    kind, values = next(iter(choice.items()))
    if kind == "choice":
        return values[asked.suggest_categorical(field, list(range(len(values))))]  # Optuna takes plain scalars only
    if kind == "int":
        return asked.suggest_int(field, *map(int, values))
    return asked.suggest_float(field, *values, log=kind == "loguniform")


def _past(row: queries.RunRow, space: dict[str, dict[str, Any]]) -> Any:
    """A finished run as a trial that Optuna can learn from."""
    import optuna

    found = {field: _field(row.spec, field) for field in space}
    distributions = {field: _distribution(choice) for field, choice in space.items()}
    params = {
        field: space[field]["choice"].index(value) if "choice" in space[field] else value
        for field, value in found.items()
    }
    if row.valid_error is None:
        return optuna.trial.create_trial(state=optuna.trial.TrialState.FAIL, params=params, distributions=distributions)
    return optuna.trial.create_trial(params=params, distributions=distributions, value=row.valid_error)


def _distribution(choice: dict[str, Any]) -> Any:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    kind, values = next(iter(choice.items()))
    if kind == "choice":
        return CategoricalDistribution(list(range(len(values))))
    if kind == "int":
        return IntDistribution(*map(int, values))
    return FloatDistribution(*values, log=kind == "loguniform")


def _field(spec: dict[str, Any], dotted: str) -> Any:
    value: Any = spec
    for part in dotted.split("."):
        if part not in value:
            raise SpecError(f"search.space.{dotted}: no such field in the run's spec")
        value = value[part]
    return value
