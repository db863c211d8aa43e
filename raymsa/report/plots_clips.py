"""Figures about clips: predicted against true, residuals, signs, confusions.

Axes: R runs (seeds), B test clips, K bins.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raymsa.report.bins import Bins, bins_of, counted, residuals, signs
from raymsa.report.evidence import Evidence, Group
from raymsa.report.plots import FAINT, INK, MOST, Plot, dots, legend, look, plot, short, strokes
from raymsa.target import Classification, Regression

MOST_DOTS = 1500  # clips that are shown as dots; more are counted in squares
SQUARES = 40  # along a side
DARKEST = 0.6  # of a cell: text in it stays readable on white and on black


def of_clips(about: Evidence) -> dict[str, list[Plot]]:
    """All figures of a job's test clips by what they show; nothing without any."""
    groups = scored(about)
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
    }


def scored(about: Evidence) -> list[Group]:
    """The variants that figures show: the first ones, as far as they have scores."""
    return [group for group in about.groups[:MOST] if group.score_RB.size]


def against(
    axes: Any, task: Regression, x_B: NDArray[Any], y_B: NDArray[Any], colour: str, words: tuple[str, str]
) -> None:
    """Scores (or labels) against each other within the label range: dots of few clips, squares of many."""
    axes.plot([task.low, task.high], [task.low, task.high], color=INK, linestyle="--", linewidth=1)
    if len(x_B) > MOST_DOTS:
        _squares(axes, task, x_B, y_B, colour)
    else:
        dots(axes, x_B, y_B, colour)
    room = (task.high - task.low) * 0.03
    span = (task.low - room, task.high + room)
    x, y = (f"{word} (points)" for word in words)
    axes.set(xlim=span, ylim=span, xlabel=x, ylabel=y, aspect="equal")


def _predicted(about: Evidence, task: Regression, group: Group) -> Plot:
    mean_B, colour = group.score_RB.mean(0), look(group.place)["color"]

    def paint(axes: Any) -> None:
        if len(about.ids) <= MOST_DOTS:
            lows, highs = group.score_RB.min(0), group.score_RB.max(0)
            ends = [(x, low, x, high) for x, low, high in zip(about.label_B, lows, highs, strict=True)]
            strokes(axes, _finite(ends), colour, 0.6, 0.35)
        against(axes, task, about.label_B, mean_B, colour, ("label", "predicted score"))

    low, high = np.nanpercentile(mean_B, (5, 95)) if np.isfinite(mean_B).any() else (math.nan, math.nan)
    alt = (
        f"Scores of {group.name} against the labels of {len(about.ids):,} test clips. "
        f"Nine in ten mean scores lie from {low:+.2f} to {high:+.2f}."
    )
    note = "Squares: clips, the larger the more." if len(about.ids) > MOST_DOTS else ""
    return plot(f"predicted-{group.place}", f"Predicted against true: {short(group.name)}", alt, note, paint, 3.6)


def _squares(axes: Any, task: Regression, x_B: NDArray[Any], y_B: NDArray[Any], colour: str) -> None:
    edges = np.linspace(task.low, task.high, SQUARES + 1)
    x_B, y_B = np.clip(x_B, task.low, task.high), np.clip(y_B, task.low, task.high)
    counts, _, _ = np.histogram2d(x_B, y_B, [edges, edges])
    middle = (edges[1:] + edges[:-1]) / 2
    at_x, at_y = np.nonzero(counts)
    size = counts[at_x, at_y] / counts.max()
    axes.scatter(middle[at_x], middle[at_y], s=36 * size, marker="s", color=colour, linewidths=0)


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

    right = float(np.trace(table_KK)) / max(int(table_KK.sum()), 1)
    what = {"acc7": "Acc-7", "acc5": "Acc-5", "acc": "accuracy"}.get(bins.metric or "", "bins")
    diagonal = ", ".join(f"{100 * share_KK[k, k]:.0f} % of {names[k]}" for k in range(len(rows)))
    alt = f"Confusion of {group.name}: right are {diagonal}; {100 * right:.1f} % of all."
    runs = "1 seed" if len(group.score_RB) == 1 else f"{len(group.score_RB)} seeds together"
    note = f"Percent of the clips with the row's label, {runs}; {100 * right:.1f} % of all clips are on the diagonal."
    height = 1.1 + 0.32 * len(rows) + 0.04 * max(map(len, names))  # long names are turned, and stand below
    title = f"Confusion ({what}): {short(group.name)}"
    paint = partial(_cells, share_KK=share_KK, names=names, colour=look(group.place)["color"])
    return plot(f"confusion-{group.place}", title, alt, note, paint, height)


def _cells(axes: Any, share_KK: NDArray[Any], names: list[str], colour: str) -> None:
    """A table of shares: the darker, the larger, and each with its number in percent."""
    from matplotlib.patches import Rectangle

    for (y, x), share in np.ndenumerate(share_KK):
        if share:
            how = {"facecolor": colour, "alpha": DARKEST * share, "linewidth": 0}
            axes.add_patch(Rectangle((x - 0.5, y - 0.5), 1, 1, **how))
            axes.text(x, y, f"{100 * share:.0f}", ha="center", va="center", fontsize=7.5)
    turned = max(map(len, names)) > 3
    rows, columns = share_KK.shape
    axes.set_xticks(range(columns), names, rotation=30 if turned else 0, ha="right" if turned else "center")
    axes.set_yticks(range(rows), names[:rows])
    axes.set(xlim=(-0.5, columns - 0.5), ylim=(rows - 0.5, -0.5), xlabel="answer", ylabel="label")
    axes.set_xticks(np.arange(columns + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(rows + 1) - 0.5, minor=True)
    axes.grid(visible=False)
    axes.grid(which="minor", color=FAINT, linewidth=0.5)
    axes.tick_params(which="both", length=0)


def _beside(place: int, many: int) -> float:
    """Where a variant stands within its bin."""
    return (place - (many - 1) / 2) * 0.7 / max(many, 2)


def _finite(ends: list[tuple[float, float, float, float]]) -> list[tuple[float, float, float, float]]:
    return [one for one in ends if all(map(math.isfinite, one))]
