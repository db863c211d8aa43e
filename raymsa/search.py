"""Several runs under Ray Tune: seeds and variants as they are, or a search in which Optuna proposes the settings.

Tune schedules, Ray Train trains; what the trials report goes to `Listener`, in this process.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from raymsa.cluster import remove_placement_group

Work = dict[str, Any]  # what a worker is sent: run_id, spec (one seed), shards, folder


class Listener(Protocol):
    """Who hears of the trials, in the driver's process."""

    def report(self, run_id: str, values: dict[str, Any]) -> None:
        """A run said something."""

    def ended(self, run_id: str, error: str | None) -> None:
        """A run's trial is over; `error` when it ended without saying so itself."""


class Search(Protocol):
    """What decides a search trial's settings and gives them a run."""

    def work_for(self, trial_id: str, values: dict[str, Any]) -> Work:
        """The run to make with the proposed values."""


def run_all(work: list[Work], listener: Listener, stop: Callable[[], bool], at_once: int, storage: Path) -> None:
    """Train every run, at most `at_once` at a time, until all are over or `stop` says so."""
    from ray import tune

    by_id = {item["run_id"]: item for item in work}
    space = {"run_id": tune.grid_search(list(by_id))}
    _fit(by_id, space, tune.TuneConfig(max_concurrent_trials=at_once), listener, stop, storage)


def _fit(
    by_id: dict[str, Work], space: dict[str, Any], how: Any, listener: Listener, stop: Callable[[], bool], storage: Path
) -> None:
    from ray import tune

    from raymsa.training.worker import trial

    storage.mkdir(parents=True, exist_ok=True)
    # A trial waits for its worker and does nothing itself, so it asks for almost nothing.
    body = tune.with_resources(tune.with_parameters(trial, work=by_id, storage=str(storage)), {"CPU": 0.01})
    follow = _callback(listener)
    settings = tune.RunConfig(
        storage_path=str(storage),
        callbacks=[follow],
        stop=_stopper(stop),
        verbose=0,
        failure_config=tune.FailureConfig(max_failures=0),
        checkpoint_config=tune.CheckpointConfig(num_to_keep=1),
    )
    tune.Tuner(body, param_space=space, tune_config=how, run_config=settings).fit()
    follow.reap_all()


def _callback(listener: Listener) -> Any:
    from ray import tune

    class Follow(tune.Callback):  # type: ignore[misc]
        """Hands Tune's news to the listener, and removes the placement groups that stopped trials leave behind."""

        def __init__(self) -> None:
            self._groups: dict[str, str] = {}

        def on_trial_result(
            self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **_: Any
        ) -> None:
            if group := result.get("placement_group"):
                self._groups[trial.trial_id] = group
            if "run_id" in result:
                listener.report(result["run_id"], result)

        def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
            self._over(trial, None)

        def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
            self._over(trial, reason(trial))

        def reap_all(self) -> None:
            for trial_id in list(self._groups):
                remove_placement_group(self._groups.pop(trial_id))

        def _over(self, trial: Any, error: str | None) -> None:
            if group := self._groups.pop(trial.trial_id, None):
                remove_placement_group(group)
            listener.ended(trial.config["run_id"], error)

    return Follow()


def _stopper(stop: Callable[[], bool]) -> Any:
    from ray import tune

    class WhenAsked(tune.Stopper):  # type: ignore[misc]
        """Ends the experiment when the driver is asked to stop."""

        def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
            return False

        def stop_all(self) -> bool:
            return stop()

    return WhenAsked()


def reason(trial: Any) -> str:
    """Why Tune gave a trial up, in one line."""
    try:
        error = trial.get_pickled_error() or trial.get_error()
    except Exception:
        error = None
    text = str(getattr(error, "cause", None) or error or "the trial ended without a reason")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:500] if lines else "the trial ended without a reason"


def objective(values: dict[str, Any]) -> float | None:
    """What a search minimises: valid MAE, or None when this report has none. NaN would leave a trial open for ever."""
    mae = values.get("valid_mae")
    return None if mae is None or math.isnan(mae) else float(mae)
