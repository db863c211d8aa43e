"""Figures about runs: learning curves, seeds as dots with their mean and interval."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from raymsa.report.bins import Interval, interval, limits
from raymsa.report.cells import number
from raymsa.report.evidence import Evidence, Group
from raymsa.report.plots import INK, MOST, Plot, legend, line, look, named, plot, scale, short, unit
from raymsa.report.results import floors

SHOWN = {  # of each profile's metrics, those that papers print
    "mosi": ("mae", "corr", "acc2_nonzero", "acc7"),
    "sims": ("mae", "corr", "acc2", "acc5"),
    "classes": ("acc", "f1", "uar"),
}
ASIDE = 0.04  # epochs between seeds that have a single one
FILLS = ("full", "none", "left", "top", "right", "bottom")
FAR = 3  # times the spread of the seeds: further off, the constant would press them into one point


def losses(about: Evidence) -> list[Plot]:
    """The training loss of each variant: losses of different readouts are different things."""
    return [_loss(group) for group in about.groups[:MOST] if any(run.loss for run in group.runs)]


def valid(about: Evidence) -> list[Plot]:
    """The deciding metric on valid after each epoch, of all variants."""
    groups = [group for group in about.groups[:MOST] if any(run.valid for run in group.runs)]
    if not groups:
        return []
    metric = about.found.decides
    ends = "; ".join(f"{g.name}: {_ends(g, metric)}" for g in groups)
    alt = f"Valid {named(metric)} after each epoch, a line for each seed. From the first to the last epoch, {ends}."
    once = all(len(run.valid) < 2 for group in groups for run in group.runs)
    how = "what is filled of it" if once else "the kind of line"
    note = f"Colour and marker are the variant, {how} is the seed. The epoch that is best here is kept."
    return [plot("valid", f"Valid {named(metric)}", alt, note, lambda axes: _valid(axes, about, metric, once), 3.2)]


def seeds(about: Evidence) -> list[Plot]:
    """Each seed as a dot, and the interval of their mean, for the metrics that papers print."""
    groups = [group for group in about.groups if group.runs]
    names = [name for name in SHOWN[about.found.profile] if any(values(group, name) for group in groups)]
    return [_seeds(about, groups, name) for name in names]


def values(group: Group, metric: str, split: str = "test") -> list[float]:
    """A metric of each run that has it."""
    finals = [run.finals.get(split, {}) for run in group.runs]
    return [final[metric] for final in finals if metric in final]


def _loss(group: Group) -> Plot:
    def paint(axes: Any) -> None:
        for n, run in enumerate(group.runs):
            how = {"color": look(group.place)["color"], "linestyle": line(n), "label": f"seed {run.run.seed}"}
            axes.plot(*zip(*run.loss, strict=True), **how) if run.loss else None
        axes.set(xlabel="epochs done", ylabel="training loss (no unit)")
        legend(axes)

    ends = "; ".join(
        f"seed {run.run.seed} from {run.loss[0][1]:.3f} to {run.loss[-1][1]:.3f}" for run in group.runs if run.loss
    )
    title = f"Training loss: {short(group.name)}"
    return plot(f"loss-{group.place}", title, f"Training loss of {group.name} by epochs done: {ends}.", "", paint)


def _valid(axes: Any, about: Evidence, metric: str, once: bool) -> None:
    """A line for each seed; with values of a single epoch, points beside each other."""
    from matplotlib.lines import Line2D
    from matplotlib.ticker import MaxNLocator

    groups = about.groups[:MOST]
    for group in groups:
        for n, run in enumerate(group.runs):
            aside = (n - (len(group.runs) - 1) / 2) * ASIDE if once else 0
            points = [(epoch + aside, scale(metric) * value) for epoch, value in run.valid]
            if points:
                axes.plot(*zip(*points, strict=True), **look(group.place), **_of_seed(n, once))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    if once:
        axes.margins(x=2)
    axes.set(xlabel="epoch", ylabel=f"valid {named(metric)} ({unit(metric)})")
    shown = [Line2D([], [], linestyle="", label=short(g.name), **look(g.place)) for g in groups if g.runs]
    most = max((group.runs for group in groups), key=len)
    mark: dict[str, Any] = {"marker": "o"} if once else {}
    shown += [
        Line2D([], [], color=INK, label=f"seed {_seed(groups, n)}", **mark, **_of_seed(n, once))
        for n in range(len(most))
    ]
    legend(axes, shown)


def _of_seed(n: int, once: bool) -> dict[str, Any]:
    """How the seed with this number is told from the others; a point has no line."""
    return {"linestyle": "", "fillstyle": FILLS[n % len(FILLS)]} if once else {"linestyle": line(n)}


def _seed(groups: Sequence[Group], place: int) -> str:
    """The seed that a line style stands for: variants may have finished different ones."""
    found = dict.fromkeys(str(group.runs[place].run.seed) for group in groups if place < len(group.runs))
    return " or ".join(found)


def _ends(group: Group, metric: str) -> str:
    pairs = [(run.valid[0][1], run.valid[-1][1]) for run in group.runs if run.valid]
    return ", ".join(f"{number(metric, a)} to {number(metric, b)}" for a, b in pairs)


def _seeds(about: Evidence, groups: list[Group], metric: str) -> Plot:
    found = {group.name: values(group, metric) for group in groups}
    means = {name: interval(mine, limits(metric)) for name, mine in found.items()}
    known = floors(about.found)  # a line for all rows is one that all of them have
    floor = known[0][1].get(metric, math.nan) if len(known) == 1 else math.nan

    def paint(axes: Any) -> None:
        for place, group in enumerate(groups):
            mine = [scale(metric) * v for v in found[group.name]]
            _one(axes, group, place, mine, means[group.name], scale(metric))
        axes.set(xlabel=f"test {named(metric)} ({unit(metric)})", ylim=(len(groups) - 0.5, -0.5))
        axes.set_yticks(range(len(groups)), [short(group.name) for group in groups])
        axes.grid(visible=False, axis="y")
        _floor(axes, scale(metric) * floor, number(metric, floor))

    said = "; ".join(f"{name}: {_said(metric, found[name], mean)}" for name, mean in means.items())
    lost = sum(not math.isfinite(value) for mine in found.values() for value in mine)
    note = f"{lost} without a number." if lost else ""
    alt = f"Test {named(metric)} of every seed. {said}. The constant predictor has {number(metric, floor)}."
    return plot(f"seeds-{metric}", f"Test {named(metric)} by seed", alt, note, paint, 1.0 + 0.34 * len(groups))


def _one(axes: Any, group: Group, place: int, mine: list[float], mean: Interval | None, factor: float) -> None:
    """One variant: seeds above, the mean and its interval below, so that neither hides the other."""
    colour, marker = look(group.place)["color"], look(group.place)["marker"]
    axes.plot(mine, [place - 0.13] * len(mine), linestyle="", marker=marker, color=colour, fillstyle="none")
    if mean is None or not math.isfinite(mean.mean):
        return
    axes.plot([factor * mean.mean], [place + 0.2], linestyle="", marker="D", color=colour, markersize=5)
    if mean.low is not None and mean.high is not None:
        axes.plot([factor * mean.low, factor * mean.high], [place + 0.2] * 2, color=colour, linewidth=1.6, marker="|")


def _floor(axes: Any, floor: float, text: str) -> None:
    """The constant predictor: a line where it is near, else words at the side where it lies."""
    if not math.isfinite(floor):
        return
    low, high = axes.get_xlim()
    if low - FAR * (high - low) <= floor <= high + FAR * (high - low):
        axes.axvline(floor, color=INK, linestyle="--", linewidth=1)
        return
    right = floor > high
    words = f"constant: {text} →" if right else f"← constant: {text}"
    axes.text(1 if right else 0, 1.0, words, transform=axes.transAxes, ha="right" if right else "left", va="bottom")


def _said(metric: str, mine: list[float], mean: Interval | None) -> str:
    if mean is None:
        return "no number"
    dots = ", ".join(number(metric, value) for value in mine)
    if mean.low is None:
        return f"{dots}, mean {number(metric, mean.mean)}"
    return f"{dots}, mean {number(metric, mean.mean)}, from {number(metric, mean.low)} to {number(metric, mean.high)}"
