"""Metrics as functions of sums over clips, so that ten thousand resamples are a matrix product and not as many passes.

A resample counts each clip some times; a metric that follows from sums over clips (of absolute errors, of right
answers, of products of scores and labels) follows from the weighted sums then. A metric of metrics.py that has no entry
here is computed by its own function, slower (see significance.py).

Axes: C clips, K sums; `...` any axes before them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from raymsa.evaluation.metrics import Scores, rounded, sims_bin, unit

Floats = NDArray[np.float64]
VARIES = 1e-12  # least share of the mean square that is variance and not the arithmetic's own error


class Sums(NamedTuple):
    """`of_clips(score_C, label_C)` gives the summands [C, K], `of_sums(sums_...K)` the metric [...]; NaN where it is
    not defined."""

    of_clips: Callable[[Scores, Scores], Floats]
    of_sums: Callable[[Floats], Floats]


def sums_of(profile: str, metric: str, classes: int, middle: float) -> Sums | None:
    """How a metric follows from sums; None when that is not known.

    `classes` is how many there are (of the profile `classes`), `middle` any value near the labels, from which moments
    are counted for precision.
    """
    made: dict[str, dict[str, Sums]] = {
        "mosi": {
            "acc2_has0": _share(lambda s: s >= 0),
            "acc2_nonzero": _share(lambda s: s > 0, without_zeros=True),
            "f1_has0": _f1(2, lambda s: s >= 0),
            "f1_nonzero": _f1(2, lambda s: s > 0, without_zeros=True),
            "acc5": _share(lambda s: rounded(s, 2)),
            "acc7": _share(lambda s: rounded(s, 3)),
            "mae": _mae(lambda s: s),
            "corr": _corr(lambda s: s, middle),
        },
        "sims": {
            "acc2": _share(lambda s: sims_bin(s, 2)),
            "acc3": _share(lambda s: sims_bin(s, 3)),
            "acc5": _share(lambda s: sims_bin(s, 5)),
            "f1": _f1(2, lambda s: sims_bin(s, 2)),
            "mae": _mae(unit),
            "corr": _corr(unit, middle),
        },
        "classes": {
            "acc": _share(lambda s: s),
            "f1": _f1(classes, lambda s: s),
            "f1_macro": Sums(_counts(classes, lambda s: s), _macro_f1),
            "uar": Sums(_counts(classes, lambda s: s), _recall),
        },
    }
    return made[profile].get(metric)


Mapped = Callable[[Scores], NDArray[Any]]


def _share(of: Mapped, without_zeros: bool = False) -> Sums:
    """Right answers among the clips that count."""

    def of_clips(score_C: Scores, label_C: Scores) -> Floats:
        counts_C = (label_C != 0) if without_zeros else np.ones(len(label_C), bool)
        return np.stack([(of(score_C) == of(label_C)) & counts_C, counts_C], -1).astype(float)

    return Sums(of_clips, lambda sums: _divided(sums[..., 0], sums[..., 1]))


def _mae(of: Mapped) -> Sums:
    def of_clips(score_C: Scores, label_C: Scores) -> Floats:
        return np.stack([np.abs(of(score_C) - of(label_C)), np.ones(len(label_C))], -1).astype(float)

    return Sums(of_clips, lambda sums: _divided(sums[..., 0], sums[..., 1]))


def _corr(of: Mapped, middle: float) -> Sums:
    """Moments of scores and labels, counted from `middle`."""

    def of_clips(score_C: Scores, label_C: Scores) -> Floats:
        x, y = (np.asarray(of(value), float) - middle for value in (score_C, label_C))
        return np.stack([np.ones(len(x)), x, y, x * x, y * y, x * y], -1)

    def of_sums(sums: Floats) -> Floats:
        n, x, y, xx, yy, xy = np.moveaxis(sums, -1, 0)
        products = ((xx, x, x), (yy, y, y), (xy, x, y))
        var_x, var_y, both = (_divided(of_two, n) - _divided(one * other, n * n) for of_two, one, other in products)
        varies = (var_x * n > VARIES * xx) & (var_y * n > VARIES * yy)
        return _divided(both, np.where(varies, np.sqrt(np.abs(var_x * var_y)), 0))

    return Sums(of_clips, of_sums)


def _counts(classes: int, of: Mapped, without_zeros: bool = False) -> Callable[[Scores, Scores], Floats]:
    """For each class: right answers, answers, labels; one after another."""

    def of_clips(score_C: Scores, label_C: Scores) -> Floats:
        counts_C1 = ((label_C != 0) if without_zeros else np.ones(len(label_C), bool))[:, None]
        said, true = (of(value)[:, None] == np.arange(classes) for value in (score_C, label_C))
        counts_CK: Floats = (np.concatenate([said & true, said, true], -1) & counts_C1).astype(float)
        return counts_CK

    return of_clips


def _f1(classes: int, of: Mapped, without_zeros: bool = False) -> Sums:
    """F1 of each class, weighted with its share among the labels."""

    def of_sums(sums: Floats) -> Floats:
        both, said, true = np.split(sums, 3, -1)
        return _divided((_divided(2 * both, said + true, 0.0) * true).sum(-1), true.sum(-1))

    return Sums(_counts(classes, of, without_zeros), of_sums)


def _macro_f1(sums: Floats) -> Floats:
    both, said, true = np.split(sums, 3, -1)
    return _divided(_divided(2 * both, said + true, 0.0).sum(-1), (said + true > 0).sum(-1))


def _recall(sums: Floats) -> Floats:
    both, _, true = np.split(sums, 3, -1)
    return _divided(_divided(both, true, 0.0).sum(-1), (true > 0).sum(-1))


def _divided(top: Floats, bottom: Floats, else_: float = math.nan) -> Floats:
    quotient: Floats = np.divide(top, bottom, out=np.full(np.shape(top), else_), where=np.asarray(bottom) > 0)
    return quotient
