"""Figures about clips: predicted against true, residuals, signs, confusions, one readout against another.

Axes: R runs (seeds), B test clips, K bins.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raymsa.report.bins import Bins, bins_of, counted, residuals, signs
from raymsa.report.evidence import Evidence, Group
from raymsa.report.plots import FAINT, INK, MOST, Plot, dots, legend, look, plot, short, strokes
from raymsa.target import Classification, Regression

MOST_DOTS = 1500  # clips that are shown as dots; more are counted in squares
SQUARES = 40  # along a side
PAIRS = 6  # of variants held against each other
DARKEST = 0.6  # of a cell: text in it stays readable on white and on black


def of_clips(about: Evidence) -> dict[str, list[Plot]]:
    """All figures of a job's test clips by what they show; nothing without any."""
    groups = [group for group in about.groups[:MOST] if group.score_RB.size]
    if not groups:
        return {}
    bins = bins_of(about.task)
    confusions = [_confusion(about, bins, group) for group in groups]
    if isinstance(about.task, Classification):
        return {"confusion": confusions}
    return {
        "predicted": [_predicted(about, about.task, group) for group in groups],
        "residuals": [_residuals(about, bins, groups)],
        "signs": [_signs(about, about.task, groups)],
        "confusion": confusions,
        "pairs": [one for at in _pairs(len(groups)) for one in _pair(about, about.task, at, groups)],
    }


def pairs_left_out(variants: int) -> int:
    """Pairs of variants that `of_clips` does not show."""
    return math.comb(min(variants, MOST), 2) - len(_pairs(variants))


def _pairs(variants: int) -> list[tuple[int, int]]:
    return list(itertools.combinations(range(min(variants, MOST)), 2))[:PAIRS]


def _predicted(about: Evidence, task: Regression, group: Group) -> Plot:
    mean_B, colour = group.score_RB.mean(0), look(group.place)["color"]

    def paint(axes: Any) -> None:
        axes.plot([task.low, task.high], [task.low, task.high], color=INK, linestyle="--", linewidth=1)
        if len(about.ids) > MOST_DOTS:
            _squares(axes, task, about.label_B, mean_B, colour)
        else:
            lows, highs = group.score_RB.min(0), group.score_RB.max(0)
            ends = [(x, low, x, high) for x, low, high in zip(about.label_B, lows, highs, strict=True)]
            strokes(axes, _finite(ends), colour, 0.6, 0.35)
            dots(axes, about.label_B, mean_B, colour)
        _range(axes, task, "label", "predicted score")

    low, high = np.nanpercentile(mean_B, (5, 95)) if np.isfinite(mean_B).any() else (math.nan, math.nan)
    alt = (
        f"Scores of {group.name} against the labels of {len(about.ids):,} test clips. "
        f"Nine in ten mean scores lie from {low:+.2f} to {high:+.2f}."
    )
    note = "Squares: clips, the larger the more." if len(about.ids) > MOST_DOTS else ""
    return plot(f"predicted-{group.place}", f"Predicted against true: {short(group.name)}", alt, note, paint, 3.6)


def _squares(axes: Any, task: Regression, x_B: NDArray[Any], y_B: NDArray[Any], colour: str) -> None:
    edges = np.linspace(task.low, task.high, SQUARES + 1)
    counts, _, _ = np.histogram2d(x_B, np.clip(y_B, task.low, task.high), [edges, edges])
    middle = (edges[1:] + edges[:-1]) / 2
    at_x, at_y = np.nonzero(counts)
    size = counts[at_x, at_y] / counts.max()
    axes.scatter(middle[at_x], middle[at_y], s=36 * size, marker="s", color=colour, linewidths=0)


def _range(axes: Any, task: Regression, x: str, y: str) -> None:
    room = (task.high - task.low) * 0.03
    span = (task.low - room, task.high + room)
    axes.set(xlim=span, ylim=span, xlabel=f"{x} (points)", ylabel=f"{y} (points)", aspect="equal")


