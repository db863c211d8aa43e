"""What decides on valid which model is kept. Without numpy, because `raymsa status` names it and has to be quick."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from numpy.typing import ArrayLike


class Criterion(NamedTuple):
    """What decides on valid which model is kept. As an error it is lower when better, whatever the metric."""

    metric: str
    words: str
    high_is_good: bool = False

    def error(self, profile: str, score: ArrayLike, label: ArrayLike) -> float:
        """The metric, or 1 minus it where a high one is good; NaN for no clips."""
        from raymsa.evaluation.metrics import measure

        return self.turned(measure(profile, score, label)[self.metric])

    def turned(self, value: float) -> float:
        """The metric's value as an error, and an error as the metric's value."""
        return 1 - value if self.high_is_good else value


CRITERIA = {
    "mosi": Criterion("mae", "MAE"),
    "sims": Criterion("mae", "MAE"),
    "classes": Criterion("f1", "weighted F1", high_is_good=True),
}


def criterion_of(spec: Mapping[str, Any]) -> Criterion:
    """The one of a run or job as the store keeps its spec, which is not checked again."""
    task = (spec.get("dataset") or {}).get("task") or {}
    return CRITERIA["classes" if task.get("kind") == "classification" else "mosi"]
