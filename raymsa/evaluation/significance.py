"""Is one group of runs better than another on the same clips: an interval, a permutation test, Holm's correction.

The statistic is the difference of a metric, A minus B, each the mean over a group's runs (its seeds), as results tables
have it. Two things could have come out otherwise, and are crossed: which videos were in the test set (clips of one
video are alike, so a video is taken whole), and which seeds were run.

Interval, `compare`: both levels are resampled with replacement.

- Videos: as many as there are are drawn, `resamples` times, each time the same for every run, and the metric of every
  run is computed anew. The variance of the difference is multiplied by n / (n - 1), which draws of n fall short of; n
  is Kish's effective number, as videos differ in length.
- Seeds: the statistic is a mean over them, so what endless draws of as many seeds give is known, and nothing is drawn:
  the variance of their values over their number, n / (n - 1) again. Seeds that A and B both have are drawn together,
  as differences; where the groups have other seeds, those of A and of B each for themselves.
- What seeds differ by on account of the videos that happen to be there is in both variances and is counted once: it is
  taken out of the seeds' (the idea of two-way clustered errors: Cameron, Gelbach and Miller 2011,
  doi:10.1198/jbes.2010.07136).
- The interval is the difference plus and minus the root of the variances' sum times a quantile of Student's t: the mean
  of those for each level's own n, weighted with the variances (Cochran and Cox; for seeds that are not paired, Welch's
  degrees of freedom). So few seeds or few videos make it wide. Of one seed, it is about that seed alone.

Test: A and B are swapped in all clips of a video, for every video or not at random, `resamples` times; p is the share
of differences that are at least as far from 0 as the one found, itself counted: (b + 1) / (n + 1), Phipson and Smyth
2010, doi:10.2202/1544-6115.1585. It asks whether these runs differ by more than the choice of videos explains, and says
nothing of other seeds. Runs of one seed are swapped with each other; if the groups have other seeds, each with each.

Axes: S seeds of a group, C clips, V videos, R resamples, K sums of a metric, P pairs of runs that are swapped.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from raymsa.evaluation.metrics import PROFILES, Metric
from raymsa.evaluation.sums import Floats, Sums, sums_of

NUMBERS = 4_000_000  # held at once by a batch of resamples: 32 MB each time they are copied
NOTHING = (math.nan, math.nan, math.nan, math.nan, math.nan, 0)  # from `low` on, of what cannot be compared
EQUAL = 1e-9  # differences this near are the same: sums in another order differ by less


@dataclass(frozen=True)
class Scored:
    """What two groups said of the same clips: scores [S, C], labels [C], and the number of each clip's video [C], from
    0 and without gaps. `by_seed`: row s of both groups is of the same seed."""

    a_SC: NDArray[np.float32]
    b_SC: NDArray[np.float32]
    label_C: NDArray[np.float32]
    video_C: NDArray[np.intp]
    by_seed: bool

    @property
    def videos(self) -> int:
        """How many there are."""
        return int(self.video_C.max()) + 1

    @property
    def effective_videos(self) -> float:
        """As many videos of equal length would say as much (Kish): (sum of clips) ** 2 / sum of (clips ** 2)."""
        clips_V = np.bincount(self.video_C)
        return float(clips_V.sum() ** 2 / (clips_V**2).sum())


class Compared(NamedTuple):
    """`a`, `b` and `difference` (a - b) in the metric's own unit, the interval, its two standard errors, and p.

    NaN where there is none: all of it when a run has no such metric, the interval of a single video, `se_seeds` of a
    single seed. `left_out` resamples had no such metric.
    """

    a: float
    b: float
    difference: float
    low: float
    high: float
    se_videos: float
    se_seeds: float
    p: float
    left_out: int


def scored(a: ArrayLike, b: ArrayLike, label: ArrayLike, video: ArrayLike, by_seed: bool) -> Scored:
    """Checked and in the arithmetic of metrics.py. Videos are any names, one for each clip. Raises ValueError."""
    a_SC, b_SC = (np.atleast_2d(np.asarray(scores, np.float32)) for scores in (a, b))
    label_C = np.asarray(label, np.float32)
    video_C = np.unique(np.asarray(video), return_inverse=True)[1].reshape(-1)
    counts = (a_SC.shape[1], b_SC.shape[1], len(label_C), len(video_C))
    if len(set(counts)) > 1 or not len(label_C):
        raise ValueError(f"clips of A, B, labels, videos: {counts}; they are of the same clips, one at least")
    if by_seed and len(a_SC) != len(b_SC):
        raise ValueError(f"{len(a_SC)} and {len(b_SC)} runs cannot be of the same seeds")
    return Scored(a_SC, b_SC, label_C, video_C, by_seed)


def compare(
    data: Scored, profile: str, metric: str, *, confidence: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> Compared:
    """The difference of a metric with its interval and its test, as the head of this file says."""
    runs = _runs(data, profile, metric)
    a_S, b_S = (values_1S[0] for values_1S in runs.resampled(np.ones((1, data.videos))))
    a, b = float(a_S.mean()), float(b_S.mean())
    if not math.isfinite(a - b):
        return Compared(a, b, math.nan, *NOTHING)
    for_videos, for_swaps = np.random.default_rng(seed).spawn(2)
    a_RS, b_RS = _resampled(runs, data.videos, resamples, for_videos)
    there_R = np.isfinite(a_RS.mean(-1) - b_RS.mean(-1))
    errors = _errors(data, (a_S, b_S), (a_RS[there_R], b_RS[there_R]))
    half = _half(errors, confidence)
    p = _p(runs, a - b, data.videos, resamples, for_swaps)
    of_seeds = math.sqrt(errors[1].variance) if errors[1:] else math.nan
    left_out = int((~there_R).sum())
    return Compared(a, b, a - b, a - b - half, a - b + half, math.sqrt(errors[0].variance), of_seeds, p, left_out)


def holm(p: ArrayLike) -> Floats:
    """p values of a family, corrected for its size by Holm's step-down method. NaN is no member of the family."""
    given = np.asarray(p, float)
    corrected = np.full(given.shape, math.nan)
    order = np.argsort(given)[: int((~np.isnan(given)).sum())]  # NaN is sorted to the end
    stepped = given[order] * np.arange(len(order), 0, -1)
    corrected[order] = np.minimum(np.maximum.accumulate(stepped), 1)
    return corrected


