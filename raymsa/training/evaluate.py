"""Scoring clips with a student: one reading per clip, in batches within the token budget."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from raymsa.clip import Clip
from raymsa.data.ahead import ahead
from raymsa.data.collate import Collate, within_budget
from raymsa.target import Reading
from raymsa.training.student import Student


class Prediction(NamedTuple):
    """A clip, its label and what was read out."""

    clip_id: str
    label: float
    reading: Reading

    def row(self, split: str) -> dict[str, Any]:
        """As the store keeps it."""
        return {"split": split, "clip_id": self.clip_id, "label": self.label, **self.reading._asdict()}


def score(student: Student, collate: Collate, clips: Iterable[Clip], batch_tokens: int) -> Iterator[Prediction]:
    """One prediction per clip, in the clips' order."""
    packed = student.thinker.packing and not student.readout.decodes
    passes = within_budget((collate.measure(clip) for clip in clips), batch_tokens, packed)
    for measured, batch in ahead((some, collate(some)) for some in passes):
        readings = student.read(batch)
        for one, reading in zip(measured, readings, strict=True):
            yield Prediction(one.clip.id, one.clip.label, reading)


def error_of(student: Student, predictions: Iterable[Prediction]) -> float:
    """What a model is chosen by, lower is better: see `raymsa.evaluation.metrics.CRITERIA`."""
    found = list(predictions)
    return student.rule.error(student.target.profile, [p.reading.score for p in found], [p.label for p in found])
