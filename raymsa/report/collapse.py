"""Whether runs are collapsed: no better than always saying the same, or doing just that.

The measure is the metric by which epochs are chosen, whatever a search was told to look for: a constant prediction has
no correlation, so there is no floor of it. A floor that is not known makes nobody collapsed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from raymsa.evaluation.criteria import CRITERIA, Criterion
from raymsa.report.cells import FIRST, number
from raymsa.report.finals import CONSTANT, constant_of, tests_of
from raymsa.report.spread import spread
from raymsa.store import Store, queries
from raymsa.target import task_of

SAME = 1e-9  # metrics that differ by less are those of the same answers


@dataclass(frozen=True)
class Fallen:
    """A collapsed run, or mean (`seed` None). `value` is no better than `floor`, or neither is told; `one_value` is
    what it said of every clip, if it said the same of all."""

    seed: int | None
    value: float | None
    floor: float | None
    one_value: float | None


@dataclass(frozen=True)
class Collapse:
    """What is collapsed of some runs that differ in the seed alone; `runs` is how many were judged."""

    metric: str
    split: str
    runs: int
    seeds: tuple[Fallen, ...] = ()
    mean: Fallen | None = None

    @property
    def words(self) -> str:
        """For a row's label: empty where nothing is collapsed."""
        if not self.seeds:
            return ""
        if len(self.seeds) == self.runs:
            return "collapsed"
        some = f"collapsed: {len(self.seeds)} of {self.runs} seeds"
        return some + (", and the mean" if self.mean else "")

    def of(self, seed: int) -> Collapse:
        """What it says of one seed."""
        return replace(self, runs=1, seeds=tuple(one for one in self.seeds if one.seed == seed), mean=None)

    def reasons(self, classes: Sequence[str] = ()) -> Iterator[str]:
        """Why, a sentence for each seed and one for the mean."""
        for one in (*self.seeds, *([self.mean] if self.mean and self.runs > 1 else [])):
            who = "the mean" if one.seed is None else f"seed {one.seed}"
            if one.one_value is not None:
                what = _answer(one.one_value, classes)
                yield f"collapsed: {who} predicts one value ({what}) for all {self.split} clips"
            elif one.value is not None:
                unit = "" if self.metric in FIRST else " %"
                ours, floor = number(self.metric, one.value), number(self.metric, one.floor)
                yield (
                    f"collapsed: {who} has a {self.split} {self.metric} of {ours}{unit}, no better than the constant "
                    f"predictor's {floor}{unit}"
                )


def collapse(
    found: Mapping[int, Mapping[str, float]], profile: str, said: Mapping[int, float] | None = None, split: str = "test"
) -> Collapse:
    """Judge runs, and their mean. `found` is seed -> final metrics on a split, among them the constant's, which is the
    same for all; `said` is seed -> the one value that it said of all clips."""
    rule, said = CRITERIA[profile], said or {}
    floor = constant_of(list(found.values()), (rule.metric,)).get(rule.metric)
    scored = {seed: values for seed, values in found.items() if values}
    judged = [_judged(seed, values.get(rule.metric), floor, rule, said.get(seed)) for seed, values in scored.items()]
    mean = spread(values[rule.metric] for values in scored.values() if rule.metric in values)
    return Collapse(
        metric=rule.metric,
        split=split,
        runs=len(scored),
        seeds=tuple(one for one in judged if one is not None),
        mean=None if mean is None else _judged(None, mean.mean, floor, rule, None),
    )


def one_values(store: Store, tests: Mapping[str, Mapping[str, float]], profiles: Mapping[str, str]) -> dict[str, float]:
    """Of runs that said the same of all their test clips, what they said: run -> score or class.

    `tests` are the runs' final metrics, `profiles` the rules of these.
    """
    suspects = [run_id for run_id, test in tests.items() if _may_be_constant(test, profiles[run_id])]
    found = queries.score_ranges(store, suspects, "test")
    return {run_id: low for run_id, (low, high, clips) in found.items() if low == high and clips > 1}


def collapsed(
    store: Store, runs: Sequence[queries.RunRow], tests: Mapping[str, Mapping[str, float]] | None = None
) -> frozenset[str]:
    """Those of some runs that are collapsed, each judged alone. `tests` are their final metrics, if they are known."""
    tests = tests_of(store, runs) if tests is None else tests
    profiles = {run.id: task_of(run.spec).profile for run in runs}
    said = one_values(store, tests, profiles)
    by_seed = {run.id: {run.seed: said[run.id]} if run.id in said else {} for run in runs}
    judged = {run.id: collapse({run.seed: tests[run.id]}, profiles[run.id], by_seed[run.id]) for run in runs}
    return frozenset(run_id for run_id, found in judged.items() if found.words)


def of_run(store: Store, run: queries.RunRow, test: Mapping[str, float], profile: str) -> Collapse:
    """Judge one run by its final metrics on test."""
    said = one_values(store, {run.id: test}, {run.id: profile})
    return collapse({run.seed: test}, profile, {run.seed: said[run.id]} if said else {})


def _judged(
    seed: int | None, value: float | None, floor: float | None, rule: Criterion, one_value: float | None
) -> Fallen | None:
    if _no_better(value, floor, rule):
        return Fallen(seed, value, floor, one_value)
    return None if one_value is None else Fallen(seed, None, None, one_value)


def _no_better(value: float | None, floor: float | None, rule: Criterion) -> bool:
    if value is None or floor is None or math.isnan(floor):
        return False
    return math.isnan(value) or rule.turned(value) >= rule.turned(floor) - SAME


def _may_be_constant(test: Mapping[str, float], profile: str) -> bool:
    """Whether its scores are worth a look: a constant has no correlation, and the mean recall of the constant class."""
    if profile != "classes":
        return bool(test) and math.isnan(test.get("corr", math.nan))
    return bool(test) and test.get("uar", 0.0) <= test.get(f"{CONSTANT}uar", 1.0) + SAME


def _answer(value: float, classes: Sequence[str]) -> str:
    return classes[int(value)] if 0 <= value < len(classes) else f"{value:g}"
