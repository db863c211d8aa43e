"""Runs that differ in the seed alone, as one group: mean and sd over seeds, over all jobs of the store.

Groups of one dataset, task and metric profile make a table; what was judged by other rules or on another dataset is in
another one. Of a search, the confirmed settings count, over their fresh seeds alone; without such, its trials, marked.
Nothing here is rounded: report/group_sheets.py does that.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, NamedTuple

from raymsa.evaluation.metrics import CRITERIA, Criterion
from raymsa.report.baselines import baselines
from raymsa.report.collapse import Collapse, collapse, one_values
from raymsa.report.finals import CONSTANT, HEALTH, completed, constant_of, in_order, rule_of, spreads
from raymsa.report.members import Members, confirming, members
from raymsa.report.spread import Spread, spread
from raymsa.store import Store, queries
from raymsa.target import BEFORE_TASKS, Classification, task_of
from raymsa.words import for_json


@dataclass(frozen=True)
class Seed:
    """A run of a group: `valid` is the metric that decides."""

    seed: int
    run_id: str
    valid: float | None
    test: dict[str, float]


@dataclass(frozen=True)
class Group:
    """Runs on the same clips that differ in the seed alone. `names` are those of their jobs, `repeated` the seeds that
    were run more than once, of which the newest run counts.

    `constant` holds what the constant predictor has: split -> metric -> value. `trial`: its runs are trials of a
    search. `tried` are its seeds with which a search tried the same settings on the same clips. `rivals`: it was not
    asked for and is here as the text-only baseline, the best on valid of so many; with `other_shards`, its clips were
    prepared otherwise, but those of test have the same ids and labels. `device_s` and the rates are per run, memory is
    the most.
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
    collapse: Collapse
    text_only: bool
    constrained: bool
    trial: bool
    tried: tuple[int, ...]
    rivals: int = 0
    other_shards: bool = False


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
class _Group:
    """Runs that are one group, and what their table is known by."""

    members: Members
    jobs: Mapping[str, queries.Job]
    kind: _Kind

    @property
    def spec(self) -> Mapping[str, Any]:
        """Of its newest run."""
        return _spec(self.members.newest, self.jobs)


def group_tables(
    store: Store, jobs: Sequence[str] | None = None, keys: Sequence[str] | None = None
) -> list[GroupTable]:
    """Finished runs as tables of groups: of the whole store, or of some jobs (ids) and groups (keys).

    Where text-only runs on the same clips are in the store, a table has them too.
    """
    whole = jobs is None and keys is None
    asked = _groups(store, queries.finished(store, jobs, keys), keys or (), whole)
    words = [] if whole else _text_only(store, asked)
    facts = _Facts(store, [*asked, *words])
    tables = []
    for kind in sorted({one.kind for one in asked}, key=str):
        mine = [one for one in asked if one.kind == kind]
        rule = _rule(mine)
        made = [facts.group(one, rule) for one in mine]
        theirs = [facts.group(one, rule) for one in words if one.kind == kind]
        made += baselines(store, made, theirs, partial(error_of, rule=rule))
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


def _groups(
    store: Store, rows: Sequence[queries.RunRow], keys: Sequence[str] = (), whole: bool = False
) -> list[_Group]:
    """Of a search, what confirms its settings or else its trials; but groups that were asked for by their keys.

    `whole`: the rows are all that there are.
    """
    alike = rows if whole or not rows else queries.finished(store, groups=sorted({row.group_key for row in rows}))
    jobs = {job.id: job for job in queries.jobs(store, sorted({row.job_id for row in (*rows, *alike)}))}
    named = [row for row in rows if row.group_key in keys]
    counted = {row.id: row for row in (*confirming(rows, jobs), *named)}
    kinds: dict[str, _Kind] = {}
    made = []
    for one in members(counted.values(), jobs, alike):
        dataset = _spec(one.newest, jobs).get("dataset") or {}
        same = repr([dataset.get(name) for name in ("name", "task", *BEFORE_TASKS)])
        kind = kinds[same] = kinds.get(same) or _kind(dataset)
        made.append(_Group(one, jobs, kind))
    return made


def _spec(run: queries.RunRow, jobs: Mapping[str, queries.Job]) -> dict[str, Any]:
    return {**jobs[run.job_id].spec, **run.spec}


def _is_text_only(spec: Mapping[str, Any]) -> bool:
    return list((spec.get("inputs") or {}).get("modalities") or ()) == ["text"]


