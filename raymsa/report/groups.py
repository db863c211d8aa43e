"""Runs that differ in the seed alone, as one group: mean and sd over seeds, over all jobs of the store.

Groups of one dataset, task and metric profile make a table; what was judged by other rules or on another dataset is in
another one. Of a search, the confirmed settings count, over their fresh seeds alone; without such, its trials, marked.
Nothing here is rounded: report/group_sheets.py does that.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

from raymsa.evaluation.metrics import CRITERIA, Criterion
from raymsa.report.finals import CONSTANT, HEALTH, completed, in_order, rule_of
from raymsa.report.spread import Spread, spread
from raymsa.store import Store, queries
from raymsa.target import BEFORE_TASKS, Classification, task_of
from raymsa.words import for_json

SAME = 1e-9  # metrics that differ by less are those of the same answers


@dataclass(frozen=True)
class Seed:
    """A run of a group: `valid` is the metric that decides, `one_value` the score that it gave all test clips, if it
    gave all of them the same."""

    seed: int
    run_id: str
    valid: float | None
    test: dict[str, float]
    one_value: float | None


@dataclass(frozen=True)
class Group:
    """Runs on the same clips that differ in the seed alone. `names` are those of their jobs, `repeated` the seeds that
    were run more than once, of which the newest run counts.

    `constant` holds what the constant predictor has: split -> metric -> value. `no_better`: the mean test result is no
    better than it. `trial`: its runs are trials of a search. `rivals`: it was not asked for and is here as the
    text-only baseline, the best on valid of so many. `device_s` and the rates are per run, memory is the most.
    """

    key: str
    data_digest: str | None
    names: tuple[str, ...]
    variant: str
    seeds: tuple[Seed, ...]
    repeated: tuple[int, ...]
    valid: Spread | None
    test: dict[str, Spread]
    health: dict[str, Spread]
    clips_per_s: Spread | None
    device_s: Spread | None
    peak_memory_bytes: int | None
    constant: dict[str, dict[str, float]]
    no_better: bool
    text_only: bool
    constrained: bool
    trial: bool
    rivals: int = 0


@dataclass(frozen=True)
class Floor:
    """The constant predictor on some clips: the median of the training scores, or their most frequent class."""

    data_digests: tuple[str | None, ...]
    metrics: dict[str, dict[str, float]]


@dataclass(frozen=True)
class GroupTable:
    """Groups that may stand beside each other, the best on valid first. `decides` is the metric on valid."""

    dataset: str
    profile: str
    target: str | None
    classes: tuple[str, ...]
    metrics: tuple[str, ...]
    decides: str
    groups: tuple[Group, ...]
    floors: tuple[Floor, ...]


class _Kind(NamedTuple):
    """What groups of one table have in common."""

    dataset: str
    profile: str
    target: str | None
    classes: tuple[str, ...]
    low: float
    high: float


@dataclass(frozen=True)
class _Run:
    """A finished run, and what its table and group are known by."""

    row: queries.RunRow
    job: queries.Job
    spec: Mapping[str, Any]
    kind: _Kind
    trial: bool

    @property
    def group(self) -> tuple[str, str, bool]:
        return self.row.group_key, self.row.data_digest or "", self.trial

    @property
    def text_only(self) -> bool:
        return list((self.spec.get("inputs") or {}).get("modalities") or ()) == ["text"]


def group_tables(
    store: Store, jobs: Sequence[str] | None = None, keys: Sequence[str] | None = None
) -> list[GroupTable]:
    """Finished runs as tables of groups: of the whole store, or of some jobs (ids) and groups (keys).

    Where text-only runs on the same clips are in the store, a table has them too.
    """
    asked = _runs(store, queries.finished(store, jobs, keys))
    ours = {run.row.id for run in asked}
    digests = sorted({run.row.data_digest for run in asked if run.row.data_digest})
    whole = jobs is None and keys is None
    more = [] if whole else queries.finished(store, data=digests)
    others = _runs(store, [row for row in more if row.id not in ours])
    words = [run for run in others if run.text_only and not run.trial]
    facts = _Facts(store, [*asked, *words])
    tables = []
    for kind in sorted({run.kind for run in asked}, key=str):
        mine = [run for run in asked if run.kind == kind]
        rule = _rule(mine)
        made = facts.groups(mine, rule)
        made += _baselines(made, facts.groups([run for run in words if run.kind == kind], rule), rule)
        tables.append(_table(kind, rule, made))
    return tables


def error_of(group: Group, rule: Criterion) -> float:
    """For sorting: a group without a number on valid comes last."""
    error = math.nan if group.valid is None else rule.turned(group.valid.mean)
    return math.inf if math.isnan(error) else error


def extremes(group: Group, metric: str, high_is_good: bool) -> tuple[Seed, Seed] | None:
    """The seeds with the best and the worst test result; None where no run has a number."""
    scored = [one for one in group.seeds if not math.isnan(one.test.get(metric, math.nan))]
    scored.sort(key=lambda one: one.test[metric], reverse=high_is_good)
    return (scored[0], scored[-1]) if scored else None


def as_json(tables: Iterable[GroupTable]) -> list[dict[str, Any]]:
    """The same as plain data, unrounded; NaN is null, because JSON has none."""
    return [for_json(asdict(table)) for table in tables]


def _runs(store: Store, rows: Sequence[queries.RunRow]) -> list[_Run]:
    """Of a search, either what confirms its settings or its trials."""
    jobs = {job.id: job for job in queries.jobs(store, sorted({row.job_id for row in rows}))}
    kinds: dict[str, _Kind] = {}
    made = []
    for row in rows:
        job = jobs[row.job_id]
        spec = {**job.spec, **row.spec}
        dataset = spec.get("dataset") or {}
        same = repr([dataset.get(name) for name in ("name", "task", *BEFORE_TASKS)])
        kind = kinds[same] = kinds.get(same) or _kind(dataset)
        trial = bool(job.spec.get("search")) and row.seed == job.spec["seeds"][0]
        made.append(_Run(row, job, spec, kind, trial))
    confirmed = {run.job.id for run in made if run.job.spec.get("search") and not run.trial}
    return [run for run in made if not (run.trial and run.job.id in confirmed)]


def _kind(dataset: Mapping[str, Any]) -> _Kind:
    task = task_of({"dataset": dataset})
    name = str(dataset.get("name") or "unnamed dataset")
    if isinstance(task, Classification):
        return _Kind(name, task.profile, task.target, task.classes, 0.0, 0.0)
    return _Kind(name, task.profile, task.target, (), task.low, task.high)


def _rule(runs: Sequence[_Run]) -> Criterion:
    """What decides on valid: what a search was told, if all were told the same; else the task's own."""
    profile = runs[0].kind.profile
    rules = {rule_of(spec, profile) for spec in {run.job.id: run.job.spec for run in runs}.values()}
    return rules.pop() if len(rules) == 1 else CRITERIA[profile]


