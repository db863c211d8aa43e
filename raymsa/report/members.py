"""Which runs count as one group: those that differ in the seed alone and were trained on the same clips.

A search chose a setting because its trial did well, so that trial is a lucky one: it never counts beside runs with
fresh seeds. Of a seed that was run more than once, the newest run counts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from raymsa.store import Store, queries
from raymsa.store.queries import Job, RunRow


@dataclass(frozen=True)
class Members:
    """The runs of a group, one for each seed and in the order of the seeds. `repeated` are the seeds that were run more
    than once; `trial`: they are trials of searches, and nothing ran their setting with fresh seeds."""

    key: str
    data_digest: str | None
    trial: bool
    runs: tuple[RunRow, ...]
    repeated: tuple[int, ...]

    @property
    def newest(self) -> RunRow:
        """The run that ended last."""
        return max(self.runs, key=_age)


def is_trial(run: RunRow, job: Job) -> bool:
    """Whether it is a trial of its job's search, and no run that confirms a setting with a fresh seed."""
    return bool(job.spec.get("search")) and run.seed == job.spec["seeds"][0]


def confirming(runs: Iterable[RunRow], jobs: Mapping[str, Job]) -> list[RunRow]:
    """Without the trials of searches of which a run with a fresh seed is done. `jobs` are the runs' by their ids."""
    given = list(runs)
    confirmed = {run.job_id for run in given if run.state == "done" and _is_fresh(run, jobs[run.job_id])}
    return [run for run in given if not (run.job_id in confirmed and is_trial(run, jobs[run.job_id]))]


def tried(runs: Iterable[RunRow], jobs: Mapping[str, Job]) -> dict[tuple[str, str | None], set[int]]:
    """The seeds with which searches tried the setting of each group, by its key and data digest: where the search chose
    it, a run of another job with such a seed is as lucky as the trial."""
    found: dict[tuple[str, str | None], set[int]] = {}
    for run in runs:
        if is_trial(run, jobs[run.job_id]):
            found.setdefault((run.group_key, run.data_digest), set()).add(run.seed)
    return found


def members(runs: Iterable[RunRow], jobs: Mapping[str, Job]) -> list[Members]:
    """The groups of some runs, whatever their state, the one with the oldest run first.

    `jobs` are theirs by their ids. A trial is left out where its setting was run with fresh seeds on the same clips.
    """
    found: dict[tuple[str, str | None], list[RunRow]] = {}
    for run in sorted(runs, key=_age):
        found.setdefault((run.group_key, run.data_digest), []).append(run)
    return [_members(mine, jobs) for mine in found.values()]


def of_group(store: Store, key: str) -> list[Members]:
    """The finished runs of a group's key, of all jobs: one entry for each set of clips that they were trained on."""
    rows = queries.finished(store, groups=[key])
    return members(rows, {job.id: job for job in queries.jobs(store, sorted({row.job_id for row in rows}))})


def beside(store: Store, run: RunRow) -> Members:
    """The finished runs whose mean stands beside a finished run's own numbers. It is one of them, unless a newer run
    has its seed, or it is a trial whose setting was run with fresh seeds."""
    return next(one for one in of_group(store, run.group_key) if one.data_digest == run.data_digest)


def _members(runs: list[RunRow], jobs: Mapping[str, Job]) -> Members:
    """Of one group, oldest first."""
    fresh = [run for run in runs if not is_trial(run, jobs[run.job_id])]
    counted = fresh or runs
    newest = {run.seed: run for run in counted}
    times = Counter(run.seed for run in counted)
    return Members(
        key=runs[0].group_key,
        data_digest=runs[0].data_digest,
        trial=not fresh,
        runs=tuple(newest[seed] for seed in sorted(newest)),
        repeated=tuple(seed for seed in sorted(newest) if times[seed] > 1),
    )


def _is_fresh(run: RunRow, job: Job) -> bool:
    return bool(job.spec.get("search")) and not is_trial(run, job)


def _age(run: RunRow) -> tuple[float, str]:
    """For sorting: what is not over is the newest."""
    return (float("inf") if run.finished_at is None else run.finished_at), run.id
