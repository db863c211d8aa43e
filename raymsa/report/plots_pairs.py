"""Figures about two variants: their scores and their errors for the same clips.

Axes: B test clips.
"""

from __future__ import annotations

import itertools
import math
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raymsa.report.evidence import Evidence, Group
from raymsa.report.plots import INK, Plot, look, plot, short
from raymsa.report.plots_clips import DARKEST, against, scored
from raymsa.target import Classification, Regression

PAIRS = 6  # of variants held against each other


def pairs(about: Evidence) -> list[Plot]:
    """Two figures for each pair of variants; none for classes, whose order says nothing."""
    task = about.task
    if isinstance(task, Classification):
        return []
    chosen = list(itertools.combinations(scored(about), 2))[:PAIRS]
    return [made for one, two in chosen for made in (_scores(task, one, two), _errors(about, one, two))]


def left_out(about: Evidence) -> int:
    """Pairs of variants that `pairs` does not show."""
    return max(0, math.comb(len(scored(about)), 2) - PAIRS)


def _scores(task: Regression, one: Group, two: Group) -> Plot:
    x_B, y_B = one.score_RB.mean(0), two.score_RB.mean(0)
    varied = np.ptp(x_B) > 0 and np.ptp(y_B) > 0
    corr = float(np.corrcoef(x_B, y_B)[0, 1]) if varied else math.nan
    alt = f"Scores of {one.name} and {two.name} for the same clips, means over seeds; they correlate at {corr:.3f}."
    words = (short(one.name), short(two.name))
    paint = partial(against, task=task, x_B=x_B, y_B=y_B, colour=look(two.place)["color"], words=words)
    title = f"Scores: {words[0]} against {words[1]}"
    note = f"Dashed: equal scores. They correlate at {corr:.3f}."
    return plot(f"scores-{one.place}-{two.place}", title, alt, note, paint, 3.6)


def _errors(about: Evidence, one: Group, two: Group) -> Plot:
    first_B, second_B = (np.abs(group.score_RB - about.label_B).mean(0) for group in (one, two))
    gain_B = second_B - first_B
    gain_B = np.round(gain_B[np.isfinite(gain_B)], 6)  # else no bins fit between numbers that are nearly equal
    better = 100 * float((gain_B > 0).mean()) if len(gain_B) else math.nan
    mean = float(gain_B.mean()) if len(gain_B) else math.nan
    words = (short(one.name), short(two.name))
    alt = f"{one.name} is nearer to the label on {better:.1f} % of the clips, {two.name} is {mean:+.3f} points worse"
    note = (
        f"Dashed: the mean ({mean:+.3f}). To the right of 0, {words[0]} is nearer to the label: {better:.1f} % of the "
    )
    note += "clips. This is no test of significance."
    paint = partial(_histogram, gain_B=gain_B, mean=mean, words=words, colour=look(two.place)["color"])
    return plot(f"errors-{one.place}-{two.place}", f"Errors: {words[0]} against {words[1]}", f"{alt}.", note, paint)


def _histogram(axes: Any, gain_B: NDArray[Any], mean: float, words: tuple[str, str], colour: str) -> None:
    axes.hist(gain_B, bins=30, color=colour, alpha=DARKEST)
    axes.axvline(0, color=INK, linewidth=1)
    axes.axvline(mean, color=INK, linestyle="--", linewidth=1)
    axes.yaxis.get_major_locator().set_params(integer=True)
    axes.set(xlabel=f"|error| of {words[1]} minus of {words[0]} (points)", ylabel="clips")
