"""The field's metrics, unrounded: of scores by the rules of thuiar/MMSA (src/MMSA/utils/metricsTop.py at a94e65d),
of classes by those of scikit-learn.

A metric is one function of (score_B, label_B) in a profile; adding one here adds it to every table.
Nothing is hidden: NaN in a score makes every metric of it NaN, a constant prediction has no correlation.

Axes: B clips.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from raymsa.evaluation.criteria import CRITERIA as CRITERIA
from raymsa.evaluation.criteria import Criterion as Criterion

Scores = NDArray[np.float32]
Metric = Callable[[Scores, Scores], float]

PROFILES: dict[str, dict[str, Metric]] = {"mosi": {}, "sims": {}, "classes": {}}

# Right-closed bins of CH-SIMS: a score on an edge belongs to the bin below it, so 0 is negative there.
SIMS_EDGES = {2: (0.0,), 3: (-0.1, 0.1), 5: (-0.7, -0.1, 0.1, 0.7)}


LOW_IS_GOOD = ("mae",)  # metrics; of all others, a high value is good


def measure(profile: str, score: ArrayLike, label: ArrayLike) -> dict[str, float]:
    """Every metric of a profile for scores and labels [B]: `mosi` (MOSI, MOSEI), `sims` (CH-SIMS), or `classes`, where
    both are classes counted from 0 and an answer that names no class is -1.

    Arithmetic is in float32 as in MMSA: bin edges such as 0.1 are compared in it, and means on a tie round as there.
    Raises ValueError on unequal lengths or NaN labels.
    """
    score_B, label_B = np.asarray(score, np.float32), np.asarray(label, np.float32)
    if score_B.shape != label_B.shape or score_B.ndim != 1:
        raise ValueError(f"{score_B.shape} scores for {label_B.shape} labels")
    if np.isnan(label_B).any():
        raise ValueError("a label is NaN")
    metrics = PROFILES[profile]
    if not len(score_B) or np.isnan(score_B).any():
        return dict.fromkeys(metrics, math.nan)
    return {name: float(metric(score_B, label_B)) for name, metric in metrics.items()}


def constant_scores(profile: str, constant: float, label: ArrayLike) -> dict[str, float]:
    """The floor: metrics of saying the training median, or the most frequent class, of every clip."""
    label_B = np.asarray(label, np.float32)
    return measure(profile, np.full_like(label_B, constant), label_B)


def confusion(predicted: ArrayLike, true: ArrayLike, classes: int) -> NDArray[np.int64]:
    """Clips by true class (rows) and answer (columns); the last column counts the answers that name no class."""
    table = np.zeros((classes, classes + 1), np.int64)
    answer_B = np.asarray(predicted, np.int64)
    np.add.at(table, (np.asarray(true, np.int64), np.where(answer_B < 0, classes, answer_B)), 1)
    return table


def weighted_f1(predicted_B: NDArray[Any], true_B: NDArray[Any]) -> float:
    """F1 per class, averaged with the classes' shares among the true labels (scikit-learn's `weighted`)."""
    if not len(true_B):
        return math.nan
    return sum(_f1(predicted_B == c, true_B == c) * float(np.mean(true_B == c)) for c in np.unique(true_B))


def metric(*profiles: str) -> Callable[[Metric], Metric]:
    """Register a function under its own name (without `sims_`) in the profiles given."""

    def register(function: Metric) -> Metric:
        for profile in profiles:
            PROFILES[profile][function.__name__.removeprefix("sims_")] = function
        return function

    return register


@metric("mosi")
def acc2_has0(score_B: Scores, label_B: Scores) -> float:
    """Negative against non-negative, all clips. Minus zero is zero."""
    return _accuracy(score_B >= 0, label_B >= 0)


@metric("mosi")
def acc2_nonzero(score_B: Scores, label_B: Scores) -> float:
    """Negative against positive, without the clips labelled exactly 0; NaN when none is left."""
    kept_B = label_B != 0
    return _accuracy(score_B[kept_B] > 0, label_B[kept_B] > 0)


@metric("mosi")
def f1_has0(score_B: Scores, label_B: Scores) -> float:
    """Weighted F1 of negative against non-negative."""
    return weighted_f1(score_B >= 0, label_B >= 0)


@metric("mosi")
def f1_nonzero(score_B: Scores, label_B: Scores) -> float:
    """Weighted F1 of negative against positive, without the clips labelled exactly 0."""
    kept_B = label_B != 0
    return weighted_f1(score_B[kept_B] > 0, label_B[kept_B] > 0)


@metric("mosi")
def acc5(score_B: Scores, label_B: Scores) -> float:
    """Five classes: clipped to +-2 and rounded."""
    return _rounded_accuracy(score_B, label_B, 2)


@metric("mosi")
def acc7(score_B: Scores, label_B: Scores) -> float:
    """Seven classes: clipped to +-3 and rounded."""
    return _rounded_accuracy(score_B, label_B, 3)


@metric("mosi")
def mae(score_B: Scores, label_B: Scores) -> float:
    """Mean absolute error, in points of the label scale; scores are not clipped."""
    return float(np.abs(score_B - label_B).mean())


@metric("mosi")
def corr(score_B: Scores, label_B: Scores) -> float:
    """Pearson correlation; NaN when scores or labels do not vary."""
    if not np.isfinite(score_B).all() or np.ptp(score_B) == 0 or np.ptp(label_B) == 0:
        return math.nan
    return float(np.corrcoef(score_B, label_B)[0, 1])


@metric("classes")
def acc(answer_B: Scores, label_B: Scores) -> float:
    """Share of clips whose class is right (WAR)."""
    return _accuracy(answer_B, label_B)


@metric("classes")
def f1(answer_B: Scores, label_B: Scores) -> float:
    """F1 per class, averaged with the classes' shares among the labels."""
    return weighted_f1(answer_B, label_B)


