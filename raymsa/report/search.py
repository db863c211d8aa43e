"""A search as people look at it: the best settings, whether they held on fresh seeds, what mattered, what ended early.

`search` gathers, unrounded, from the store alone. `study` makes the same an Optuna study, for its plots and dashboard.
"""

from __future__ import annotations

import math
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from raymsa.errors import RaymsaError, UsageError
from raymsa.report.collapse import collapse
from raymsa.report.members import is_trial
from raymsa.report.spread import Spread, spread
from raymsa.searchspec import Aim, aim_of
from raymsa.space import Space, Values
from raymsa.store import Store, queries
from raymsa.store.states import LIVE
from raymsa.study import frozen
from raymsa.target import task_of
from raymsa.trials import DEFAULT, Trial, best, template_of, trials
from raymsa.words import for_json

ENOUGH = 4  # trials that went to their end, to say what mattered; fewer say it of themselves alone
PLOTS = ("history", "importance", "slices", "parallel")


@dataclass(frozen=True)
class Confirmed:
    """A setting on fresh seeds: `valid` is the metric over those that are done, `searched` what it had as a trial."""

    name: str
    values: Values
    is_default: bool
    searched: float | None
    valid: Spread | None
    planned: int


@dataclass(frozen=True)
class Search:
    """A job's search: `best` are the trials that went to their end, the best first; `trials` are all of them.

    `importance` says how much of reaching the best tenth is owed to each field (PED-ANOVA); None for too few
    trials, or if all gave the same. `collapsed` says in words what is no better than a constant on valid, which is all
    that a search looks at: by the run id of a trial, by the name of a setting.
    """

    job_id: str
    name: str
    algorithm: str
    scheduler: str
    metric: str
    high_is_good: bool
    seed: int
    planned: int
    states: dict[str, int]
    best: tuple[Trial, ...]
    confirmed: tuple[Confirmed, ...]
    to_confirm: bool
    importance: dict[str, float] | None
    trials: tuple[Trial, ...]
    collapsed: dict[str, str]


def search(store: Store, job_id: str) -> Search:
    """What a job's search gave so far. Raises NotFound, and UsageError for a job without a search."""
    job, aim, space, found = _found(store, job_id)
    asked = job.spec["search"]
    rows = queries.runs(store, job.id)
    return Search(
        job_id=job.id,
        name=job.name,
        algorithm=asked["algorithm"],
        scheduler=asked.get("scheduler", "none"),
        metric=aim.metric,
        high_is_good=aim.high_is_good,
        seed=job.spec["seeds"][0],
        planned=space.planned(asked["trials"]),
        states=dict(Counter(one.state for one in found)),
        best=tuple(best(found, aim)),
        confirmed=tuple(_confirmed(store, job, aim, space, found, rows)),
        to_confirm=bool(asked.get("confirm")),
        importance=_importance(_in_memory(aim, space, found)),
        trials=tuple(found),
        collapsed=_collapsed(store, job, rows),
    )


