"""Groups of runs compared two by two on the same clips: gathered from the store, unrounded, or refused with the reason.

The statistics are evaluation/significance.py's; how they are told is report/compare_sheets.py's.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import combinations
from typing import Any

from raymsa.errors import UsageError
from raymsa.evaluation.metrics import CRITERIA, LOW_IS_GOOD, PROFILES
from raymsa.evaluation.significance import Compared, Scored, compare, holm, scored, simultaneous
from raymsa.report.finals import rule_of
from raymsa.report.sides import Answers, Side, answers, difference, side, videos
from raymsa.store import Store, queries
from raymsa.words import for_json, visible


@dataclass(frozen=True)
class Drawing:
    """How it is drawn: the level of all intervals together, the number of resamples (and of swaps), and their seed."""

    confidence: float = 0.95
    resamples: int = 10_000
    seed: int = 0


@dataclass(frozen=True)
class Difference:
    """Two groups on one metric. `p_holm` is p corrected for all tests of the table; `by_seed`: both have the same
    seeds, which were paired."""

    a: str
    b: str
    metric: str
    high_is_good: bool
    by_seed: bool
    found: Compared
    p_holm: float


@dataclass(frozen=True)
class Comparison:
    """Groups on one split, and all their differences. `videos` is None where the clips' videos are not known. Each
    interval has the level `each`, so that all of them together have that of `drawing`."""

    split: str
    profile: str
    drawing: Drawing
    each: float
    clips: int
    videos: int | None
    sides: tuple[Side, ...]
    unparsable: dict[str, float]
    differences: tuple[Difference, ...]


def comparison(
    store: Store,
    asked: Sequence[str],
    metrics: Sequence[str],
    split: str = "test",
    drawing: Drawing | None = None,
    shards: str | None = None,
) -> Comparison:
    """Every pair of the groups on each metric; on the one that decides, when none is named.

    `shards` is where a person says the clips are: they tell the videos, where ids do not. Raises UsageError when they
    cannot be compared, NotFound and NotFinished for a group that is not there or not done.
    """
    drawing = drawing or Drawing()
    sides = _named_apart([side(store, words) for words in asked])
    _refuse_unlike(sides)
    profile = sides[0].profile
    chosen = _known(metrics, profile) or (_decides(store, sides[0]),)
    said = [answers(store, one, split) for one in sides]
    _refuse_other_clips(sides, said)
    known = videos(sides[0], said[0].clips, shards)
    where = said[0].clips if known is None else known
    pairs = [
        (sides[i], sides[j], _scored(sides[i], sides[j], said[i], said[j], where))
        for i, j in combinations(range(len(sides)), 2)
    ]
    wide = replace(drawing, confidence=simultaneous(drawing.confidence, len(chosen) * len(pairs)))
    return Comparison(
        split=split,
        profile=profile,
        drawing=drawing,
        each=wide.confidence,
        clips=len(where),
        videos=None if known is None else len(set(known)),
        sides=tuple(sides),
        unparsable={one.name: each.unparsable for one, each in zip(sides, said, strict=True)},
        differences=_corrected([_of(a, b, data, profile, name, wide) for name in chosen for a, b, data in pairs]),
    )


def as_json(found: Comparison) -> dict[str, Any]:
    """The same as plain data, unrounded; NaN is null, because JSON has none."""
    return for_json(  # type: ignore[no-any-return]
        {
            **asdict(found),
            "sides": [{k: v for k, v in asdict(one).items() if k != "spec"} for one in found.sides],
            "differences": [{**asdict(each), "found": each.found._asdict()} for each in found.differences],
        }
    )


def _scored(a: Side, b: Side, of_a: Answers, of_b: Answers, where: Sequence[str]) -> Scored:
    return scored(of_a.score_SC, of_b.score_SC, of_a.label_C, where, by_seed=a.seeds == b.seeds)


def _of(a: Side, b: Side, data: Scored, profile: str, metric: str, drawing: Drawing) -> Difference:
    found = compare(data, profile, metric, **asdict(drawing))
    return Difference(a.name, b.name, metric, metric not in LOW_IS_GOOD, data.by_seed, found, math.nan)


def _corrected(differences: list[Difference]) -> tuple[Difference, ...]:
    corrected = holm([each.found.p for each in differences])
    return tuple(replace(each, p_holm=float(p)) for each, p in zip(differences, corrected, strict=True))


def _named_apart(sides: list[Side]) -> list[Side]:
    """With names that differ: where two have the same, as the person named them."""
    for one, other in combinations(sides, 2):
        if set(one.runs) & set(other.runs):
            raise UsageError(f"{one.asked} and {other.asked} have runs in common; name different groups")
    names = [one.name for one in sides]
    return [replace(one, name=one.asked) if names.count(one.name) > 1 else one for one in sides]


def _refuse_unlike(sides: list[Side]) -> None:
    for one, other in combinations(sides, 2):
        pair = visible(f"{one.name} and {other.name} cannot be compared")
        if one.profile != other.profile:
            raise UsageError(f"{pair}: their metrics differ in kind ({one.profile}, {other.profile})")
        if None not in (one.data_digest, other.data_digest) and one.data_digest != other.data_digest:
            raise UsageError(
                f"{pair}: their clips were prepared differently (data digests {one.data_digest}, "
                f"{other.data_digest}); variants of one job read the same clips"
            )


def _refuse_other_clips(sides: list[Side], said: list[Answers]) -> None:
    for other, answered in zip(sides[1:], said[1:], strict=True):
        if reason := difference(said[0], answered):
            raise UsageError(visible(f"{sides[0].name} and {other.name} cannot be compared: {reason}"))


def _known(metrics: Sequence[str], profile: str) -> tuple[str, ...]:
    for name in metrics:
        if name not in PROFILES[profile]:
            close = difflib.get_close_matches(name, PROFILES[profile], 1)
            meant = f"; did you mean {close[0]}?" if close else ""
            raise UsageError(f"--metric: given {name!r}{meant} (known: {', '.join(PROFILES[profile])})")
    return tuple(dict.fromkeys(metrics))


def _decides(store: Store, one: Side) -> str:
    """The metric that decides on valid: the task's, or what a search was told to look for, if it is known here."""
    spec = queries.job(store, queries.run(store, one.runs[0]).job_id).spec
    metric = rule_of(spec, one.profile).metric
    return metric if metric in PROFILES[one.profile] else CRITERIA[one.profile].metric
