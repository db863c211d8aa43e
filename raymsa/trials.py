"""The trials of a search as the store has them, which ones are best, and the runs that confirm them."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

from raymsa.errors import SpecError
from raymsa.searchspec import Aim, aim_of
from raymsa.space import Space, Values
from raymsa.spec import JobSpec, Run, runs, trial, validate
from raymsa.store import Store, queries
from raymsa.store.states import LIVE

DEFAULT = "default"  # the name of the file's own settings among those that are confirmed


@dataclass(frozen=True)
class Trial:
    """One setting and what came of it. `epochs` is the metric on valid after each epoch, `objective` its value at the
    best epoch, which is the one that was kept; for a trial that was ended early, the best so far."""

    number: int
    run_id: str
    name: str
    state: str
    values: Values
    epochs: dict[int, float]
    best_epoch: int | None
    objective: float | None
    error: str | None = None
    asked_at: float = 0.0
    over_at: float | None = None

    def stopped_at(self) -> int | None:
        """The epoch after which it was ended early."""
        return max(self.epochs, default=0) if self.state == "pruned" else None


def template_of(job: queries.Job) -> Run:
    """The file's own settings with the search's seed."""
    return runs(validate(JobSpec, job.spec, f"job {job.id}"))[0]


def trials(store: Store, job: queries.Job, space: Space) -> list[Trial]:
    """All trials of a job's search, in their order."""
    metric, seed = aim_of(job.spec).metric, job.spec["seeds"][0]
    epochs = queries.by_epoch(store, job.id, f"valid_{metric}")
    rows = [row for row in queries.runs(store, job.id) if row.seed == seed]
    begun = {e.run_id: e.at for e in reversed(queries.events(store, job.id)) if e.run_id and e.what == "queued"}
    found = [
        replace(_trial(store, row, space, metric, epochs.get(row.id, {})), asked_at=begun.get(row.id, 0.0))
        for row in rows
    ]
    return sorted(found, key=lambda one: one.number)


def one_trial(store: Store, row: queries.RunRow, space: Space, metric: str) -> Trial:
    """One run of a search as it is now."""
    told = queries.by_epoch(store, row.job_id, f"valid_{metric}", row.id)
    return _trial(store, row, space, metric, told.get(row.id, {}))


def best(found: Iterable[Trial], aim: Aim) -> list[Trial]:
    """The trials that went to their end, the best first; one without a number is none of them."""
    scored = [(one.objective, one) for one in found if one.state == "done" and one.objective is not None]
    numbers = [(aim.error(value), one.number, one) for value, one in scored if not math.isnan(value)]
    return [one for _, _, one in sorted(numbers, key=lambda item: item[:2])]


def to_confirm(store: Store, job: queries.Job, template: Run, found: Iterable[Trial]) -> list[Run]:
    """The best settings and the file's own, each with every fresh seed; the latter is left out if it is the best."""
    wish = job.spec["search"]["confirm"]
    chosen = [queries.run(store, one.run_id) for one in best(found, aim_of(job.spec))[: wish["top"]]]
    settings = [(row.variant, row.spec) for row in chosen]
    if wish["default"] and template.group not in {row.group_key for row in chosen}:
        settings.append((DEFAULT, template.spec.model_dump(mode="json")))
    return [
        Run(name, seed, JobSpec.model_validate({**spec, "seeds": [seed]}))
        for name, spec in settings
        for seed in wish["seeds"]
    ]


def alike(store: Store, job: queries.Job, template: Run, space: Space, data_digest: str) -> tuple[list[Trial], int]:
    """Finished runs of other jobs on the same clips that differ from this job's by the space and the seed alone; and
    how many more there are with values outside the space."""
    metric, found, outside = aim_of(job.spec).metric, [], 0
    for row in queries.done_on(store, data_digest):
        values = space.of_spec(row.spec)
        if row.job_id == job.id or not _same_but(template, values, row):
            continue
        if space.params(values) is None:
            outside += 1
            continue
        one = _trial(store, row, space, metric, {})
        if one.objective is not None and not math.isnan(one.objective):
            found.append(one)
    return found, outside


def _same_but(template: Run, values: Values, row: queries.RunRow) -> bool:
    """Whether this job with a run's values would be that run, whatever its seed."""
    moved = any(field.split(".")[0] == "model" for field in values)
    if not moved and row.spec["model"] != template.spec.model.model_dump(mode="json"):
        return False  # soon said: checking a spec takes a millisecond, and there may be thousands
    try:
        return trial(template, values).group == row.group_key
    except SpecError:  # this job could not be that run
        return False


def _trial(store: Store, row: queries.RunRow, space: Space, metric: str, epochs: dict[int, float]) -> Trial:
    return Trial(
        number=int(row.variant[1:]) if row.variant[1:].isdigit() else 0,
        run_id=row.id,
        name=row.variant,
        state=row.state,
        values=space.of_spec(row.spec),
        epochs=epochs,
        best_epoch=row.best_epoch,
        objective=_objective(store, row, metric, epochs),
        error=row.error,
        over_at=None if row.state in LIVE else row.finished_at,
    )


def _objective(store: Store, row: queries.RunRow, metric: str, epochs: dict[int, float]) -> float | None:
    if row.state == "done":
        final = queries.finals(store, row.id).get("valid", {}).get(metric)
        if final is not None:
            return final
    return epochs.get(row.best_epoch) if row.best_epoch is not None else None
