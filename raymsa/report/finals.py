"""A run's final metrics: in which order they stand, what decides, and those that are younger than the run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from raymsa.evaluation.metrics import CRITERIA, PROFILES, Criterion, measure
from raymsa.report.cells import FIRST
from raymsa.report.cells import HEALTH as HEALTH
from raymsa.report.spread import Spread, spread
from raymsa.searchspec import aim_of
from raymsa.store import Store, queries
from raymsa.target import task_of

CONSTANT = "constant_"  # prefix of the floor's metrics among a run's finals


def rule_of(spec: Mapping[str, Any], profile: str) -> Criterion:
    """What decides on valid: the task's criterion, or what a search was told to look for."""
    if not spec.get("search"):
        return CRITERIA[profile]
    aim = aim_of(dict(spec))
    return Criterion(aim.metric, aim.metric, aim.high_is_good)


def in_order(profile: str) -> tuple[str, ...]:
    """A profile's metrics as columns stand: what papers are compared by is first."""
    return tuple(sorted(PROFILES[profile], key=lambda name: (name not in FIRST, name in FIRST and FIRST.index(name))))


def completed(
    store: Store, run_id: str, finals: Mapping[str, dict[str, float]], profile: str
) -> dict[str, dict[str, float]]:
    """Recorded finals; a metric that is younger than the run is computed from its predictions."""
    found = dict(finals)
    for split, values in finals.items():
        if PROFILES[profile].keys() <= values.keys():
            continue
        clips = queries.predictions(store, run_id, split)
        if clips:
            found[split] = {**measure(profile, [c.score for c in clips], [c.label for c in clips]), **values}
    return found


def finals_of(store: Store, run: queries.RunRow, profile: str) -> dict[str, dict[str, float]]:
    """A run's final metrics, `completed`."""
    return completed(store, run.id, queries.finals(store, run.id), profile)


def tests_of(store: Store, runs: Sequence[queries.RunRow]) -> dict[str, dict[str, float]]:
    """The metrics on test of some runs, `completed`: run -> metric -> value; nothing of those that are not done."""
    found = queries.all_finals(store, [run.id for run in runs])
    tests = {name: {"test": splits["test"]} for name, splits in found.items() if "test" in splits}
    whole = {run.id: completed(store, run.id, tests.get(run.id, {}), task_of(run.spec).profile) for run in runs}
    return {name: splits.get("test", {}) for name, splits in whole.items()}


def spreads(names: Iterable[str], values: Sequence[Mapping[str, float]]) -> dict[str, Spread]:
    """Mean and sd of each metric over runs, of those that have it."""
    found = {name: spread(value[name] for value in values if name in value) for name in names}
    return {name: one for name, one in found.items() if one is not None}


def constant_of(finals: Sequence[Mapping[str, float]], names: Iterable[str]) -> dict[str, float]:
    """The floor as the first run recorded it: it depends on the labels alone, not on the run."""
    recorded = next((values for values in finals if any(name.startswith(CONSTANT) for name in values)), {})
    return {name: recorded[CONSTANT + name] for name in names if CONSTANT + name in recorded}