def _residuals(about: Evidence, bins: Bins, groups: list[Group]) -> Plot:
    clips = np.bincount(bins.of(about.label_B), minlength=len(bins.names))
    found = [residuals(bins, group.score_RB, about.label_B) for group in groups]

    def paint(axes: Any) -> None:
        axes.axhline(0, color=INK, linewidth=1)
        for n, (group, mine) in enumerate(zip(groups, found, strict=True)):
            at, how = {k: k + _beside(n, len(groups)) for k in mine}, look(group.place)
            strokes(axes, [(at[k], p[0], at[k], p[4]) for k, p in mine.items()], how["color"], 1)
            strokes(axes, [(at[k], p[1], at[k], p[3]) for k, p in mine.items()], how["color"], 4, 0.5)
            medians = [p[2] for p in mine.values()]
            axes.plot(list(at.values()), medians, linestyle="", label=short(group.name), **how)
        axes.set(xlabel="label, and clips with it", ylabel="score minus label (points)")
        _bin_ticks(axes, bins, clips)
        legend(axes)

    said = "; ".join(f"{g.name}: {_medians(bins, mine)}" for g, mine in zip(groups, found, strict=True))
    note = "Marker: median over clips and seeds. Thick: the middle half. Thin: from 5 to 95 %. Zero is right."
    alt = f"Score minus label by label. Medians of {said}."
    return plot("residuals", "Residuals by label", alt, note, paint, 3.3)


def _medians(bins: Bins, mine: dict[int, NDArray[Any]]) -> str:
    return ", ".join(f"{p[2]:+.2f} at {bins.names[k]}" for k, p in mine.items())


def _bin_ticks(axes: Any, bins: Bins, clips: NDArray[Any]) -> None:
    turned = max(map(len, bins.names)) > 6
    between = " · " if turned else "\n"
    labels = [f"{short(name)}{between}{n}" for name, n in zip(bins.names, clips, strict=True)]
    axes.set_xticks(range(len(labels)), labels, rotation=30 if turned else 0, ha="right" if turned else "center")
    axes.set_xlim(-0.5, len(labels) - 0.5)
    axes.grid(visible=False, axis="x")


def _signs(about: Evidence, task: Regression, groups: list[Group]) -> Plot:
    found = [signs(task, group.score_RB, about.label_B) for group in groups]
    edges = sorted({(low, high) for mine in found for low, high, _, _ in mine})

    def paint(axes: Any) -> None:
        for n, (group, mine) in enumerate(zip(groups, found, strict=True)):
            how = look(group.place)
            at = [edges.index((low, high)) + _beside(n, len(groups)) for low, high, _, _ in mine]
            shares = [100 * share_R[np.isfinite(share_R)] for _, _, share_R, _ in mine]
            spans = [(x, s.min(), x, s.max()) for x, s in zip(at, shares, strict=True)]
            strokes(axes, spans, how["color"], 1)
            axes.plot(at, [s.mean() for s in shares], label=short(group.name), linewidth=0.7, **how)
        axes.axhline(50, color=INK, linestyle="--", linewidth=1)
        axes.set(xlabel="|score| (points)", ylabel="right sign (%)", ylim=(min(40, axes.get_ylim()[0]), 102))
        axes.set_xticks(range(len(edges)), [f"{low:.3g}–{high:.3g}" for low, high in edges], fontsize=7.5)
        axes.set_xlim(-0.5, len(edges) - 0.5)
        legend(axes)

    said = "; ".join(f"{g.name}: {_shares(mine)}" for g, mine in zip(groups, found, strict=True))
    left_out = "0 counts as negative" if task.profile == "sims" else "clips labelled 0 left out"
    note = (
        f"Marker: mean over seeds. Line: from the lowest to the highest seed. Dashed: a coin. {left_out.capitalize()}."
    )
    return plot("signs", "Calibration of the sign", f"Share of right signs by |score|. {said}.", note, paint, 3.2)


def _shares(mine: list[tuple[float, float, NDArray[Any], int]]) -> str:
    return ", ".join(
        f"{100 * float(np.nanmean(share_R)):.0f} % from {low:.3g} to {high:.3g}" for low, high, share_R, _ in mine
    )


