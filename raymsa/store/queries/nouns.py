"""Rows of the store as frozen dataclasses; numbers that were not a number are NaN (see tables.py)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeVar


@dataclass(frozen=True)
class Job:
    """What a person submitted; its state is `state_of` those of its tasks."""

    id: str
    name: str
    spec: dict[str, Any]
    created_at: float
    submitted_by: str
    folder: str
    git_commit: str | None


@dataclass(frozen=True)
class Task:
    """What the queue hands out. `driver` and `attempts` say which claim this is."""

    id: int
    job_id: str
    seq: int
    kind: str
    payload: dict[str, Any]
    state: str
    priority: int
    attempts: int
    max_attempts: int
    driver: str | None
    lease_until: float | None
    not_before: float | None
    deadline: float | None
    asked: str | None
    created_at: float
    started_at: float | None
    finished_at: float | None
    error: str | None
    cause: str | None
    said: str | None


@dataclass(frozen=True)
class RunRow:
    """One training as recorded; None where there is no number yet."""

    id: str
    job_id: str
    task_id: int | None
    variant: str
    seed: int
    group_key: str
    spec: dict[str, Any]
    spec_digest: str
    data_digest: str | None
    state: str
    attempts: int
    started_at: float | None
    finished_at: float | None
    error: str | None
    versions: dict[str, Any] | None
    git_commit: str | None
    wall_s: float
    device_s: float
    peak_memory_bytes: int | None
    trainable_parameters: int | None
    steps_total: int | None
    step: int | None
    epoch: int | None
    best_epoch: int | None
    valid_error: float | None
    data_wait: float | None
    failures: int
    cause: str | None
    not_before: float | None
    place: str | None
    left_s: float | None
    heard_at: float | None


@dataclass(frozen=True)
class Step:
    run_id: str
    step: int
    name: str
    value: float
    epoch: int | None
    at: float


@dataclass(frozen=True)
class Prediction:
    """One clip's score, or class counted from 0. `text` is the answer, if in words.

    An unparsable answer counts as the middle of the range, or as -1 for classes, and has `parsed` false.
    """

    run_id: str
    split: str
    clip_id: str
    label: float
    score: float
    text: str | None
    parsed: bool
    in_range: bool


@dataclass(frozen=True)
class Artifact:
    run_id: str
    name: str
    path: str
    bytes: int | None


@dataclass(frozen=True)
class Event:
    """`what` is the new state of the task or run, or `cancel requested`; `detail` says why."""

    id: int
    at: float
    job_id: str | None
    task_id: int | None
    run_id: str | None
    what: str
    detail: str
    who: str


Row = TypeVar("Row", Job, Task, RunRow, Step, Prediction, Artifact, Event)
