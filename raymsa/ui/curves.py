"""The curves of runs, kept between two looks: a look reads what was reported since the last one; and charts."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field

from raymsa.evaluation.criteria import criterion_of
from raymsa.report.chart import Line, chart
from raymsa.store import Store, queries
from raymsa.store.queries import RunRow
from raymsa.ui.words import plain

KEPT = 64  # runs
LOSS = "loss"
WORDS = {LOSS: "training loss"}
Points = list[tuple[float, float]]


@dataclass
class _Kept:
    names: tuple[str, ...]
    step: int = 0  # how far the run was at the last look
    points: dict[str, Points] = field(default_factory=dict)


class Curves:
    """What runs reported under some names, (step, value) in order."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: OrderedDict[str, _Kept] = OrderedDict()

    def of(self, store: Store, run: RunRow, names: tuple[str, ...]) -> dict[str, Points]:
        """The curves of a run: name -> points."""
        with self._lock:
            kept = self._kept.pop(run.id, None)
            if kept is None or kept.names != names:
                kept = _Kept(names)
            # A run that went back to its checkpoint says again what came after it.
            since = min(kept.step, run.step or 0)
            read = queries.steps(store, run.id, names, since)
            kept.points = {name: [p for p in points if p[0] < since] for name, points in kept.points.items()}
            for step in read:
                kept.points.setdefault(step.name, []).append((step.step, step.value))
            kept.step = run.step or 0
            self._kept[run.id] = kept
            while len(self._kept) > KEPT:
                self._kept.popitem(last=False)
            return {name: list(kept.points.get(name, ())) for name in names}


def charts(
    store: Store, runs: Sequence[RunRow], curves: Curves, kinds: Sequence[int] | None = None
) -> list[tuple[str, str]]:
    """(title, picture) of the loss, and of each metric that decides on valid. `kinds` says which runs look alike."""
    told: dict[str, list[Line]] = {}
    for one, kind in zip(runs, kinds or [0] * len(runs), strict=True):
        valid = f"valid_{criterion_of(one.spec).metric}"
        for name, points in curves.of(store, one, (LOSS, valid)).items():
            told.setdefault(name, []).append(Line(label(one), points, kind))
    drawn = [
        (WORDS.get(name, name.replace("_", " ")), lines)
        for name, lines in told.items()
        if any(len(line.points) for line in lines)
    ]
    return [(title, chart(title, "step", lines)) for title, lines in drawn]


def label(one: RunRow) -> str:
    """What a run's curve is called."""
    return f"{plain(one.variant)}, seed {one.seed}"