class _Facts:
    """Numbers of many runs, each kind read at once."""

    def __init__(self, store: Store, runs: Sequence[_Run]) -> None:
        ids = [run.row.id for run in runs]
        found = queries.all_finals(store, ids)
        self._valid = {run_id: finals.get("valid", {}) for run_id, finals in found.items()}
        tests = {run_id: {"test": finals["test"]} if "test" in finals else {} for run_id, finals in found.items()}
        whole = {run.row.id: completed(store, run.row.id, tests[run.row.id], run.kind.profile) for run in runs}
        self._test = {run_id: finals.get("test", {}) for run_id, finals in whole.items()}
        self._rates = queries.last_rates(store, ids)
        suspects = [run.row.id for run in runs if _may_be_constant(self._test[run.row.id], run.kind.profile)]
        self._ranges = queries.score_ranges(store, suspects, "test")

    def groups(self, runs: Iterable[_Run], rule: Criterion) -> list[Group]:
        """The groups of some runs."""
        members: dict[tuple[str, str, bool], list[_Run]] = {}
        for run in runs:
            members.setdefault(run.group, []).append(run)
        return [self._group(mine, rule) for mine in members.values()]

    def _group(self, runs: list[_Run], rule: Criterion) -> Group:
        """Of runs, oldest first; of those with the same seed, the newest counts."""
        newest = runs[-1]
        counted = sorted({run.row.seed: run for run in runs}.values(), key=lambda run: run.row.seed)
        names = in_order(newest.kind.profile)
        tests = [self._test[run.row.id] for run in counted]
        valids = [self._valid[run.row.id] for run in counted]
        constant = {"valid": _constant(valids, names), "test": _constant(tests, names)}
        test = _spreads(names, tests)
        rates = [self._rates[run.row.id] for run in counted if run.row.id in self._rates]
        return Group(
            key=newest.row.group_key,
            data_digest=newest.row.data_digest,
            names=tuple(dict.fromkeys(run.job.name for run in reversed(runs))),
            variant=newest.row.variant,
            seeds=tuple(self._seed(run, rule) for run in counted),
            repeated=tuple(seed for seed, times in Counter(run.row.seed for run in runs).items() if times > 1),
            valid=spread(valid[rule.metric] for valid in valids if rule.metric in valid),
            test=test,
            health=_spreads(HEALTH, tests),
            clips_per_s=spread(rates),
            device_s=spread(run.row.device_s for run in counted),
            peak_memory_bytes=max((run.row.peak_memory_bytes or 0 for run in counted), default=0) or None,
            constant=constant,
            no_better=_no_better(test, constant["test"], CRITERIA[newest.kind.profile]),
            text_only=newest.text_only,
            constrained=bool((newest.spec.get("readout") or {}).get("constrained", False)),
            trial=newest.trial,
        )

    def _seed(self, run: _Run, rule: Criterion) -> Seed:
        test = {name: value for name, value in self._test[run.row.id].items() if not name.startswith(CONSTANT)}
        low, high, clips = self._ranges.get(run.row.id, (math.nan, math.nan, 0))
        one_value = low if low == high and clips > 1 else None
        valid = self._valid[run.row.id].get(rule.metric)
        return Seed(run.row.seed, run.row.id, valid, test, one_value)