def plots(store: Store, job_id: str, folder: Path) -> list[Path]:
    """Optuna's own plots of a search as pages; raises UsageError without plotly or with too few trials."""
    try:
        import plotly  # noqa: F401
    except ImportError:
        raise UsageError("plots need plotly: pip install 'raymsa[plots]'") from None
    from optuna import visualization

    study = _in_memory(*_found(store, job_id)[1:])
    if len(_complete(study)) < 2:
        raise UsageError(
            f"job {job_id}: plots need two trials that went to their end; there are {len(_complete(study))}"
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Optuna about its own experiments
        figures = (
            visualization.plot_optimization_history(study),
            visualization.plot_param_importances(study, evaluator=_evaluator()),
            visualization.plot_slice(study),
            visualization.plot_parallel_coordinate(study),
        )
    written = [folder / f"{name}.html" for name in PLOTS]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path, figure in zip(written, figures, strict=True):
            figure.write_html(path, include_plotlyjs="directory")  # one plotly.min.js beside them; no network
    except OSError as error:
        raise UsageError(f"{folder}: cannot be written ({error.strerror})") from None
    return written


def export(store: Store, job_id: str, path: Path) -> str:
    """Write a search as an Optuna storage (SQLite), for optuna-dashboard; returns the study's name."""
    import optuna

    if path.exists():
        raise UsageError(f"{path} is there already; name a new file")
    if not path.parent.is_dir():
        raise UsageError(f"{path.parent}: no such folder")
    if "?" in str(path.absolute()):
        raise UsageError(f"{path}: name a file without ?, which ends a file's name in the address that Optuna takes")
    job, aim, space, found = _found(store, job_id)
    study = _in_memory(aim, space, found)
    name = f"{job.name}-{job.id}"
    try:
        copy = optuna.create_study(storage=f"sqlite:///{path.absolute()}", study_name=name, direction=study.direction)
    except Exception as error:  # of SQLAlchemy or the file system
        raise RaymsaError(f"{path}: cannot be written ({str(error).splitlines()[0]})") from None
    copy.set_metric_names([f"valid_{aim.metric}"])
    copy.add_trials(study.get_trials(deepcopy=False))
    return name


def as_json(found: Search) -> dict[str, Any]:
    """The same as plain data, unrounded; NaN is null, because JSON has none."""
    return for_json(asdict(found))  # type: ignore[no-any-return]


def _found(store: Store, job_id: str) -> tuple[queries.Job, Aim, Space, list[Trial]]:
    """A search and its trials. Raises NotFound, and UsageError for a job without a search."""
    job = queries.job(store, job_id)
    if not job.spec.get("search"):
        raise UsageError(f"job {job.id} ({job.name}) has no search; raymsa results {job.id} shows its runs")
    space = Space(job.spec["search"]["space"], template_of(job))
    return job, aim_of(job.spec), space, trials(store, job, space)


def _in_memory(aim: Aim, space: Space, found: list[Trial]) -> Any:
    """The trials that are over, as an Optuna study."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.CRITICAL)
    study = optuna.create_study(direction="maximize" if aim.high_is_good else "minimize")
    for one in found:
        if one.state not in LIVE and space.params(one.values) is not None:
            study.add_trial(frozen(one, space))
    return study


def _importance(study: Any) -> dict[str, float] | None:
    """By PED-ANOVA: Optuna's other evaluators need scikit-learn."""
    import optuna

    values = [trial.value for trial in _complete(study)]
    if len(values) < ENOUGH or len(set(values)) == 1:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return dict(optuna.importance.get_param_importances(study, evaluator=_evaluator()))
        except (ValueError, RuntimeError, ZeroDivisionError):
            return None


def _evaluator() -> Any:
    from optuna.importance import PedAnovaImportanceEvaluator

    return PedAnovaImportanceEvaluator()


def _complete(study: Any) -> list[Any]:
    from optuna.trial import TrialState

    return study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))  # type: ignore[no-any-return]


def _collapsed(store: Store, job: queries.Job, rows: Sequence[queries.RunRow]) -> dict[str, str]:
    """Judged on valid."""
    done = [row for row in rows if row.state == "done"]
    finals = queries.all_finals(store, [row.id for row in done])
    together: dict[str, dict[int, Mapping[str, float]]] = {}
    for row in done:
        name = row.id if is_trial(row, job) else row.variant
        together.setdefault(name, {})[row.seed] = finals[row.id].get("valid", {})
    profile = task_of(job.spec).profile
    judged = {name: collapse(found, profile, split="valid").words for name, found in together.items()}
    return {name: words for name, words in judged.items() if words}


def _confirmed(
    store: Store, job: queries.Job, aim: Aim, space: Space, found: list[Trial], runs: Sequence[queries.RunRow]
) -> list[Confirmed]:
    """Settings with runs on fresh seeds, the best mean first."""
    groups: dict[str, list[queries.RunRow]] = {}
    for row in runs:
        if not is_trial(row, job):
            groups.setdefault(row.variant, []).append(row)
    searched, own = {one.name: one.objective for one in found}, template_of(job).group
    made = [
        Confirmed(
            name=name,
            values=space.of_spec(rows[0].spec),
            is_default=name == DEFAULT or rows[0].group_key == own,
            searched=searched.get(name),
            valid=spread(_finals(store, rows, aim.metric)),
            planned=len(rows),
        )
        for name, rows in groups.items()
    ]
    return sorted(made, key=lambda one: _rank(aim, one.valid))


def _finals(store: Store, rows: list[queries.RunRow], metric: str) -> list[float]:
    finals = (queries.finals(store, row.id).get("valid", {}) for row in rows if row.state == "done")
    return [values[metric] for values in finals if metric in values]


def _rank(aim: Aim, valid: Spread | None) -> float:
    return math.inf if valid is None or math.isnan(valid.mean) else aim.error(valid.mean)
