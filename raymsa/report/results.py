"""The results of a job: one row per variant, mean and sd over its seeds, what it cost, and what is not finished.

Of a search, the rows are the settings that were confirmed with fresh seeds, over these seeds alone: the best of many
trials was also the luckiest. Without such runs, the rows are its trials.

`results` gathers, unrounded; `as_json` and report/tables.py show the same numbers. A run that is not done is listed,
never left out in silence, and a NaN stays NaN: it is not skipped in a mean.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from raymsa.evaluation.metrics import Criterion, confusion
from raymsa.report.collapse import Collapse, collapse, one_values
from raymsa.report.finals import HEALTH, constant_of, finals_of, in_order, rule_of, spreads
from raymsa.report.members import confirming, is_trial, members
from raymsa.report.search import Search, search
from raymsa.report.spread import Spread, spread
from raymsa.store import Store, queries
from raymsa.target import Classification, Regression, task_of
from raymsa.words import for_json


@dataclass(frozen=True)
class Best:
    """The run that is best on valid of its variant: chosen without a look at test."""

    run_id: str
    seed: int
    valid: float
    test: dict[str, float]


@dataclass(frozen=True)
class Row:
    """One variant. `device_s` and `data_wait` (a share) are means per run, memory the most that any run took.

    `valid` is the metric that decides. `confusion` counts the test clips of all runs: true classes, answers, none; it
    is None without test clips, and in all rows of a search but the first, which is the best. `constrained`: answers
    were decoded within the target's own (readout.constrained), so that unparsable ones were impossible. `run_ids` are
    the finished runs.
    """

    variant: str
    finished: int
    planned: int
    test: dict[str, Spread]
    valid: Spread | None
    health: dict[str, Spread]
    device_s: float | None
    data_wait: float | None
    peak_memory_bytes: int | None
    trainable_parameters: int | None
    constant: dict[str, float]
    collapse: Collapse
    best: Best | None
    confusion: tuple[tuple[int, ...], ...] | None
    constrained: bool = False
    run_ids: tuple[str, ...] = ()


@dataclass(frozen=True)
class Unfinished:
    """A run without results, and why."""

    run_id: str
    variant: str
    seed: int
    state: str
    error: str | None


@dataclass(frozen=True)
class Results:
    """A job's results; `metrics` names the columns of every `test` mapping, `decides` the metric on valid."""

    job_id: str
    name: str
    profile: str
    metrics: tuple[str, ...]
    decides: str
    classes: tuple[str, ...]
    rows: tuple[Row, ...]
    unfinished: tuple[Unfinished, ...]
    search: Search | None = None


@dataclass(frozen=True)
class _Run:
    """A finished run and its finals."""

    row: queries.RunRow
    finals: dict[str, dict[str, float]]


def results(store: Store, job_id: str) -> Results:
    """What a job gave so far; the id may be a unique prefix. Raises NotFound."""
    job = queries.job(store, job_id)
    task = task_of(job.spec)
    profile = task.profile
    runs = queries.runs(store, job.id)
    done = [_Run(run, finals_of(store, run, profile)) for run in runs if run.state == "done"]
    names = in_order(profile)
    rule = rule_of(job.spec, profile)
    groups = _groups(job, runs, done, rule)
    tests = {run.row.id: run.finals.get("test", {}) for run in done}
    said = one_values(store, tests, dict.fromkeys(tests, profile))
    counted = 1 if job.spec.get("search") else len(groups)
    left = [run for run in runs if run.state not in ("done", "pruned")]
    return Results(
        job_id=job.id,
        name=job.name,
        profile=profile,
        metrics=names,
        decides=rule.metric,
        classes=task.classes if isinstance(task, Classification) else (),
        rows=tuple(
            _row(
                rule,
                label,
                planned,
                mine,
                names,
                _confusion(store, task, mine) if at < counted else None,
                _collapse(mine, profile, said),
            )
            for at, (label, planned, mine) in enumerate(groups)
        ),
        unfinished=tuple(Unfinished(r.id, r.variant, r.seed, r.state, r.error) for r in left),
        search=search(store, job.id) if job.spec.get("search") else None,
    )


def floors(found: Results) -> list[tuple[str, dict[str, float]]]:
    """The constant predictor: once, under an empty name, where all rows were told the same, else by their variants."""
    known = {row.variant: row.constant for row in found.rows if row.constant}
    if len({tuple(for_json(floor).items()) for floor in known.values()}) > 1:  # plain: NaN is not equal to itself
        return list(known.items())
    return [("", floor) for floor in list(known.values())[:1]]


def _groups(
    job: queries.Job, runs: list[queries.RunRow], done: list[_Run], rule: Criterion
) -> list[tuple[str, int, list[_Run]]]:
    """(label, runs planned, finished runs) of each table row: a variant, or one setting of a search."""
    if job.spec.get("search"):
        return _settings(job, runs, done, rule)
    variants = list(job.spec.get("variants") or {job.spec["readout"]["kind"]: {}})
    known = [*variants, *sorted({run.variant for run in runs} - set(variants))]
    seeds = len(job.spec["seeds"])
    rows = []
    for v in known:
        mine = [run for run in runs if run.variant == v]
        planned = max(seeds, len(mine))
        rows += _on_one_data(job, v, planned, [run for run in done if run.row.variant == v])
    return rows