def simultaneous(confidence: float, intervals: int) -> float:
    """The level of each of some intervals with which all of them together have the level `confidence`, or more.

    Bonferroni's, whatever they have to do with each other.
    """
    return 1 - (1 - confidence) / intervals


class _Error(NamedTuple):
    variance: float
    df: float


def _errors(data: Scored, found: tuple[Floats, Floats], drawn: tuple[Floats, Floats]) -> list[_Error]:
    """Of the videos, and of the seeds where there are several."""
    if data.videos == 1 or len(drawn[0]) < 2:
        return [_Error(math.nan, 1)]
    short = data.effective_videos / (data.effective_videos - 1)
    of_videos = float((drawn[0].mean(-1) - drawn[1].mean(-1)).var()) * short
    errors = [_Error(of_videos, max(1.0, data.effective_videos - 1))]
    units = [(found[0] - found[1], drawn[0] - drawn[1])] if data.by_seed else zip(found, drawn, strict=True)
    seeds = [_of_seeds(one_S, one_RS, short) for one_S, one_RS in units if len(one_S) > 1]
    return errors + ([_together(seeds)] if seeds else [])


def _of_seeds(value_S: Floats, value_RS: Floats, short: float) -> _Error:
    """The variance of a mean over seeds, without what the videos at hand have made them differ by."""
    seeds = len(value_S)
    by_videos = (value_RS - value_RS.mean(-1, keepdims=True)).var(0).mean() * short / (seeds - 1)
    return _Error(max(0.0, float(value_S.var(ddof=1) / seeds - by_videos)), seeds - 1)


def _together(errors: list[_Error]) -> _Error:
    """Of a difference between two means, with Welch's degrees of freedom."""
    total = sum(error.variance for error in errors)
    if not total:
        return errors[0]
    return _Error(total, total**2 / sum(error.variance**2 / error.df for error in errors))


def _half(errors: list[_Error], confidence: float) -> float:
    """Half the length of the interval."""
    from scipy.stats import t  # a second to import, and not for every command

    total = sum(error.variance for error in errors)
    if not total > 0:
        return total
    weighted = sum(error.variance * t.ppf((1 + confidence) / 2, error.df) for error in errors)
    return float(weighted / math.sqrt(total))


def _resampled(runs: _Runs, videos: int, resamples: int, rng: np.random.Generator) -> tuple[Floats, Floats]:
    """The metric of every run of both groups in every resample of the videos."""
    parts = [runs.resampled(_times(videos, count, rng)) for count in _batches(resamples, videos + runs.width)]
    return np.concatenate([part[0] for part in parts]), np.concatenate([part[1] for part in parts])


def _times(videos: int, resamples: int, rng: np.random.Generator) -> Floats:
    """How often each video is drawn [R, V]."""
    drawn_RV = rng.integers(videos, size=(resamples, videos)) + np.arange(resamples)[:, None] * videos
    return np.bincount(drawn_RV.ravel(), minlength=resamples * videos).reshape(resamples, videos).astype(float)


