"""The results of a job: one row per variant, mean and sd over its seeds, what it cost, and what is not finished.

Of a search, the rows are the settings that were confirmed with fresh seeds, over these seeds alone: the best of many
trials was also the luckiest. Without such runs, the rows are its trials.

`results` gathers, unrounded; `as_json` and report/tables.py show the same numbers. A run that is not done is listed,
never left out in silence, and a NaN stays NaN: it is not skipped in a mean.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from raymsa.evaluation.metrics import CRITERIA, PROFILES, Criterion, confusion, measure
from raymsa.report.cells import FIRST
from raymsa.report.search import Search, search
from raymsa.report.spread import Spread, spread
from raymsa.searchspec import aim_of
from raymsa.store import Store, queries
from raymsa.target import Classification, Regression, task_of
from raymsa.words import for_json

CONSTANT = "constant_"  # prefix of the floor's metrics among a run's finals
HEALTH = ("unparsable", "out_of_range")


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
    were decoded within the target's own (readout.constrained), so that unparsable ones were impossible.
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
    best: Best | None
    confusion: tuple[tuple[int, ...], ...] | None
    constrained: bool = False


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
    done = [_Run(run, _finals(store, run, profile)) for run in runs if run.state == "done"]
    names = in_order(profile)
    rule = _rule(job.spec, profile)
    groups = _groups(job.spec, runs, done, rule)
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
            _row(rule, label, planned, mine, names, _confusion(store, task, mine) if at < counted else None)
            for at, (label, planned, mine) in enumerate(groups)
        ),
        unfinished=tuple(Unfinished(r.id, r.variant, r.seed, r.state, r.error) for r in left),
        search=search(store, job.id) if job.spec.get("search") else None,
    )


def in_order(profile: str) -> tuple[str, ...]:
    """A profile's metrics as columns stand: what papers are compared by is first."""
    return tuple(sorted(PROFILES[profile], key=lambda name: (name not in FIRST, name in FIRST and FIRST.index(name))))


def _rule(spec: Mapping[str, Any], profile: str) -> Criterion:
    """What decides on valid: the task's criterion, or what a search was told to look for."""
    if not spec.get("search"):
        return CRITERIA[profile]
    aim = aim_of(dict(spec))
    return Criterion(aim.metric, aim.metric, aim.high_is_good)


def _finals(store: Store, run: queries.RunRow, profile: str) -> dict[str, dict[str, float]]:
    """Recorded finals; a metric that is younger than the run is computed from its predictions."""
    finals = queries.finals(store, run.id)
    for split, values in finals.items():
        if not PROFILES[profile].keys() - values.keys():
            continue
        clips = queries.predictions(store, run.id, split)
        if clips:
            finals[split] = {**measure(profile, [c.score for c in clips], [c.label for c in clips]), **values}
    return finals


def _groups(
    spec: Mapping[str, Any], runs: list[queries.RunRow], done: list[_Run], rule: Criterion
) -> list[tuple[str, int, list[_Run]]]:
    """(label, runs planned, finished runs) of each table row: a variant, or one setting of a search."""
    if spec.get("search"):
        seed = spec["seeds"][0]
        fresh = [run for run in runs if run.seed != seed]
        mine = fresh or [run for run in runs if run.seed == seed and run.state != "pruned"]
        return _settings(mine, done, rule, len(fresh) > 0)
    variants = list(spec.get("variants") or {spec["readout"]["kind"]: {}})
    known = [*variants, *sorted({run.variant for run in runs} - set(variants))]
    seeds = len(spec["seeds"])
    return [
        (v, max(seeds, sum(r.variant == v for r in runs)), [run for run in done if run.row.variant == v]) for v in known
    ]


def _settings(
    runs: list[queries.RunRow], done: list[_Run], rule: Criterion, confirmed: bool
) -> list[tuple[str, int, list[_Run]]]:
    """Trials of a search differ by more than the seed, so only runs of one setting share a row; best on valid first."""
    groups: dict[str, list[str]] = {}
    for run in runs:
        groups.setdefault(run.variant if confirmed else f"{run.variant} {run.group_key[:6]}", []).append(run.id)
    rows = [(label, len(ids), [run for run in done if run.row.id in ids]) for label, ids in groups.items()]
    return sorted(rows, key=lambda row: statistics.fmean([_error(run, rule) for run in row[2]] or [math.inf]))


def _row(
    rule: Criterion,
    label: str,
    planned: int,
    runs: list[_Run],
    names: tuple[str, ...],
    counts: tuple[tuple[int, ...], ...] | None,
) -> Row:
    test = [run.finals.get("test", {}) for run in runs]
    peaks = [run.row.peak_memory_bytes for run in runs if run.row.peak_memory_bytes is not None]
    waits = [run.row.data_wait for run in runs if run.row.data_wait is not None]
    return Row(
        variant=label,
        finished=len(runs),
        planned=planned,
        test=_spreads(names, test),
        valid=spread(run.finals["valid"][rule.metric] for run in runs if rule.metric in run.finals.get("valid", {})),
        health=_spreads(HEALTH, test),
        device_s=statistics.fmean(run.row.device_s for run in runs) if runs else None,
        data_wait=statistics.fmean(waits) if waits else None,
        peak_memory_bytes=max(peaks, default=None),
        trainable_parameters=max((run.row.trainable_parameters or 0 for run in runs), default=0) or None,
        constant=_constant(test, names),
        best=_best(runs, names, rule),
        confusion=counts,
        constrained=any(run.row.spec.get("readout", {}).get("constrained", False) for run in runs),
    )


def _spreads(names: Iterable[str], values: list[dict[str, float]]) -> dict[str, Spread]:
    spreads = {name: spread(v[name] for v in values if name in v) for name in names}
    return {name: found for name, found in spreads.items() if found is not None}


def _constant(test: list[dict[str, float]], names: tuple[str, ...]) -> dict[str, float]:
    """The floor as the first finished run recorded it: it depends on the labels alone, not on the run."""
    recorded: dict[str, float] = next((v for v in test if any(name.startswith(CONSTANT) for name in v)), {})
    return {name: recorded[CONSTANT + name] for name in names if CONSTANT + name in recorded}


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