def _on_one_data(job: queries.Job, label: str, planned: int, runs: list[_Run]) -> list[tuple[str, int, list[_Run]]]:
    """Runs on clips that were prepared differently share no mean."""
    by_id = {run.row.id: run for run in runs}
    groups = members([run.row for run in runs], {job.id: job})
    digests = {one.data_digest for one in groups}
    if len(digests) < 2:
        return [(label, planned, runs)]
    return [
        (f"{label}, data {(one.data_digest or 'unknown')[:8]}", len(one.runs), [by_id[row.id] for row in one.runs])
        for one in groups
    ]


def _settings(
    job: queries.Job, runs: list[queries.RunRow], done: list[_Run], rule: Criterion
) -> list[tuple[str, int, list[_Run]]]:
    """Trials of a search differ by more than the seed, so only runs of one setting share a row; best on valid first."""
    jobs, finished = {job.id: job}, {run.row.id: run for run in done}
    counted = [run for run in confirming(runs, jobs) if run.state != "pruned"]
    begun = {one.key: one for one in members((run for run in counted if run.id in finished), jobs)}
    by_key: dict[str, list[queries.RunRow]] = {}
    for run in counted:
        by_key.setdefault(run.group_key, []).append(run)
    rows = []
    for key, planned in by_key.items():
        variant = planned[0].variant
        label = f"{variant} {key[:6]}" if is_trial(planned[0], job) else variant
        mine = [finished[run.id] for run in begun[key].runs] if key in begun else []
        rows.append((label, len({run.seed for run in planned}), mine))
    return sorted(rows, key=lambda row: statistics.fmean([_error(run, rule) for run in row[2]] or [math.inf]))


def _row(
    rule: Criterion,
    label: str,
    planned: int,
    runs: list[_Run],
    names: tuple[str, ...],
    counts: tuple[tuple[int, ...], ...] | None,
    fallen: Collapse,
) -> Row:
    test = [run.finals.get("test", {}) for run in runs]
    peaks = [run.row.peak_memory_bytes for run in runs if run.row.peak_memory_bytes is not None]
    waits = [run.row.data_wait for run in runs if run.row.data_wait is not None]
    return Row(
        variant=label,
        finished=len(runs),
        planned=planned,
        test=spreads(names, test),
        valid=spread(run.finals["valid"][rule.metric] for run in runs if rule.metric in run.finals.get("valid", {})),
        health=spreads(HEALTH, test),
        device_s=statistics.fmean(run.row.device_s for run in runs) if runs else None,
        data_wait=statistics.fmean(waits) if waits else None,
        peak_memory_bytes=max(peaks, default=None),
        trainable_parameters=max((run.row.trainable_parameters or 0 for run in runs), default=0) or None,
        constant=constant_of(test, names),
        collapse=fallen,
        best=_best(runs, names, rule),
        confusion=counts,
        constrained=any(run.row.spec.get("readout", {}).get("constrained", False) for run in runs),
        run_ids=tuple(run.row.id for run in runs),
    )


def _collapse(runs: list[_Run], profile: str, said: Mapping[str, float]) -> Collapse:
    found = {run.row.seed: run.finals.get("test", {}) for run in runs}
    return collapse(found, profile, {run.row.seed: said[run.row.id] for run in runs if run.row.id in said})


def _best(runs: list[_Run], names: tuple[str, ...], rule: Criterion) -> Best | None:
    scored = [run for run in runs if _error(run, rule) < math.inf]
    if not scored:
        return None
    best = min(scored, key=lambda run: _error(run, rule))
    test = best.finals.get("test", {})
    valid = rule.turned(_error(best, rule))
    return Best(best.row.id, best.row.seed, valid, {name: test[name] for name in names if name in test})


def _error(run: _Run, rule: Criterion) -> float:
    """For choosing: a run without a number on valid is worse than any other."""
    final = run.finals.get("valid", {}).get(rule.metric)
    error = run.row.valid_error if final is None else rule.turned(final)
    return math.inf if error is None or math.isnan(error) else error


def _confusion(store: Store, task: Regression | Classification, runs: list[_Run]) -> tuple[tuple[int, ...], ...] | None:
    if not isinstance(task, Classification):
        return None
    clips = [clip for run in runs for clip in queries.predictions(store, run.row.id, "test")]
    if not clips:
        return None
    table = confusion([clip.score for clip in clips], [clip.label for clip in clips], len(task.classes))
    return tuple(map(tuple, table.tolist()))


def as_json(found: Results) -> dict[str, Any]:
    """The same as plain data, unrounded; NaN is null, because JSON has none."""
    return for_json(asdict(found))  # type: ignore[no-any-return]