def _may_be_constant(test: Mapping[str, float], profile: str) -> bool:
    """Whether its scores are worth a look: a constant has no correlation, and the mean recall of the constant class."""
    if profile != "classes":
        return bool(test) and math.isnan(test.get("corr", math.nan))
    return bool(test) and test.get("uar", 0.0) <= test.get(f"{CONSTANT}uar", 1.0) + SAME


def _no_better(test: Mapping[str, Spread], constant: Mapping[str, float], rule: Criterion) -> bool:
    if rule.metric not in test or math.isnan(constant.get(rule.metric, math.nan)):
        return False
    mean = test[rule.metric].mean
    return math.isnan(mean) or rule.turned(mean) >= rule.turned(constant[rule.metric]) - SAME


def _spreads(names: Iterable[str], values: Sequence[Mapping[str, float]]) -> dict[str, Spread]:
    found = {name: spread(value[name] for value in values if name in value) for name in names}
    return {name: one for name, one in found.items() if one is not None}


def _constant(finals: Sequence[Mapping[str, float]], names: Iterable[str]) -> dict[str, float]:
    """As the first run recorded it: it depends on the labels alone, not on the run."""
    recorded = next((values for values in finals if any(name.startswith(CONSTANT) for name in values)), {})
    return {name: recorded[CONSTANT + name] for name in names if CONSTANT + name in recorded}


def _baselines(asked: Sequence[Group], words: Sequence[Group], rule: Criterion) -> list[Group]:
    """The best text-only group on valid, for clips on which none was asked for."""
    digests = {group.data_digest for group in asked} - {group.data_digest for group in asked if group.text_only}
    made = []
    for digest in sorted(filter(None, digests)):
        if mine := [group for group in words if group.data_digest == digest]:
            made.append(replace(min(mine, key=lambda group: error_of(group, rule)), rivals=len(mine)))
    return made


def _table(kind: _Kind, rule: Criterion, made: list[Group]) -> GroupTable:
    floors: dict[str, Floor] = {}
    for group in made:
        same = repr(sorted(for_json(group.constant).items()))  # plain: NaN is not equal to itself
        before = floors.get(same, Floor((), group.constant)).data_digests
        floors[same] = Floor(tuple(dict.fromkeys((*before, group.data_digest))), group.constant)
    return GroupTable(
        dataset=kind.dataset,
        profile=kind.profile,
        target=kind.target,
        classes=kind.classes,
        metrics=in_order(kind.profile),
        decides=rule.metric,
        groups=tuple(sorted(made, key=lambda group: error_of(group, rule))),
        floors=tuple(floors.values()),
    )
