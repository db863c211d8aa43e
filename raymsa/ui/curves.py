"""The curves of runs, kept between two looks: each look reads what was reported since the last one."""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass, field

from raymsa.store import Store, queries
from raymsa.store.queries import RunRow

KEPT = 64  # runs
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
