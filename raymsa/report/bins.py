"""Scores and labels sorted into bins, and what is counted in them, for figures and tables of a report; unrounded.

Axes: R runs, B clips, K bins.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from raymsa.evaluation.metrics import SIMS_EDGES, confusion
from raymsa.target import Classification, Regression

SEVEN = 3  # the classes of Acc-7 are -3 to 3
FIVE = ("−1 to −0.7", "to −0.1", "to 0.1", "to 0.7", "to 1")  # of CH-SIMS, each closed at its high end
SHARES = (5, 25, 50, 75, 95)  # percentiles of residuals
SIGN_EDGES = (0, 1 / 12, 1 / 6, 1 / 3, 1 / 2, 2 / 3, 1)  # of |score|, as shares of the label range's half


@dataclass(frozen=True)
class Bins:
    """Names of the bins, and the bin of each value counted from 0. `metric` is the accuracy over these bins."""

    names: tuple[str, ...]
    of: Callable[[ArrayLike], NDArray[np.int64]]
    metric: str | None = None


@dataclass(frozen=True)
class Interval:
    """Mean and Student's t interval of some seeds' values; None for its ends where there are fewer than two numbers, or
    where all are equal: nothing is known of how they spread."""

    mean: float
    low: float | None
    high: float | None
    runs: int


def bins_of(task: Regression | Classification) -> Bins:
    """The classes of Acc-7 (of CH-SIMS, Acc-5; of a classification, its own); seven equal parts of any other range."""
    if isinstance(task, Classification):
        return Bins((*task.classes, "no class"), _class_of(len(task.classes)), "acc")
    if task.profile == "sims":
        return Bins(
            FIVE, lambda value: np.digitize(_single(value, 1), np.array(SIMS_EDGES[5], np.float32), right=True), "acc5"
        )
    if -task.low == task.high == SEVEN:
        names = tuple(f"{level:+d}".replace("-", "−").replace("+0", "0") for level in range(-SEVEN, SEVEN + 1))
        # half-to-even and in float32, as the metric rounds
        return Bins(names, lambda value: np.round(_single(value, SEVEN)).astype(int) + SEVEN, "acc7")
    edges = np.linspace(task.low, task.high, 8)
    names = tuple(f"{low:g} to {high:g}" for low, high in itertools.pairwise(edges))
    return Bins(names, lambda value: np.clip(np.digitize(np.asarray(value), edges) - 1, 0, 6))


def counted(bins: Bins, score_RB: NDArray[Any], label_B: NDArray[Any]) -> NDArray[np.int64]:
    """Clips of all runs together by the label's bin (rows) and the score's (columns); NaN scores are in none."""
    labels = np.broadcast_to(label_B, score_RB.shape)
    given = np.isfinite(score_RB)
    return confusion(bins.of(score_RB[given]), bins.of(labels[given]), len(bins.names))[:, : len(bins.names)]


def residuals(bins: Bins, score_RB: NDArray[Any], label_B: NDArray[Any]) -> dict[int, NDArray[np.float64]]:
    """Percentiles (SHARES) of score minus label over all runs' clips, by the label's bin; NaN ones are left out."""
    place_B = bins.of(label_B)
    found = {}
    for place in range(len(bins.names)):
        apart = (score_RB - label_B)[:, place_B == place]
        if np.isfinite(apart).any():
            found[place] = np.percentile(apart[np.isfinite(apart)], SHARES)
    return found


def signs(
    task: Regression, score_RB: NDArray[Any], label_B: NDArray[Any]
) -> list[tuple[float, float, NDArray[Any], int]]:
    """(low, high, share of right signs in each run, clips of all runs) for each bin of |score|, closed at its low end.

    By the rule of Acc-2: negative against positive, clips labelled exactly 0 left out; of CH-SIMS, 0 is negative. A
    run without clips in a bin has NaN there; a bin without any is left out.
    """
    kept_B = np.ones(len(label_B), bool) if task.profile == "sims" else label_B != 0
    score_RB, label_B = score_RB[:, kept_B], label_B[kept_B]
    half = max(abs(task.low), abs(task.high))
    size_RB, right_RB = np.abs(score_RB), (score_RB > 0) == (label_B > 0)
    found = []
    for low, high in itertools.pairwise(SIGN_EDGES):
        inside_RB = (size_RB >= low * half) & ((size_RB < high * half) | (high == 1))
        clips_R = inside_RB.sum(1)
        if clips_R.any():
            share_R = np.where(clips_R > 0, (right_RB & inside_RB).sum(1) / np.maximum(clips_R, 1), math.nan)
            found.append((low * half, high * half, share_R, int(clips_R.sum())))
    return found


def limits(metric: str) -> tuple[float, float]:
    """The lowest and the highest value that a metric can have, unscaled."""
    return {"mae": (0.0, math.inf), "corr": (-1.0, 1.0)}.get(metric, (0.0, 1.0))


def interval(
    values: Sequence[float], ends: tuple[float, float] = (-math.inf, math.inf), level: float = 0.95
) -> Interval | None:
    """Where the mean over seeds lies, if seeds are drawn from a normal distribution, and within the `ends` of what is
    possible; None for no values."""
    if not values:
        return None
    mean = float(np.mean(values))
    if min(values) == max(values) or not np.isfinite(values).all():
        return Interval(mean, None, None, len(values))
    from scipy.stats import t

    reach = float(t.ppf((1 + level) / 2, len(values) - 1)) * float(np.std(values, ddof=1)) / math.sqrt(len(values))
    return Interval(mean, max(ends[0], mean - reach), min(ends[1], mean + reach), len(values))


def _single(value: ArrayLike, limit: float) -> NDArray[np.float32]:
    return np.clip(np.asarray(value, np.float32), -limit, limit)


def _class_of(classes: int) -> Callable[[ArrayLike], NDArray[np.int64]]:
    def of(value: ArrayLike) -> NDArray[np.int64]:
        index = np.asarray(value, np.int64)
        return np.where(index < 0, classes, index)

    return of