@metric("classes")
def f1_macro(answer_B: Scores, label_B: Scores) -> float:
    """F1 per class, every class that is labelled or answered counting the same; no class at all is none of them."""
    found = [c for c in np.union1d(answer_B, label_B) if c >= 0]
    return float(np.mean([_f1(answer_B == c, label_B == c) for c in found]))


@metric("classes")
def uar(answer_B: Scores, label_B: Scores) -> float:
    """Mean recall of the labelled classes (UAR, unweighted accuracy)."""
    return float(np.mean([np.mean(answer_B[label_B == c] == c) for c in np.unique(label_B)]))


@metric("sims")
def sims_acc2(score_B: Scores, label_B: Scores) -> float:
    """Two right-closed bins: 0 counts as negative."""
    return _accuracy(sims_bin(score_B, 2), sims_bin(label_B, 2))


@metric("sims")
def sims_acc3(score_B: Scores, label_B: Scores) -> float:
    """Three bins, cut at -0.1 and 0.1."""
    return _accuracy(sims_bin(score_B, 3), sims_bin(label_B, 3))


@metric("sims")
def sims_acc5(score_B: Scores, label_B: Scores) -> float:
    """Five bins, cut at -0.7, -0.1, 0.1 and 0.7."""
    return _accuracy(sims_bin(score_B, 5), sims_bin(label_B, 5))


@metric("sims")
def sims_f1(score_B: Scores, label_B: Scores) -> float:
    """Weighted F1 of the two bins."""
    return weighted_f1(sims_bin(score_B, 2), sims_bin(label_B, 2))


@metric("sims")
def sims_mae(score_B: Scores, label_B: Scores) -> float:
    """Mean absolute error of scores clipped to +-1."""
    return mae(unit(score_B), unit(label_B))


@metric("sims")
def sims_corr(score_B: Scores, label_B: Scores) -> float:
    """Pearson correlation of scores clipped to +-1."""
    return corr(unit(score_B), unit(label_B))


def _accuracy(predicted_B: NDArray[Any], true_B: NDArray[Any]) -> float:
    return float(np.mean(predicted_B == true_B)) if len(true_B) else math.nan


def _f1(predicted_B: NDArray[Any], true_B: NDArray[Any]) -> float:
    both = int(np.sum(predicted_B & true_B))
    return 2 * both / (int(np.sum(predicted_B)) + int(np.sum(true_B)))  # asked for classes that occur only


def _rounded_accuracy(score_B: Scores, label_B: Scores, limit: int) -> float:
    return _accuracy(rounded(score_B, limit), rounded(label_B, limit))


def rounded(value_B: Scores, limit: int) -> Scores:
    """The nearest whole number up to +-limit; half to even (0.5 -> 0, 1.5 -> 2), as MMSA's tables were made."""
    return np.round(np.clip(value_B, -limit, limit)).astype(np.float32)


def sims_bin(value_B: Scores, bins: int) -> NDArray[np.intp]:
    """Which of CH-SIMS's bins, counted from 0."""
    # MMSA compares float32 scores with Python numbers, which numpy 2 turns into float32 first
    return np.digitize(unit(value_B), np.asarray(SIMS_EDGES[bins], np.float32), right=True)


def unit(value_B: Scores) -> Scores:
    """Clipped to +-1."""
    return np.clip(value_B, -1, 1)