def _confusion(about: Evidence, bins: Bins, group: Group) -> Plot:
    table_KK = counted(bins, group.score_RB, about.label_B)
    rows = list(range(len(bins.names) - isinstance(about.task, Classification)))  # no label is `no class`
    columns = [k for k in range(len(bins.names)) if k < len(rows) or table_KK[:, k].any()]
    table_KK = table_KK[np.ix_(rows, columns)]
    share_KK = table_KK / np.maximum(table_KK.sum(1, keepdims=True), 1)
    names = [short(bins.names[k]) for k in columns]

    def paint(axes: Any) -> None:
        from matplotlib.patches import Rectangle

        for (y, x), share in np.ndenumerate(share_KK):
            how = {"facecolor": look(group.place)["color"], "alpha": DARKEST * share, "linewidth": 0}
            axes.add_patch(Rectangle((x - 0.5, y - 0.5), 1, 1, **how)) if share else None
            if table_KK[y, x]:
                axes.text(x, y, f"{100 * share:.0f}", ha="center", va="center", fontsize=7.5)
        turned = max(map(len, names)) > 3
        axes.set_xticks(range(len(names)), names, rotation=30 if turned else 0, ha="right" if turned else "center")
        axes.set_yticks(range(len(rows)), names[: len(rows)])
        axes.set(xlim=(-0.5, len(names) - 0.5), ylim=(len(rows) - 0.5, -0.5), xlabel="answer", ylabel="label")
        axes.set_xticks(np.arange(len(names) + 1) - 0.5, minor=True)
        axes.set_yticks(np.arange(len(rows) + 1) - 0.5, minor=True)
        axes.grid(visible=False)
        axes.grid(which="minor", color=FAINT, linewidth=0.5)
        axes.tick_params(which="both", length=0)

    right = float(np.trace(table_KK)) / max(int(table_KK.sum()), 1)
    what = {"acc7": "Acc-7", "acc5": "Acc-5", "acc": "accuracy"}.get(bins.metric or "", "bins")
    diagonal = ", ".join(f"{100 * share_KK[k, k]:.0f} % of {names[k]}" for k in range(len(rows)))
    alt = f"Confusion of {group.name}: right are {diagonal}; {100 * right:.1f} % of all."
    runs = "1 seed" if len(group.score_RB) == 1 else f"{len(group.score_RB)} seeds together"
    note = f"Percent of the clips with the row's label, {runs}; {100 * right:.1f} % of all clips are on the diagonal."
    height = 1.1 + 0.32 * len(rows) + 0.04 * max(map(len, names))  # long names are turned, and stand below
    return plot(f"confusion-{group.place}", f"Confusion ({what}): {short(group.name)}", alt, note, paint, height)


def _pair(about: Evidence, task: Regression, at: tuple[int, int], groups: list[Group]) -> list[Plot]:
    one, two = (groups[n] for n in at)
    x_B, y_B = one.score_RB.mean(0), two.score_RB.mean(0)
    label = about.label_B
    gain_B = np.abs(two.score_RB - label).mean(0) - np.abs(one.score_RB - label).mean(0)
    names = (short(one.name), short(two.name))
    name, between = f"{one.place}-{two.place}", f"{names[0]} against {names[1]}"
    colour = look(two.place)["color"]

    def scores(axes: Any) -> None:
        axes.plot([task.low, task.high], [task.low, task.high], color=INK, linestyle="--", linewidth=1)
        if len(x_B) > MOST_DOTS:
            _squares(axes, task, np.clip(x_B, task.low, task.high), y_B, colour)
        else:
            dots(axes, x_B, y_B, colour)
        _range(axes, task, names[0], names[1])

    def gains(axes: Any) -> None:
        axes.hist(gain_B[np.isfinite(gain_B)], bins=30, color=colour, alpha=DARKEST)
        axes.axvline(0, color=INK, linewidth=1)
        axes.axvline(float(gain_B.mean()), color=INK, linestyle="--", linewidth=1)
        axes.yaxis.get_major_locator().set_params(integer=True)
        axes.set(xlabel=f"|error| of {names[1]} minus of {names[0]} (points)", ylabel="clips")

    better = 100 * float((gain_B > 0).mean())
    varied = np.ptp(x_B) > 0 and np.ptp(y_B) > 0
    corr = float(np.corrcoef(x_B, y_B)[0, 1]) if varied else math.nan
    alike = f"Scores of {one.name} and {two.name} for the same clips, means over seeds; they correlate at {corr:.3f}."
    apart = (
        f"{one.name} is nearer to the label on {better:.1f} % of the clips; "
        f"{two.name}'s mean absolute error is {gain_B.mean():+.3f} points from it"
    )
    right = f"Dashed: the mean. To the right of 0, {names[0]} is nearer to the label ({better:.1f} % of the clips)."
    return [
        plot(f"scores-{name}", f"Scores: {between}", alike, "Dots: clips. Dashed: equal scores.", scores, 3.6),
        plot(f"gains-{name}", f"Errors: {between}", apart + ".", right + " This is no test of significance.", gains),
    ]


def _beside(place: int, many: int) -> float:
    """Where a variant stands within its bin."""
    return (place - (many - 1) / 2) * 0.7 / max(many, 2)


def _finite(ends: list[tuple[float, float, float, float]]) -> list[tuple[float, float, float, float]]:
    return [one for one in ends if all(map(math.isfinite, one))]