def _p(runs: _Runs, found: float, videos: int, resamples: int, rng: np.random.Generator) -> float:
    as_far = 0
    for count in _batches(resamples, videos + runs.width):
        swapped_RV = rng.integers(2, size=(count, videos), dtype=np.int8).astype(float)
        nearer_R = np.abs(runs.swapped(swapped_RV)) < abs(found) - EQUAL
        as_far += int((~nearer_R).sum())  # NaN is not nearer
    return (as_far + 1) / (resamples + 1)


def _batches(resamples: int, numbers: int) -> Iterator[int]:
    most = max(1, NUMBERS // numbers)
    yield from (min(most, resamples - at) for at in range(0, resamples, most))


def _runs(data: Scored, profile: str, metric: str) -> _Runs:
    function = PROFILES[profile][metric]
    answers = (data.a_SC, data.b_SC, data.label_C)
    if not all(np.isfinite(values).all() for values in answers):
        return _ByClips(data, lambda score_C, label_C: math.nan)
    sums = sums_of(profile, metric, int(max(values.max() for values in answers)) + 1, float(data.label_C.mean()))
    return _ByClips(data, function) if sums is None else _BySums(data, sums)


class _BySums:
    """Runs as the sums over each video that their metric follows from."""

    def __init__(self, data: Scored, sums: Sums) -> None:
        self._of_sums = sums.of_sums
        self._a_VSK, self._b_VSK = (_by_video(scores, data, sums) for scores in (data.a_SC, data.b_SC))
        one, other = _pairs(data)
        self._one_VPK, self._other_VPK = self._a_VSK[:, one], self._b_VSK[:, other]
        self.width = 2 * self._one_VPK[0].size

    def resampled(self, times_RV: Floats) -> tuple[Floats, Floats]:
        a_RSK, b_RSK = (np.tensordot(times_RV, sums_VSK, 1) for sums_VSK in (self._a_VSK, self._b_VSK))
        return self._of_sums(a_RSK), self._of_sums(b_RSK)

    def swapped(self, swapped_RV: Floats) -> Floats:
        moved_RPK = np.tensordot(swapped_RV, self._other_VPK - self._one_VPK, 1)
        one_RP = self._of_sums(self._one_VPK.sum(0) + moved_RPK)
        return (one_RP - self._of_sums(self._other_VPK.sum(0) - moved_RPK)).mean(-1)  # type: ignore[no-any-return]


class _ByClips:
    """The same by the metric's own function, one resample after the other."""

    def __init__(self, data: Scored, function: Metric) -> None:
        self._data, self._function = data, function
        self._pairs = list(zip(*_pairs(data), strict=True))
        self.width = data.label_C.size

    def resampled(self, times_RV: Floats) -> tuple[Floats, Floats]:
        taken = [np.repeat(np.arange(self.width), times_V[self._data.video_C].astype(int)) for times_V in times_RV]
        return self._values(self._data.a_SC, taken), self._values(self._data.b_SC, taken)

    def _values(self, score_SC: Any, taken: list[NDArray[np.intp]]) -> Floats:
        label_C = self._data.label_C
        return np.array([[self._function(score_C[clips], label_C[clips]) for score_C in score_SC] for clips in taken])

    def swapped(self, swapped_RV: Floats) -> Floats:
        return np.array([self._difference(swapped_V[self._data.video_C] > 0) for swapped_V in swapped_RV])

    def _difference(self, swapped_C: NDArray[np.bool_]) -> float:
        data, function = self._data, self._function
        differences = [
            function(np.where(swapped_C, data.b_SC[j], data.a_SC[i]), data.label_C)
            - function(np.where(swapped_C, data.a_SC[i], data.b_SC[j]), data.label_C)
            for i, j in self._pairs
        ]
        return float(np.mean(differences))


_Runs = _BySums | _ByClips


def _by_video(score_SC: NDArray[np.float32], data: Scored, sums: Sums) -> Floats:
    """Sums over the clips of each video [V, S, K]."""
    order_C = np.argsort(data.video_C, kind="stable")
    begins_V = np.searchsorted(data.video_C[order_C], np.arange(data.videos))
    of_runs = [np.add.reduceat(sums.of_clips(score_C, data.label_C)[order_C], begins_V) for score_C in score_SC]
    return np.stack(of_runs, 1)


def _pairs(data: Scored) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Runs of A and B that are swapped with each other: those of one seed, or each with each."""
    a, b = np.arange(len(data.a_SC)), np.arange(len(data.b_SC))
    return (a, b) if data.by_seed else (np.repeat(a, len(b)), np.tile(b, len(a)))