def _kind(dataset: Mapping[str, Any]) -> _Kind:
    task = task_of({"dataset": dataset})
    name = str(dataset.get("name") or "unnamed dataset")
    if isinstance(task, Classification):
        return _Kind(name, task.profile, task.target, task.classes, 0.0, 0.0)
    return _Kind(name, task.profile, task.target, (), task.low, task.high)


def _rule(groups: Sequence[_Group]) -> Criterion:
    """What decides on valid: what a search was told, if all were told the same; else the task's own."""
    profile = groups[0].kind.profile
    specs = {run.job_id: one.jobs[run.job_id].spec for one in groups for run in one.members.runs}
    rules = {rule_of(spec, profile) for spec in specs.values()}
    return rules.pop() if len(rules) == 1 else CRITERIA[profile]


class _Facts:
    """Numbers of many runs, each kind read at once."""

    def __init__(self, store: Store, groups: Sequence[_Group]) -> None:
        profiles = {run.id: one.kind.profile for one in groups for run in one.members.runs}
        finals = queries.all_finals(store, list(profiles))
        self._store = store
        self._valid = {name: splits.get("valid", {}) for name, splits in finals.items()}
        tests = {name: {"test": splits["test"]} for name, splits in finals.items() if "test" in splits}
        whole = {name: completed(store, name, tests.get(name, {}), profile) for name, profile in profiles.items()}
        self._test = {name: splits.get("test", {}) for name, splits in whole.items()}
        self._rates = queries.median_rates(store, list(profiles))
        self._said = one_values(store, self._test, profiles)

    def group(self, one: _Group, rule: Criterion) -> Group:
        """A group with its numbers."""
        newest, runs, profile = one.members.newest, one.members.runs, one.kind.profile
        names = in_order(profile)
        tests = [self._test[run.id] for run in runs]
        valids = [self._decided(run, rule, profile) for run in runs]
        by_age = sorted(runs, key=lambda run: run.finished_at or 0.0, reverse=True)
        return Group(
            key=one.members.key,
            data_digest=one.members.data_digest,
            names=tuple(dict.fromkeys(one.jobs[run.job_id].name for run in by_age)),
            variant=newest.variant,
            seeds=tuple(self._seed(run, valid.get(rule.metric)) for run, valid in zip(runs, valids, strict=True)),
            repeated=one.members.repeated,
            valid=spread(valid[rule.metric] for valid in valids if rule.metric in valid),
            test=spreads(names, tests),
            health=spreads(HEALTH, tests),
            clips_per_s=spread(self._rates[run.id] for run in runs if run.id in self._rates),
            device_s=spread(run.device_s for run in runs),
            peak_memory_bytes=max((run.peak_memory_bytes or 0 for run in runs), default=0) or None,
            constant={"valid": constant_of(valids, names), "test": constant_of(tests, names)},
            collapse=collapse(
                {run.seed: self._test[run.id] for run in runs},
                profile,
                {run.seed: self._said[run.id] for run in runs if run.id in self._said},
            ),
            text_only=_is_text_only(one.spec),
            constrained=bool((one.spec.get("readout") or {}).get("constrained", False)),
            trial=one.members.trial,
            tried=one.members.tried,
        )

    def _seed(self, run: queries.RunRow, valid: float | None) -> Seed:
        test = {name: value for name, value in self._test[run.id].items() if not name.startswith(CONSTANT)}
        return Seed(run.seed, run.id, valid, test)

    def _decided(self, run: queries.RunRow, rule: Criterion, profile: str) -> dict[str, float]:
        """On valid one metric is shown: only a run that is older than that needs its predictions."""
        valid = self._valid[run.id]
        if not valid or rule.metric in valid:
            return valid
        return completed(self._store, run.id, {"valid": valid}, profile)["valid"]


def _text_only(store: Store, asked: Sequence[_Group]) -> list[_Group]:
    """Text-only groups of the store that have a table among those asked for, and are not asked for themselves."""
    ours = {(one.members.key, one.members.data_digest) for one in asked}
    keys = {row.group_key for row in queries.samples(store) if _is_text_only(row.spec)}
    found = _groups(store, queries.finished(store, groups=sorted(keys))) if keys else []
    kinds = {one.kind for one in asked}
    theirs = [one for one in found if (one.members.key, one.members.data_digest) not in ours]
    return [one for one in theirs if one.kind in kinds and not one.members.trial and _is_text_only(one.spec)]


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
