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
    than once; `trial`: they are trials of searches, and no run beside them has a fresh seed.

    Of all finished runs alike: `fresh` are the seeds of those that are no trials, and `tried` the seeds here with which
    a search tried the setting, too. Where the search chose it, such a run is as lucky as the trial.
    """

    key: str
    data_digest: str | None
    trial: bool
    runs: tuple[RunRow, ...]
    repeated: tuple[int, ...]
    tried: tuple[int, ...]
    fresh: tuple[int, ...]

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


def tried_words(seeds: Iterable[int]) -> str:
    """What a reader must know of runs with these seeds."""
    given = ", ".join(map(str, seeds))
    return f"a search tried these settings with seed {given}, too: if it chose them for that, it is a lucky one"


def members(runs: Iterable[RunRow], jobs: Mapping[str, Job], alike: Iterable[RunRow] | None = None) -> list[Members]:
    """The groups of some runs, whatever their state, the one with the oldest run first.

    `jobs` are theirs by their ids. A trial is left out where its setting was run with fresh seeds on the same clips.
    `alike` are the finished runs of the same groups, where `runs` are not all of them.
    """
    found = _by_group(sorted(runs, key=_age))
    others = found if alike is None else _by_group(alike)
    return [_members(mine, others.get(same, mine), jobs) for same, mine in found.items()]


def of_group(store: Store, key: str) -> list[Members]:
    """The finished runs of a group's key, of all jobs: one entry for each set of clips that they were trained on."""
    rows = queries.finished(store, groups=[key])
    return members(rows, {job.id: job for job in queries.jobs(store, sorted({row.job_id for row in rows}))})


def beside(store: Store, run: RunRow) -> Members:
    """The finished runs whose mean stands beside a finished run's own numbers. It is one of them, unless a newer run
    has its seed, or it is a trial whose setting was run with fresh seeds."""
    return next(one for one in of_group(store, run.group_key) if one.data_digest == run.data_digest)


def _by_group(runs: Iterable[RunRow]) -> dict[tuple[str, str | None], list[RunRow]]:
    found: dict[tuple[str, str | None], list[RunRow]] = {}
    for run in runs:
        found.setdefault((run.group_key, run.data_digest), []).append(run)
    return found


def _members(runs: list[RunRow], alike: list[RunRow], jobs: Mapping[str, Job]) -> Members:
    """Of one group, oldest first."""
    fresh = [run for run in runs if not is_trial(run, jobs[run.job_id])]
    counted = fresh or runs
    newest = {run.seed: run for run in counted}
    times = Counter(run.seed for run in counted)
    searched = {run.seed for run in alike if is_trial(run, jobs[run.job_id])}
    return Members(
        key=runs[0].group_key,
        data_digest=runs[0].data_digest,
        trial=not fresh,
        runs=tuple(newest[seed] for seed in sorted(newest)),
        repeated=tuple(seed for seed in sorted(newest) if times[seed] > 1),
        tried=tuple(sorted(searched & newest.keys())) if fresh else (),
        fresh=tuple(sorted({run.seed for run in alike if not is_trial(run, jobs[run.job_id])})),
    )


def _is_fresh(run: RunRow, job: Job) -> bool:
    return bool(job.spec.get("search")) and not is_trial(run, job)


def _age(run: RunRow) -> tuple[float, str]:
    """For sorting: what is not over is the newest."""
    return (float("inf") if run.finished_at is None else run.finished_at), run.id
