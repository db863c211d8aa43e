"""Several runs under Ray Tune: Tune schedules, Ray Train trains, a `Listener` in this process hears of it."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from ray import tune

from raymsa.cluster import remove_placement_group
from raymsa.training.worker import trial

Work = dict[str, Any]  # what a worker is sent: run_id, spec (one seed), shards, folder
TRIAL_DEATHS = 2  # a run's own errors are reported, so a trial that dies was killed: it goes on from its checkpoint
ERROR_LINE = re.compile(r"[A-Za-z_.]+(Error|Exception)[^:]*: .")
TRIAL_CPUS = 0.01  # a trial's own actor only waits for its worker; Ray refuses 0 here


class Listener(Protocol):
    """Who hears of the runs, in the driver's process."""

    def report(self, run_id: str, values: dict[str, Any]) -> None:
        """A run said something."""

    def ended(self, run_id: str, error: str | None) -> None:
        """A run's trial is over; `error` when it ended without saying so itself."""


def run_all(work: list[Work], listener: Listener, stop: Callable[[], bool], at_once: int, storage: Path) -> None:
    """Train every run, at most `at_once` at a time, until all are over or `stop` says so."""
    by_id = {item["run_id"]: item for item in work}
    storage.mkdir(parents=True, exist_ok=True)
    follow = Follow(listener)
    tune.Tuner(
        tune.with_resources(tune.with_parameters(trial, work=by_id, storage=str(storage)), {"CPU": TRIAL_CPUS}),
        param_space={"run_id": tune.grid_search(list(by_id))},
        tune_config=tune.TuneConfig(max_concurrent_trials=at_once),
        run_config=tune.RunConfig(
            storage_path=str(storage),
            callbacks=[follow],
            stop=WhenAsked(stop),
            verbose=0,
            failure_config=tune.FailureConfig(max_failures=TRIAL_DEATHS),
        ),
    ).fit()
    follow.reap_all()


class _Live:
    """Tune writes its callbacks to disk, for a restore of its own that we never ask for: live objects stay out."""

    def __getstate__(self) -> dict[str, Any]:
        return {}


class Follow(_Live, tune.Callback):  # type: ignore[misc]
    """Hands Tune's news to the listener, and removes the placement groups that stopped trials leave behind.

    Ray's own cleaner needs a running dashboard; without one, a stopped trial's GPU would never be free again.
    """

    def __init__(self, listener: Listener) -> None:
        self._listener = listener
        self._groups: dict[str, str] = {}

    def on_trial_result(self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **_: Any) -> None:
        """A report of a run."""
        if group := result.get("placement_group"):
            self._groups[trial.trial_id] = group
        if "run_id" in result:
            self._listener.report(result["run_id"], result)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        """A trial ended by itself, or was stopped."""
        self._over(trial, None)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        """A trial was lost."""
        self._over(trial, reason(trial))

    def reap_all(self) -> None:
        """Remove what is left when the experiment was stopped."""
        for trial_id in list(self._groups):
            remove_placement_group(self._groups.pop(trial_id))

    def _over(self, trial: Any, error: str | None) -> None:
        if group := self._groups.pop(trial.trial_id, None):
            remove_placement_group(group)
        self._listener.ended(trial.config["run_id"], error)


class WhenAsked(_Live, tune.Stopper):  # type: ignore[misc]
    """Ends the experiment when the driver is asked to stop."""

    def __init__(self, stop: Callable[[], bool]) -> None:
        self._stop = stop

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """Never a single trial."""
        return False

    def stop_all(self) -> bool:
        """Asked by Tune at every turn of its loop."""
        return self._stop()


def reason(trial: Any) -> str:
    """Why Tune gave a trial up, in one line."""
    try:
        error = trial.get_pickled_error() or trial.get_error()
    except Exception:  # the error's class may not be importable here
        error = None
    text = str(getattr(error, "cause", None) or error or "")
    if "low on memory" in text or "OutOfMemoryError" in text:
        return "host memory ran out, and Ray ended the run; lower train.batch_tokens or train.window_clips, or free memory"
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    named = [line for line in lines if ERROR_LINE.match(line)]
    return (named or lines or ["the trial ended without a reason"])[-1][:300]
