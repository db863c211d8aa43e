"""The `search:` block of a job: what may be written, what cannot be together, and what decides."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

from pydantic import Field, ValidationInfo, field_validator

from raymsa.evaluation.metrics import CRITERIA, LOW_IS_GOOD, PROFILES
from raymsa.plugins import Spec
from raymsa.ranges import check_range, count, size
from raymsa.target import task_of

SEEDS = (1111, 2222, 3333, 4444)  # of a job that names none; the first one is the trials'
MOST_POINTS = 10_000  # of a grid, whose points are all listed: more are never run
NOT_SEARCHED = {  # sections that a search leaves alone, and why
    "resources": "it is what a run may use; it changes no result",
    "evaluate": "what is scored is the same for all trials",
}


class ConfirmSpec(Spec):
    """Runs of the best settings with fresh seeds: the best of many trials was also the luckiest."""

    top: int = Field(3, ge=1, description="how many of the best settings are run again")
    seeds: tuple[int, ...] = Field(SEEDS[1:], min_length=1, description="seeds to run them with; not the search's own")
    default: bool = Field(True, description="run the file's own settings with these seeds, too: was it worth it?")

    @field_validator("seeds")
    @classmethod
    def _different_seeds(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        return different(value)


class SearchSpec(Spec):
    """A search over any field of this file; Optuna proposes, a metric on valid decides."""

    space: dict[str, dict[str, Any]] = Field(
        min_length=1,
        description="dotted field -> {choice: [...]}, {int: [low, high]}, {uniform: [low, high]} or {loguniform: ...}",
    )
    algorithm: Literal["tpe", "random", "grid", "cma-es"] = Field(
        "tpe", description="how settings are proposed; cma-es is for numbers and draws choices at random"
    )
    trials: int | None = Field(None, ge=1, description="settings to try; null, for a grid alone: all its points")
    scheduler: Literal["none", "asha", "median"] = Field(
        "none",
        description="what ends a trial early: asha keeps a third at epochs 1, 3, 9, ...; median the better half, "
        "once 5 trials are done",
    )
    min_epochs: int = Field(1, ge=1, description="epochs that every trial is given before it may be ended early")
    metric: str | None = Field(
        None, description="what decides, as valid_NAME: any metric of the task; null: valid_mae, of classes valid_f1"
    )
    direction: Literal["low", "high"] | None = Field(None, description="which is good; null: low for mae, else high")
    confirm: ConfirmSpec | None = Field(None, description="run the best settings again with fresh seeds; null: do not")
    warm_start: bool = Field(False, description="learn from runs in the store that differ by the space and seed alone")

    @field_validator("space")
    @classmethod
    def _known_ranges(cls, value: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        return {name: check_range(name, choice) for name, choice in value.items()}

    @field_validator("trials")
    @classmethod
    def _all_of_a_grid(cls, value: int | None, info: ValidationInfo) -> int | None:
        space, algorithm = info.data.get("space"), info.data.get("algorithm")
        if value is not None or space is None or algorithm is None:
            return value
        if algorithm != "grid":
            raise ValueError("missing; it is how many settings to try (only a grid knows that by itself)")
        return size(space)


class Aim(NamedTuple):
    """What a search looks for: a metric (without `valid_`) and which way is good."""

    metric: str
    high_is_good: bool

    def error(self, value: float) -> float:
        """Lower is better."""
        return -value if self.high_is_good else value


def aim_of(spec: dict[str, Any]) -> Aim:
    """What decides in a job's search, from its plain spec."""
    search = spec.get("search") or {}
    metric = (search.get("metric") or f"valid_{CRITERIA[task_of(spec).profile].metric}").removeprefix("valid_")
    direction = search.get("direction") or ("low" if metric in LOW_IS_GOOD else "high")
    return Aim(metric, direction == "high")


def different(seeds: tuple[int, ...]) -> tuple[int, ...]:
    """Seeds, checked: each once, and numbers that every generator takes. Raises ValueError."""
    if len(set(seeds)) != len(seeds):
        raise ValueError(f"given {list(seeds)}; name each seed once")
    if not all(0 <= seed < 2**32 for seed in seeds):
        raise ValueError(f"given {list(seeds)}; give whole numbers from 0 to 4294967295")
    return seeds


def problems(job: Any) -> Iterator[str]:
    """What cannot be together in a job with a search, one line each; what single settings would be is checked later."""
    search = job.search
    if "valid" not in job.evaluate.splits:
        yield f"evaluate.splits: given {list(job.evaluate.splits)}; a search needs valid: settings are chosen on it"
    if len(job.seeds) > 1 and job.seeds != SEEDS:
        seeds = list(job.seeds)
        yield f"seeds: given {seeds}; trials of a search have one: give one, and the others in search.confirm.seeds"
    yield from _metric_problems(search.metric, job.dataset.task.profile)
    yield from _space_problems(search)
    last = job.train.epochs
    if search.scheduler != "none" and "train.epochs" not in search.space and search.min_epochs >= last:
        yield (
            f"search.scheduler: given {search.scheduler}, but every trial is given {search.min_epochs} epochs of "
            f"{last} (train.epochs): nothing could be ended early"
        )
    if search.confirm and job.seeds[0] in search.confirm.seeds:
        given = list(search.confirm.seeds)
        yield f"search.confirm.seeds: given {given}; {job.seeds[0]} is the search's own seed: give fresh ones"


def _metric_problems(metric: str | None, profile: str) -> Iterator[str]:
    known = [f"valid_{name}" for name in PROFILES[profile]]
    if metric is None or metric in known:
        return
    why = ": test cannot be chosen by" if metric.startswith("test") else ""
    yield f"search.metric: given '{metric}'{why}; give one of {', '.join(known)}"


def _space_problems(search: SearchSpec) -> Iterator[str]:
    space = search.space
    for field in space:
        if section := NOT_SEARCHED.get(field.split(".")[0]):
            yield f"search.space.{field}: a search cannot change this: {section}"
        outer = next((other for other in space if field.startswith(f"{other}.")), None)
        if outer:
            yield f"search.space.{field}: it lies inside '{outer}', which is in the space, too; give one of the two"
        if search.algorithm == "grid" and count(space[field]) is None:
            kind = next(iter(space[field]))
            yield f"search.space.{field}: given {kind}; a grid has points: give choice or int, or another algorithm"
    most = size(space)
    if most is not None and search.trials is not None and search.trials > most:
        yield f"search.trials: given {search.trials}, but the space has only {most} settings; give at most {most}"
    if search.algorithm == "grid" and most is not None and most > MOST_POINTS:
        yield f"search.space: a grid of {most:,} points; give at most {MOST_POINTS:,}, or another algorithm"
    if search.algorithm == "cma-es" and all("choice" in choice for choice in space.values()):
        yield "search.algorithm: given cma-es, which needs a field with a range of numbers; tpe takes choices alone"
