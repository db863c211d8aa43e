"""What the spec of a job or run must be like for tables and pages to be made of it.

An export may be a stranger's, or of another raymsa whose JobSpec has other fields. So it is not validated as a JobSpec:
only what reports read is looked at, and of that only what would break them.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from raymsa.problems import lines_for
from raymsa.target import Task, task_of


class _Shape(BaseModel):
    """As stored: a number in quotes is no number. Fields of another raymsa are left alone."""

    model_config = ConfigDict(extra="ignore", strict=True, protected_namespaces=())


class _Dataset(_Shape):
    name: str | None = None
    kind: str | None = None
    language: str = "en"


class _Readout(_Shape):
    kind: str = Field(description="the readout's kind")


class _Model(_Shape):
    path: str | None = None


class _Inputs(_Shape):
    modalities: list[str] = []


class _Lora(_Shape):
    rank: int | None = None
    alpha: float = Field(description="a number")


class _Train(_Shape):
    epochs: int = Field(description="a whole number")
    batch_clips: int = Field(description="a whole number")
    lora_lr: float = Field(description="a number")
    head_lr: float = Field(description="a number")
    patience: int = Field(description="a whole number")


class _Resources(_Shape):
    gpus: int = Field(0, ge=0, lt=2**31)  # the database adds them up


class _Settings(_Shape):
    dataset: _Dataset = Field(description="the clips")
    readout: _Readout = Field(description="how a score is read out of the Thinker")
    model: _Model | None = None
    inputs: _Inputs | None = None
    lora: _Lora | None = None
    train: _Train | None = None
    resources: _Resources | None = None


class _Confirm(_Shape):
    top: int = 0
    seeds: list[int] = []


class _Search(_Shape):
    space: dict[str, dict[str, Any]] = Field(description="dotted field -> its range")
    algorithm: str = Field(description="how settings are proposed")
    trials: int | None = Field(description="settings to try, or null")
    metric: str | None = None
    direction: str | None = None
    confirm: _Confirm | None = None


class _Job(_Settings):
    seeds: list[int] = Field(min_length=1, description="one run for each; a search takes the first")
    variants: dict[str, dict[str, Any]] = {}
    search: _Search | None = None


def problem_of_job(spec: Any) -> str:
    """The first thing in a job's spec that would break a table or page; empty when there is none."""
    return _problem(_Job, spec)


def problem_of_run(spec: Any) -> str:
    """The same of a run's spec."""
    return _problem(_Settings, spec)


def _problem(model: type[_Settings], spec: Any) -> str:
    try:
        model.model_validate(spec)
    except ValidationError as error:
        return f"spec.{lines_for(error, model)[0]}"
    try:
        task_of(spec)
    except ValidationError as error:
        return f"spec.dataset.task.{lines_for(error, Task)[0]}"
    return ""
