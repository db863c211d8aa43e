"""Scoring clips with a student: one reading per clip, in passes within the token budget."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple, TypeVar

from raymsa.clip import Batch, Clip
from raymsa.data.ahead import ahead
from raymsa.data.collate import WINDOWS_HELD, Collate, windows, within_budget
from raymsa.errors import Stopped
from raymsa.spec import TrainSpec
from raymsa.target import Reading
from raymsa.training.student import Student

T = TypeVar("T")


class Prediction(NamedTuple):
    """A clip, its label and what was read out."""

    clip_id: str
    label: float
    reading: Reading

    def row(self, split: str) -> dict[str, Any]:
        """As the store keeps it."""
        return {"split": split, "clip_id": self.clip_id, "label": self.label, **self.reading._asdict()}


def score(
    student: Student,
    collate: Collate,
    clips: Iterable[Clip],
    train: TrainSpec,
    stopping: Callable[[], bool] = lambda: False,
) -> Iterator[Prediction]:
    """One prediction per clip, in the clips' order. `stopping` is asked after every pass; Stopped is raised then."""
    packed = student.thinker.packing and not student.readout.decodes
    for clip, reading in each(student.read, collate, clips, train, packed, stopping):
        yield Prediction(clip.id, clip.label, reading)


def each(
    read: Callable[[Batch], list[T]],
    collate: Collate,
    clips: Iterable[Clip],
    train: TrainSpec,
    packed: bool,
    stopping: Callable[[], bool] = lambda: False,
) -> Iterator[tuple[Clip, T]]:
    """The clips in their order, each with what `read` made of it, in passes within the token budget.

    Clips of a window go by length, the longest first: passes hold little padding, and what does not fit in memory
    shows at once.
    """
    for window in ahead(windows(clips, train.window_clips), depth=WINDOWS_HELD - 1):
        yield from zip(window, _window(read, collate, window, train.batch_tokens, packed, stopping), strict=True)


def _window(
    read: Callable[[Batch], list[T]],
    collate: Collate,
    window: list[Clip],
    batch_tokens: int,
    packed: bool,
    stopping: Callable[[], bool],
) -> list[T]:
    measured = [collate.measure(clip) for clip in window]
    order = sorted(range(len(measured)), key=lambda at: -len(measured[at].token_T))
    passes = within_budget((measured[at] for at in order), batch_tokens, packed)
    made: list[T] = []
    for batch in collate.ahead(collate(some) for some in passes):
        made += read(batch)
        if stopping():
            raise Stopped("stopped while clips were scored")
    found = dict(zip(order, made, strict=True))
    return [found[at] for at in range(len(window))]


def error_of(student: Student, predictions: Iterable[Prediction]) -> float:
    """What a model is chosen by, lower is better: see `raymsa.evaluation.metrics.CRITERIA`."""
    found = list(predictions)
    return student.rule.error(student.target.profile, [p.reading.score for p in found], [p.label for p in found])
